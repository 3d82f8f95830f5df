import pytest
import torch

from imgsynth.data import Arrays, ImageDataModule
from imgsynth.testing import ContractError, check_datamodule


class Good(ImageDataModule):
    def load_split(self, split):
        labels = torch.arange(40) % 4
        images = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0))
        return images.to(torch.uint8), labels


class WrongCount(Good):
    def num_images(self, split="train"):
        return super().num_images(split) + 1


class WrongRange(Good):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "image": batch["image"].float()}


class WrongSubset(Good):
    def subset(self, indices):
        return super().subset(sorted(int(i) for i in indices))


class OtherOrder(Good):
    seeds = 0

    def _run_seed(self):
        OtherOrder.seeds += 1
        return self.seeds


def test_our_datamodules_keep_the_contract(digits):
    check_datamodule(digits)
    check_datamodule(Good(batch_size=8))
    check_datamodule(Arrays(torch.zeros(20, 8, 8, dtype=torch.uint8), batch_size=4))


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (WrongCount, "yields 40 images of 41"),
        (WrongRange, "must be float in"),
        (WrongSubset, "holds other images"),
        (OtherOrder, "deliver other batches"),
    ],
)
def test_a_broken_datamodule_is_rejected_with_the_reason(cls, says):
    with pytest.raises(ContractError, match=says):
        check_datamodule(cls(batch_size=8))
