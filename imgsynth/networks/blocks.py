"""What the families share: checks of shapes and labels, class conditions, normalised layers."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Layer = TypeVar("Layer", bound=nn.Module)


def known_shape(image_shape: tuple[int, int, int] | None, owner: str) -> tuple[int, int, int]:
    """Return ``image_shape`` as a tuple of ints.

    Args:
        image_shape: ``(channels, height, width)``, or None where nobody has filled it in.
        owner: The network's name, for the error.

    Raises:
        ValueError: If it is None or not three positive whole numbers.

    Example:
        >>> known_shape((1, 8, 8), "MLPGenerator")
        (1, 8, 8)
    """
    if image_shape is None:
        raise ValueError(
            f"{owner} needs the size of its images; pass image_shape=(channels, height, width), "
            "for example image_shape=data.image_shape."
        )
    shape = tuple(image_shape)
    if len(shape) != 3 or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(
            f"{owner}: image_shape must be three positive whole numbers (channels, height, "
            f"width) such as (3, 64, 64), got {image_shape!r}."
        )
    return shape[0], shape[1], shape[2]


def known_classes(num_classes: int | None, owner: str) -> int:
    """Return ``num_classes``, where None and 0 mean "unconditional".

    Raises:
        ValueError: If it is negative.

    Example:
        >>> known_classes(None, "MLPGenerator")
        0
    """
    if num_classes is not None and num_classes < 0:
        raise ValueError(
            f"{owner}: num_classes must be 0 (unconditional) or positive, got {num_classes}."
        )
    return num_classes or 0


def check_images(images: Tensor, image_shape: tuple[int, int, int], owner: str) -> None:
    """Check that ``images`` are ``(B, *image_shape)``.

    Raises:
        ValueError: If they are not.
    """
    if images.ndim != 4 or images.shape[1:] != image_shape:
        raise ValueError(
            f"{owner} was built for images of shape (B, {', '.join(map(str, image_shape))}), got "
            f"{tuple(images.shape)}; build it with image_shape=data.image_shape."
        )


def doublings(image_shape: tuple[int, int, int], start: int, owner: str) -> int:
    """Count the doublings from a map whose short side is ``start`` to ``2 * start - 1`` pixels.

    Args:
        image_shape: ``(channels, height, width)`` that they lead to.
        start: Fewest pixels of the map's short side.
        owner: The network's name, for the error.

    Raises:
        ValueError: If there is none, or a side is no whole number of pixels at the start.

    Example:
        >>> doublings((1, 28, 28), 4, "DCGANGenerator")  # 7, 14, 28
        2
    """
    height, width = image_shape[1:]
    num = (min(height, width) // start).bit_length() - 1 if start > 0 else 0
    if num < 1 or height % 2**num or width % 2**num:
        raise ValueError(
            f"{owner} cannot serve {height}x{width} pixels by doubling from, or halving to, a map "
            f"of {start} to {2 * start - 1} pixels: both sides must be a whole number of such "
            "pixels times the same power of two, for example 8, 16, 28, 32, 48, 64, 96 or 128; "
            "resize or pad the images."
        )
    return num


def spectrally_normalised(layer: Layer, enabled: bool = True) -> Layer:
    """Divide a layer's weight by its largest singular value, if ``enabled``.

    One power iteration at each forward pass in training mode, none in evaluation.

    Source:
        Miyato et al. 2018, "Spectral Normalization for GANs", algorithm 1.
    """
    if enabled:
        parametrizations.spectral_norm(layer)
    return layer


def _embed(embedding: nn.Embedding, labels: Tensor | None, num: int) -> Tensor:
    """Look up ``(B, D)`` after checks that never wait for the GPU."""
    if labels is None:
        raise ValueError(
            f"This network is conditional on {embedding.num_embeddings} classes and needs labels; "
            "pass labels, or build it with num_classes=0."
        )
    if labels.dtype != torch.int64 or labels.shape != (num,):
        raise ValueError(
            f"labels: expected int64 of shape ({num},), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    try:
        embedded: Tensor = embedding(labels)
    except IndexError as error:  # on the CPU; a GPU stops with an assertion of its own
        low, high = labels.aminmax()
        raise ValueError(
            f"labels: expected 0 to {embedding.num_embeddings - 1}, got {low} to {high}; build "
            "the network with num_classes=data.num_classes."
        ) from error
    return embedded


def _refuse_labels(labels: Tensor | None) -> None:
    if labels is not None:
        raise ValueError(
            "This network is unconditional but was given labels; leave them out, or build it "
            "with num_classes=data.num_classes."
        )


class ConditionalLatent(nn.Module):
    """Latents, with a learnt embedding of the class appended if there are classes.

    Args:
        latent_dim: Length of z.
        num_classes: Number of classes; 0 passes z through.
        class_dim: Length of the embedding.
    """

    embedding: nn.Embedding | None

    def __init__(self, latent_dim: int, num_classes: int, class_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.embedding = nn.Embedding(num_classes, class_dim) if num_classes else None
        self.out_features = latent_dim + (class_dim if num_classes else 0)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return ``(B, out_features)``.

        Args:
            z: ``(B, latent_dim)``.
            labels: ``(B,)`` int64, exactly if there are classes.

        Raises:
            ValueError: If ``z`` has another shape, or labels are missing, unwanted, of another
                shape or type, or (on the CPU) out of range.
        """
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(
                f"latents: expected shape (B, {self.latent_dim}), got {tuple(z.shape)}."
            )
        if self.embedding is None:
            _refuse_labels(labels)
            return z
        return torch.cat([z, _embed(self.embedding, labels, len(z)).to(z.dtype)], 1)


class ProjectionHead(nn.Module):
    """One logit an image: a linear map, plus the features projected on the class's embedding.

    Args:
        in_features: Length of the features.
        num_classes: Number of classes; 0 leaves the linear map alone.
        spectral_norm: Normalise both maps.

    Source:
        Miyato & Koyama 2018, "cGANs with Projection Discriminator", eq. 3 and figure 1d.
    """

    embedding: nn.Embedding | None

    def __init__(self, in_features: int, num_classes: int, spectral_norm: bool = False) -> None:
        super().__init__()
        self.linear = spectrally_normalised(nn.Linear(in_features, 1), spectral_norm)
        self.embedding = None
        if num_classes:
            embedding = nn.Embedding(num_classes, in_features)
            nn.init.normal_(embedding.weight, std=in_features**-0.5)
            self.embedding = spectrally_normalised(embedding, spectral_norm)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits ``(B,)``.

        Args:
            features: ``(B, in_features)``.
            labels: ``(B,)`` int64, exactly if there are classes.

        Raises:
            ValueError: If labels are missing, unwanted, of another shape or type, or (on the CPU)
                out of range.
        """
        logits: Tensor = self.linear(features).squeeze(1)
        if self.embedding is None:
            _refuse_labels(labels)
            return logits
        return logits + (_embed(self.embedding, labels, len(features)) * features).sum(1)
