"""What turns images into features: the base that scores rely on, and a user's own module as one."""

import copy
import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn

from imgsynth.describe import class_path
from imgsynth.images import from_uint8
from imgsynth.metrics.resize import RESIZES, check_resize

_BACKENDS: Any = torch.backends  # not all of it has annotations
_PRECISIONS = (
    _BACKENDS.cuda.matmul,
    _BACKENDS.cudnn.conv,
    _BACKENDS.cudnn.rnn,
    _BACKENDS.mkldnn.matmul,
    _BACKENDS.mkldnn.conv,
    _BACKENDS.mkldnn.rnn,
)


def check_uint8(images: Tensor, what: str = "images") -> None:
    """Check that images are whole numbers of 8 bits, as scores take them.

    Args:
        images: uint8 ``(N, C, H, W)``, at least one.
        what: What they are, for the error.

    Raises:
        ValueError: If they are not.

    Example:
        >>> check_uint8(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    """
    shape = "a uint8 tensor of shape (N, C, H, W)"
    if not isinstance(images, Tensor):
        raise ValueError(f"{what}: scores take {shape}, got {type(images).__name__}.")
    if images.is_floating_point():
        raise ValueError(
            f"{what}: scores take uint8, got {images.dtype}; imgsynth.images.to_uint8 clamps and "
            "rounds images in [-1, 1], where a plain cast would turn -1 into 1 and 1.004 into 0."
        )
    if images.dtype != torch.uint8:
        raise ValueError(f"{what}: scores take whole numbers of 8 bits, got {images.dtype}.")
    if images.ndim != 4:
        raise ValueError(f"{what}: scores take {shape}, got {tuple(images.shape)}.")
    if not images.numel():
        raise ValueError(f"{what}: expected at least one image, got {tuple(images.shape)}.")


