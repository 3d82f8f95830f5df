"""Checks of datamodules."""

from typing import cast

from torch import Tensor

from imgsynth.data.base import ImageDataModule
from imgsynth.testing.contract import first_difference, require


def check_datamodule(data: ImageDataModule) -> None:
    """Check a datamodule.

    Args:
        data: It is set up if it is not yet. Its batch size must be below its number of images.

    Raises:
        ContractError: At the first thing that is wrong. Checked are: counts, classes and
            fingerprints agree with the images; training batches are dicts that become float
            in [-1, 1]; the order is the seed's, other in each epoch, and continues from the
            middle of one; a subset holds the images asked for.

    Example:
        >>> from imgsynth.data import Digits
        >>> check_datamodule(Digits())
    """
    data.prepare_data()
    data.setup()
    name = type(data).__name__
    require("train" in data.splits, f"{name}.splits must hold 'train', got {data.splits}.")
    for split in data.splits:
        _check_split(data, split)
    if data.num_classes:
        require(
            len(data.class_names) == data.num_classes,
            f"{name} names {len(data.class_names)} classes of {data.num_classes}.",
        )
        require(
            sum(data.class_counts) == data.num_images("train"),
            f"{name}.class_counts add up to {sum(data.class_counts)}, but there are "
            f"{data.num_images('train')} training images.",
        )
    _check_order(data)
    last = data.num_images("train") - 1
    part = data.subset([last, 0])
    hashes = data.fingerprint("train")
    require(
        part.fingerprint("train").tolist() == hashes[[last, 0]].tolist(),
        f"{name}.subset([{last}, 0]) holds other images.",
    )


def _check_split(data: ImageDataModule, split: str) -> None:
    name = f"{type(data).__name__}, split {split!r}"
    count = 0
    for images, labels in data.reference(split):
        count += len(images)
        require(
            tuple(images.shape[1:]) == tuple(data.image_shape),
            f"{name}: images of shape {tuple(images.shape[1:])}, stated is {data.image_shape}.",
        )
        if data.num_classes:
            require(
                labels is not None, f"{name}: no labels, stated are {data.num_classes} classes."
            )
            low, high = int(cast(Tensor, labels).min()), int(cast(Tensor, labels).max())
            require(
                low >= 0 and high < data.num_classes,
                f"{name}: labels from {low} to {high}, stated are {data.num_classes} classes.",
            )
    require(
        count == data.num_images(split),
        f"{name}: reference() yields {count} images of {data.num_images(split)}.",
    )
    require(
        len(data.fingerprint(split)) == count,
        f"{name}: fingerprint() has {len(data.fingerprint(split))} hashes for {count} images.",
    )


def _check_order(data: ImageDataModule) -> None:
    name = type(data).__name__
    batches = list(data.train_dataloader())
    require(len(batches) > 0, f"{name} has no whole batch of {data.batch_size}.")
    seen = data.on_after_batch_transfer(dict(batches[0]), 0)
    images = seen["image"]
    require(
        images.is_floating_point() and bool(images.min() >= -1) and bool(images.max() <= 1),
        f"{name}: on the device images must be float in [-1, 1], got {images.dtype} from "
        f"{images.min().item():.2f} to {images.max().item():.2f}.",
    )
    again = list(data.train_dataloader())
    require(
        first_difference(batches, again) is None,
        f"{name}: two loaders with the same seed deliver other batches.",
    )
    loader = data.train_dataloader()
    iterator = iter(loader)
    half = (len(batches) + 1) // 2
    for _ in range(half):
        next(iterator)
    resumed = data.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    rest = list(iterator)
    require(
        first_difference(rest, list(resumed)[: len(rest)]) is None,
        f"{name}: continued in the middle of an epoch, the loader delivers other batches.",
    )
