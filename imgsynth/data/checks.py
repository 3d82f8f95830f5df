"""What a split must be like, and what is said when it is not."""

import warnings

import torch
from torch import Tensor

from imgsynth.data.source import TensorSource

DTYPES = (torch.uint8, torch.uint16)
"""Images are stored as whole numbers: 8 or 16 bits a channel."""


def check_images(images: Tensor, where: str) -> None:
    """Refuse what is no tensor of images."""
    if not isinstance(images, Tensor):
        raise ValueError(
            f"{where}: expected load_split to return tensors, got {type(images).__name__}; "
            "convert arrays with torch.from_numpy."
        )
    if images.ndim != 4:
        raise ValueError(
            f"{where}: expected images of shape (N, C, H, W), got {tuple(images.shape)}."
        )
    if images.numel() == 0:
        raise ValueError(f"{where}: there are no images (shape {tuple(images.shape)}).")
    if images.dtype not in DTYPES:
        raise ValueError(
            f"{where}: expected images of dtype uint8 (0 to 255) or uint16 (0 to 65,535), got "
            f"{images.dtype}; convert floats x in [0, 1] with (x * 255).round().astype('uint8') "
            "(tensors: .to(torch.uint8)), those in [-1, 1] with imgsynth.images.to_uint8(x)."
        )


def check_labels(labels: Tensor, num_images: int, where: str) -> None:
    """Refuse what is not one whole number an image."""
    if labels.ndim != 1 or len(labels) != num_images:
        raise ValueError(
            f"{where}: expected one label per image, shape ({num_images},), got "
            f"{tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"{where}: expected labels that are whole numbers (dtype int64), got {labels.dtype}."
        )


def check_alike(split: TensorSource, train: TensorSource, where: str) -> None:
    """Refuse a split that differs in kind from the one to train on."""
    shape, expected = tuple(split.images.shape[1:]), tuple(train.images.shape[1:])
    if shape != expected:
        raise ValueError(
            f"{where}: images of shape {shape}, but those to train on have {expected}; bring both "
            "to one shape."
        )
    if split.images.dtype != train.images.dtype:
        raise ValueError(
            f"{where}: images of dtype {split.images.dtype}, but those to train on have "
            f"{train.images.dtype}; bring both to one."
        )
    if (split.labels is None) != (train.labels is None):
        raise ValueError(
            f"{where}: {'no labels' if split.labels is None else 'labels'}, unlike the training "
            "split; pass labels for all splits or for none."
        )


def count_classes(labels: Tensor | None, names: tuple[str, ...], where: str) -> int:
    """Return the number of classes; warn of empty ones."""
    if labels is None:
        if names:
            raise ValueError(f"{where}: {len(names)} class names but no labels; pass labels too.")
        return 0
    if names:
        return len(names)
    counts = torch.bincount(labels.clamp(min=0))
    if not counts.all():
        empty = ", ".join(str(label) for label in (counts == 0).nonzero().flatten().tolist()[:5])
        warnings.warn(
            f"{where}: no image has the label {empty}; labels should count from 0 without gaps, "
            "as a conditional generator learns nothing about an empty class.",
            stacklevel=4,
        )
    return len(counts)


def check_label_range(labels: Tensor | None, num_classes: int, named: bool, where: str) -> None:
    """Refuse labels that are no class."""
    if labels is None:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        classes = f"{num_classes} class names" if named else f"{num_classes} classes to train on"
        raise ValueError(
            f"{where}: labels from {low} to {high}, expected 0 to {num_classes - 1} "
            f"({classes}); labels count from 0."
        )