def hash_of(module: nn.Module | Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that change with any weight.

    Names, types, shapes and bytes of all parameters and buffers count; the device and the order
    in memory do not.

    Args:
        module: The module, or named tensors such as a ``state_dict``.

    Example:
        >>> hash_of({"weight": torch.zeros(2)}) == hash_of({"weight": torch.zeros(3)})
        False
    """
    if isinstance(module, nn.Module):
        module = dict(chain(module.named_parameters(), module.named_buffers()))
    sha = hashlib.sha256()
    for name, tensor in sorted(module.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(plain.view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute in plain float32, whatever the caller has allowed: no autocast, no TF32, no bf16."""
    before = [place.fp32_precision for place in _PRECISIONS]
    try:
        for place in _PRECISIONS:
            place.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for place, value in zip(_PRECISIONS, before, strict=True):
            place.fp32_precision = value


class Extractor(nn.Module):
    """Base of what turns images into features.

    A subclass sets the attributes below, writes :meth:`extract` and :meth:`preprocessing`, and
    ends its constructor with ``self.freeze()``. Its weights never learn, its layers stay in
    evaluation mode, and it computes in plain float32 also within autocast or where TF32 is
    allowed, so that a score does not depend on who asks for it.

    Attributes:
        name: What scores call it: ``inception-2015``.
        num_features: Length d of the features.
        num_logits: Classes k it tells apart; 0 if it has none.
        channels: Channels it takes; None for any. Gray images are repeated.
        genuine: Whether it is the very network that FID is defined by.
    """

    name: str = ""
    num_features: int = 0
    num_logits: int = 0
    channels: int | None = 3
    genuine: bool = False
    _hashed: tuple[tuple[tuple[int, int], ...], str] | None = None

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn uint8 ``(N, C, H, W)`` on the extractor's device into features and logits."""
        raise TypeError(f"{type(self).__name__} must define extract(images).")

    def preprocessing(self) -> dict[str, Any]:
        """Return what is done to images before the network sees them, as plain data."""
        return {}

    def weights_hash(self) -> str:
        """Return 16 hexadecimal digits that change with any weight."""
        return hash_of(self)

    def identity(self) -> dict[str, Any]:
        """Return everything of the extractor that changes a score, as plain data."""
        tensors = list(chain(self.parameters(), self.buffers()))
        # hashing is slow; tensors made in inference mode count no changes
        counts = [-1 if t.is_inference() else t._version for t in tensors]
        stamp = tuple(zip((t.data_ptr() for t in tensors), counts, strict=True))
        if self._hashed is None or self._hashed[0] != stamp:
            self._hashed = (stamp, self.weights_hash())
        return {
            "name": self.name or class_path(type(self)),
            "weights": self._hashed[1],
            "num_features": self.num_features,
            **self.preprocessing(),
        }

    def probe(self, shape: tuple[int, int, int]) -> str:
        """Return a hash of the features of two images of noise.

        It changes with anything that changes features, also where :meth:`identity` cannot see it,
        and with the machine's rounding: for caches, not for protocols.

        Args:
            shape: Channels, height and width of the images.
        """
        noise = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2, *shape), generator=noise).to(torch.uint8)
        features, logits = self(images)
        return hash_of({"features": features} | ({} if logits is None else {"logits": logits}))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensor = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def freeze(self) -> None:
        """End all learning: no gradients, evaluation mode."""
        super().train(False)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn images into features.

        Args:
            images: uint8 ``(N, C, H, W)``, on any device.

        Returns:
            float32 ``(N, d)``, and logits ``(N, k)`` or None, on the extractor's device.

        Raises:
            ValueError: If these are no such images, or a feature is NaN or infinite.
        """
        check_uint8(images)
        if self.training:
            self.freeze()
        images = self._coloured(images.to(self.device))
        with exact(self.device):
            features, logits = self.extract(images)
            features = features.to(torch.float32)
        num_bad = int((~features.isfinite().all(1)).sum())
        if num_bad:
            raise ValueError(
                f"{self.name}: the features of {num_bad} of {len(images)} images are NaN or "
                "infinite; no score can be computed from them. Check the network's weights."
            )
        return features, None if logits is None else logits.to(torch.float32)

    def _coloured(self, images: Tensor) -> Tensor:
        channels = images.shape[1]
        if self.channels is None or channels == self.channels:
            return images
        if channels == 1:
            return images.expand(-1, self.channels, -1, -1)
        raise ValueError(
            f"{self.name} takes images of {self.channels} channels, or gray ones, got {channels}; "
            "leave out the others, such as transparency."
        )


def _hash_of_layers(module: nn.Module) -> str:
    """Hash what a module does apart from its weights: layers, plain attributes, source."""
    text = []
    for name, layer in module.named_modules():
        plain = {
            key: getattr(value, "__qualname__", type(value)) if callable(value) else value
            for key, value in vars(layer).items()
            if not key.startswith("_") and key != "training" and not isinstance(value, Tensor)
        }
        try:
            source = inspect.getsource(type(layer))
        except (OSError, TypeError):  # typed into an interpreter
            source = ""
        text.append(f"{name} {type(layer)} {layer.extra_repr()} {sorted(plain.items(), key=str)}")
        text.append("" if type(layer).__module__.startswith("torch.") else source)
    # where an object lies in memory does not count
    stripped = re.sub(r" at 0x[0-9a-f]+", "", "\n".join(text))
    return hashlib.sha256(stripped.encode()).hexdigest()[:16]


class ModuleExtractor(Extractor):
    """Any module as an extractor: float images in, features out.

    The module is copied, so that a network still in training may be given. It sees float
    ``(N, C, H, W)`` in [-1, 1] and returns features ``(N, d)``, or maps ``(N, d, H', W')``, which
    are averaged over their places.

    Args:
        module: The network.
        size: Side in pixels that images are resized to; None leaves them as they are.
        resize: How; a name in :data:`~imgsynth.metrics.resize.RESIZES`.
        num_features: Length d of the features; found by trying if None, which needs ``size``.
        channels: Channels the module takes; gray images are repeated.
        name: What scores call it; the module's class if None.

    Raises:
        ValueError: If the module does not return such features, or ``num_features`` is needed.

    Example:
        >>> extractor = ModuleExtractor(nn.Conv2d(3, 5, 3), size=16)
        >>> features, _ = extractor(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
        >>> extractor.num_features, features.shape
        (5, torch.Size([2, 5]))
    """

    def __init__(
        self,
        module: nn.Module,
        size: int | None = None,
        resize: str = "torch-antialias",
        num_features: int | None = None,
        channels: int = 3,
        name: str | None = None,
    ) -> None:
        super().__init__()
        check_resize(resize)
        self.module = copy.deepcopy(module)
        self.size = size
        self.resize = resize
        self.channels = channels
        self.name = name or class_path(type(module))
        self._layers = _hash_of_layers(module)
        self.freeze()
        self.num_features = num_features or self._found()

    def _found(self) -> int:
        if self.size is None:
            raise ValueError(
                f"{self.name}: the number of its features can be found only for images of a known "
                "size; pass size=... to resize images, or num_features=... ."
            )
        tried = torch.zeros(2, self.channels or 3, self.size, self.size, dtype=torch.uint8)
        try:
            return self.extract(tried.to(self.device))[0].shape[1]
        except RuntimeError as error:
            raise ValueError(
                f"{self.name} cannot take images of shape {tuple(tried.shape)}: {error}."
            ) from error

    def extract(self, images: Tensor) -> tuple[Tensor, None]:
        """Resize, map to [-1, 1], run the module, average maps."""
        with torch.no_grad():
            features = self.module(self._prepared(images))
        if not isinstance(features, Tensor) or not features.is_floating_point():
            got = features.dtype if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"{self.name}: an extractor returns a float tensor, got {got}.")
        if features.ndim == 4:
            features = features.mean((2, 3))
        num, wanted = len(images), self.num_features
        if features.ndim != 2 or len(features) != num or wanted not in {0, features.shape[1]}:
            raise ValueError(
                f"{self.name}: expected features of shape ({num}, {wanted or 'd'}) or maps "
                f"({num}, {wanted or 'd'}, H, W), got {tuple(features.shape)}."
            )
        return features, None

    def _prepared(self, images: Tensor) -> Tensor:
        if self.size is None:
            return from_uint8(images)
        return RESIZES[self.resize](images, self.size).sub_(127.5).div_(127.5)

    def preprocessing(self) -> dict[str, Any]:
        """Return size and resize, and a hash of the module's layers."""
        return {
            "layers": self._layers,
            "size": self.size,
            "resize": self.resize if self.size else None,
            "normalisation": "[-1, 1]",
        }
