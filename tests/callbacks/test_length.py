import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from imgsynth.callbacks import Checkpoint, Length, newest_checkpoint


class Batches:
    """A loader that tells nothing but its batches."""

    def __init__(self, size: int) -> None:
        self.batch = {"image": torch.zeros(size, 1, 8, 8), "label": torch.arange(size) % 2}

    def __iter__(self):
        return iter([self.batch] * 5)


@pytest.mark.parametrize(
    ("images", "size", "steps", "updates"),
    [(12, 4, 1, 3), (13, 4, 1, 4), (1, 4, 1, 1), (30, 4, 2, 4)],
)
def test_a_run_has_the_updates_that_the_images_need(
    gan, data, trainer, images, size, steps, updates
):
    method = gan(discriminator_steps=steps)
    run = trainer(None, Length(images), enable_checkpointing=False)
    run.fit(method, data(size))
    assert run.global_step == method.updates == updates
    assert method.images_seen == method.total_images == updates * size * steps


def test_a_plain_loader_tells_its_batch_size(gan, trainer):
    images = [{"image": torch.zeros(1, 8, 8), "label": label % 2} for label in range(9)]
    loader = DataLoader(images, batch_size=3)
    method = gan()
    trainer(None, Length(10), enable_checkpointing=False).fit(method, loader)
    assert method.images_seen == method.total_images == 12


def test_an_iterable_without_a_batch_size_is_measured_by_its_first_batch(gan, trainer):
    method = gan()
    trainer(None, Length(10), enable_checkpointing=False).fit(method, Batches(3))
    assert method.images_seen == method.total_images == 12


def test_it_decides_alone_over_epochs_and_warns_of_ignored_steps(gan, data, trainer):
    method = gan()
    trainer(None, Length(40), enable_checkpointing=False, max_epochs=1).fit(method, data())
    assert method.images_seen == 40
    with pytest.warns(UserWarning, match=r"max_steps=3 is ignored: Length\(40\) decides"):
        trainer(None, Length(40), enable_checkpointing=False, max_steps=3).fit(gan(), data())


def test_a_trial_run_stays_a_trial_run(gan, data, trainer):
    method = gan()
    trainer(None, Length(40), fast_dev_run=True).fit(method, data())
    assert method.updates == 1


def test_a_finished_run_ends_at_once_and_a_larger_length_goes_on(gan, data, trainer, tmp_path):
    trainer(tmp_path, Length(20), Checkpoint()).fit(gan(), data())
    finished = newest_checkpoint(tmp_path)

    again = gan()
    trainer(tmp_path, Length(20), Checkpoint()).fit(
        again, data(), ckpt_path=finished, weights_only=True
    )
    assert again.updates == 5

    longer = gan()
    run = trainer(tmp_path, Length(33), Checkpoint())
    run.fit(longer, data(), ckpt_path=finished, weights_only=True)
    assert run.global_step == longer.updates == 9
    assert longer.images_seen == longer.total_images == 36


def test_a_finished_run_on_a_plain_iterable_ends_at_once_too(gan, trainer, tmp_path):
    trainer(tmp_path, Length(20), Checkpoint()).fit(gan(), Batches(4))
    again = gan()
    run = trainer(tmp_path, Length(20), Checkpoint())
    run.fit(again, Batches(4), ckpt_path=newest_checkpoint(tmp_path), weights_only=True)
    assert again.updates == 5


def test_another_batch_size_counts_the_images_left(gan, data, trainer, tmp_path):
    trainer(tmp_path, Length(20), Checkpoint()).fit(gan(), data())
    method = gan()
    run = trainer(tmp_path, Length(60), Checkpoint())
    run.fit(method, data(batch_size=10), ckpt_path=newest_checkpoint(tmp_path), weights_only=True)
    assert (method.updates, method.images_seen) == (5 + 4, 60)


@pytest.mark.parametrize("images", [0, -3, "many"])
def test_no_length_is_refused(images):
    with pytest.raises(ValueError, match="images"):
        Length(images)


def test_another_module_is_refused_by_name(data, trainer):
    class Plain(LightningModule):
        def training_step(self, batch, batch_idx):
            raise AssertionError("not reached")

        def configure_optimizers(self):
            return None

    with pytest.raises(ValueError, match="need a method of imgsynth, got Plain"):
        trainer(None, Length(8), enable_checkpointing=False).fit(Plain(), data())


def test_smaller_last_batches_do_not_shorten_a_run(gan, trainer, tmp_path):
    images = [{"image": torch.zeros(1, 8, 8), "label": label % 2} for label in range(5)]
    loader = DataLoader(images, batch_size=4)
    method = gan()
    trainer(tmp_path, Length(19), Checkpoint()).fit(method, loader)
    assert (method.updates, method.images_seen, method.total_images) == (7, 19, 19)

    again = gan()
    newest = newest_checkpoint(tmp_path)
    trainer(tmp_path, Length(19), Checkpoint()).fit(
        again, loader, ckpt_path=newest, weights_only=True
    )
    assert again.updates == 7
