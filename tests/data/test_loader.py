"""The order of images: shuffled, sharded, and continued exactly."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from imgsynth.data import ImageDataModule, ImageLoader, OrderedLoader, TensorSource
from imgsynth.types import Batch


def source(num_images: int) -> TensorSource:
    """Images whose label is their index."""
    images = torch.zeros(num_images, 1, 2, 2, dtype=torch.uint8)
    return TensorSource(images, torch.arange(num_images))


def take(loader: ImageLoader | OrderedLoader) -> list[list[int]]:
    return [batch["label"].tolist() for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


def test_an_epoch_holds_every_image_once_and_drops_what_fills_no_step() -> None:
    seen = flat(take(ImageLoader(source(50), 8)))
    assert len(seen) == 48 == len(set(seen))


def test_epochs_differ_and_the_seed_alone_decides_them() -> None:
    first, second = ImageLoader(source(20), 5, seed=3), ImageLoader(source(20), 5, seed=3)
    epochs = [take(first), take(first)]
    assert epochs == [take(second), take(second)]
    assert epochs[0] != epochs[1]
    assert take(ImageLoader(source(20), 5, seed=4)) != epochs[0]


def test_the_image_comes_with_its_own_label() -> None:
    images = torch.arange(30, dtype=torch.uint8)[:, None, None, None].expand(30, 3, 4, 4)
    batch = next(iter(ImageLoader(TensorSource(images.contiguous(), torch.arange(30)), 6)))
    assert batch["image"].shape == (6, 3, 4, 4)
    assert batch["image"].dtype == torch.uint8
    assert torch.equal(batch["image"][:, 1, 2, 3].long(), batch["label"])


def test_16_bit_images_keep_all_their_values() -> None:
    values = torch.tensor([0, 1, 32767, 32768, 65535], dtype=torch.int32).to(torch.uint16)
    batch = next(iter(OrderedLoader(TensorSource(values.view(5, 1, 1, 1)), 5)))
    assert batch["image"].flatten().tolist() == [0, 1, 32767, 32768, 65535]
    assert "label" not in batch


def test_ranks_share_an_epoch_without_overlap_and_make_the_same_number_of_steps() -> None:
    ranks = [take(ImageLoader(source(50), 4, rank=r, world_size=3)) for r in range(3)]
    assert [len(r) for r in ranks] == [4, 4, 4]
    seen = [i for r in ranks for batch in r for i in batch]
    assert len(seen) == 48 == len(set(seen))


def test_the_joined_step_does_not_depend_on_how_it_is_split() -> None:
    whole = [sorted(b) for b in take(ImageLoader(source(50), 12))]
    ranks = [
        take(ImageLoader(source(50), 2, batches_per_step=2, rank=r, world_size=3)) for r in range(3)
    ]
    assert [sorted(a + b + c) for a, b, c in zip(*ranks, strict=True)] == whole


def test_workers_give_the_same_batches_and_leave_the_default_generator_alone() -> None:
    alone, helped = ImageLoader(source(23), 4, seed=1), ImageLoader(source(23), 4, num_workers=2)
    helped.load_state_dict(alone.state_dict())
    before = torch.get_rng_state()
    assert [take(alone) for _ in range(3)] == [take(helped) for _ in range(3)]
    assert torch.equal(before, torch.get_rng_state())
    helped.close()


def test_workers_survive_an_interrupt_from_the_terminal() -> None:
    loader = ImageLoader(source(400), 4, num_workers=1)
    batches = iter(loader)
    first = next(batches)
    for worker in loader._batches._workers:  # type: ignore[union-attr]
        os.kill(worker.pid, signal.SIGINT)
    rest = list(batches)
    loader.close()
    assert len({*first["label"].tolist(), *(i for b in rest for i in b["label"].tolist())}) == 400


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("handed_out", [0, 3, 4, 5, 9])
def test_a_loaded_state_continues_with_the_next_batch(handed_out: int, num_workers: int) -> None:
    def stream(loader: ImageLoader, count: int) -> list[list[int]]:
        batches: list[list[int]] = []
        while len(batches) < count:
            for batch in loader:
                batches.append(batch["label"].tolist())
                if len(batches) == count:
                    break
        return batches

    whole = stream(ImageLoader(source(22), 5, seed=7), 14)
    first = ImageLoader(source(22), 5, seed=7, num_workers=num_workers)
    head = stream(first, handed_out)
    state = first.state_dict()
    second = ImageLoader(source(22), 5, seed=99, num_workers=num_workers)
    second.load_state_dict(state)
    assert head + stream(second, 14 - handed_out) == whole
    assert second.seed == 7
    first.close()
    second.close()


def test_the_state_is_the_place_in_images_and_moves_on_with_the_last_batch() -> None:
    loader = ImageLoader(source(22), 5, seed=7)
    batches = iter(loader)
    next(batches)
    assert loader.state_dict() == {"seed": 7, "epoch": 0, "position": 5, "num_images": 22}
    for _ in range(3):
        next(batches)
    assert loader.state_dict() == {"seed": 7, "epoch": 1, "position": 0, "num_images": 22}


def test_a_state_moves_to_another_number_of_devices_with_the_same_step() -> None:
    one = ImageLoader(source(40), 8, seed=2)
    next(iter(one))
    two = [ImageLoader(source(40), 4, rank=r, world_size=2) for r in range(2)]
    for loader in two:
        loader.load_state_dict(one.state_dict())
    expected = next(iter(one))["label"].tolist()
    joined = [i for loader in two for i in next(iter(loader))["label"].tolist()]
    assert sorted(joined) == sorted(expected)


def test_a_state_too_near_the_end_for_a_larger_step_starts_the_next_epoch() -> None:
    loader = ImageLoader(source(20), 8)
    loader.load_state_dict({"seed": 0, "epoch": 4, "position": 15, "num_images": 20})
    assert loader.state_dict() == {"seed": 0, "epoch": 5, "position": 0, "num_images": 20}


def test_a_state_of_other_data_is_refused() -> None:
    state = ImageLoader(source(30), 5).state_dict()
    with pytest.raises(ValueError, match=r"30 images, this one has 20.*resume with the same data"):
        ImageLoader(source(20), 5).load_state_dict(state)


def test_a_step_larger_than_the_data_names_the_numbers_and_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"needs 1,200 images \(batch_size 200 x 2 .* 3 devices"):
        ImageLoader(source(1000), 200, batches_per_step=2, world_size=3)
    with pytest.raises(ValueError, match="has 1,000; lower batch_size to 166 or less"):
        ImageLoader(source(1000), 200, batches_per_step=2, world_size=3)
    with pytest.raises(ValueError, match="use fewer of them"):
        ImageLoader(source(3), 1, batches_per_step=2, world_size=2)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_each_image_exactly_once_in_order(world_size: int) -> None:
    ranks = [
        flat(take(OrderedLoader(source(11), 4, rank=r, world_size=world_size)))
        for r in range(world_size)
    ]
    assert sorted(i for rank in ranks for i in rank) == list(range(11))
    assert all(rank == sorted(rank) for rank in ranks)
    assert len(OrderedLoader(source(11), 4)) == 3


# --- with Lightning's Trainer -----------------------------------------------------------------


class Indexed(ImageDataModule):
    """22 images whose label is their index: 4 steps of 5 an epoch."""

    splits = ("train",)

    def load_split(self, split: str) -> tuple[Tensor, Tensor]:
        images = torch.zeros(22, 1, 2, 2, dtype=torch.uint8)
        return images, torch.arange(22)


class Listening(LightningModule):
    """Writes down the labels it is given."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seed = seed
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: Batch) -> None:
        optimizer: Any = self.optimizers()
        self.manual_backward((self.weight * batch["image"].mean()).sum())
        optimizer.step()
        optimizer.zero_grad()
        self.seen.append(batch["label"].tolist())


