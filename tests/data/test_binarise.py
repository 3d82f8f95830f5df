"""Binary images drawn from gray ones."""

import torch
from lightning.pytorch import LightningModule, Trainer

from imgsynth.data import ImageDataModule


class Gray(ImageDataModule):
    """Images of one gray value each, from black to white."""

    def load_split(self, split):
        levels = torch.arange(256, dtype=torch.uint8).repeat_interleave(2)
        return levels.view(-1, 1, 1, 1).expand(-1, 1, 32, 32).contiguous(), None


def test_binary_images_are_white_as_often_as_they_were_bright():
    data = Gray(binarise=True)
    images = torch.cat([images for images, _ in data.reference("test")])
    assert images.unique().tolist() == [0, 255]
    share = images.float().mean((1, 2, 3)).view(256, 2).mean(1) / 255
    expected = torch.arange(256) / 255
    assert (share - expected).abs().max() < 5 * 0.5 / 2048**0.5
    assert share[0] == 0
    assert share[-1] == 1


def test_held_out_binary_images_are_drawn_once_with_a_seed_that_no_run_decides():
    first, second = (
        torch.cat([i for i, _ in Gray(binarise=True, seed=s, batch_size=b).reference("test")])
        for s, b in ((1, 64), (2, 100))
    )
    assert torch.equal(first, second)
    plain = Gray()
    assert Gray(binarise=True).fingerprint_of("test") != plain.fingerprint_of("test")
    assert Gray(binarise=True).fingerprint_of("train") == plain.fingerprint_of("train")


def test_binary_training_images_are_drawn_anew_for_each_batch_and_again_when_resumed():
    def seen(steps, **options):
        watch = Watch()
        torch.manual_seed(0)
        trainer = Trainer(
            accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(watch, Gray(batch_size=256, seed=3, binarise=True), **options)
        return watch.images

    whole = seen(4)
    assert all(set(images.unique().tolist()) == {-1.0, 1.0} for images in whole)
    again = seen(4)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    # the third and fourth batch are the second epoch: the same images, drawn anew
    assert not torch.equal(torch.cat(whole[:2]).mean((1, 2, 3)).sort().values,
                           torch.cat(whole[2:]).mean((1, 2, 3)).sort().values)  # fmt: skip


class Watch(LightningModule):
    """Keeps what a step is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.images = []

    def training_step(self, batch, batch_idx):
        self.images.append(batch["image"].clone())
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