class SaveAt(Callback):
    """Saves after a step, or at the end of the epoch it ends."""

    def __init__(self, path: Path, step: int, at_epoch_end: bool) -> None:
        self.path, self.step, self.at_epoch_end = path, step, at_epoch_end

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step and not self.at_epoch_end:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step and self.at_epoch_end:
            trainer.save_checkpoint(self.path)


def fit(
    steps: int, *, resume: Path | None = None, workers: int = 0, **settings: Any
) -> list[list[int]]:
    by_steps: dict[str, Any] = {"max_steps": steps, "max_epochs": -1}
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **(by_steps | settings),
    )
    method = Listening(seed=5 if resume is None else 6)
    data = Indexed(batch_size=5, num_workers=workers)
    trainer.fit(method, data, ckpt_path=resume, weights_only=True)
    return method.seen


@pytest.fixture(scope="module")
def uninterrupted() -> list[list[int]]:
    return fit(14)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("length", ["steps", "epochs"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("step", "at_epoch_end"), [(2, False), (4, False), (4, True), (7, False), (8, False), (8, True)]
)
def test_a_resumed_fit_sees_the_images_the_uninterrupted_one_would_have(
    uninterrupted: list[list[int]],
    tmp_path: Path,
    step: int,
    at_epoch_end: bool,
    workers: int,
    length: str,
) -> None:
    path = tmp_path / "last.ckpt"
    save = SaveAt(path, step, at_epoch_end)
    head = fit(step, workers=workers, callbacks=[save])
    settings = {"max_epochs": 4, "max_steps": -1} if length == "epochs" else {}
    tail = fit(14, resume=path, workers=workers, **settings)
    assert head == uninterrupted[:step]
    assert tail[: 14 - step] == uninterrupted[step:]
    assert len(tail) == (14 if length == "steps" else 16) - step


def test_the_uninterrupted_run_draws_a_new_order_every_epoch(
    uninterrupted: list[list[int]],
) -> None:
    epochs = [uninterrupted[i : i + 4] for i in (0, 4, 8)]
    assert all(len({i for batch in e for i in batch}) == 20 for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("step", [2, 3, 5])
def test_an_epoch_cut_short_by_the_trainer_is_continued_exactly(
    uninterrupted: list[list[int]], tmp_path: Path, step: int
) -> None:
    path = tmp_path / "last.ckpt"
    assert fit(14, limit_train_batches=3) == uninterrupted
    fit(step, limit_train_batches=3, callbacks=[SaveAt(path, step, False)])
    assert fit(14, resume=path, limit_train_batches=3) == uninterrupted[step:]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_evaluating_a_checkpoint_does_not_move_a_later_fit(
    uninterrupted: list[list[int]], tmp_path: Path
) -> None:
    data = Indexed(batch_size=5)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.load_state_dict({"train": {"seed": 5, "epoch": 2, "position": 5, "num_images": 22}})
    data.trainer = None
    assert data.train_dataloader().epoch == 0
