"""Scores of restored images against the one right answer, in the protocols that papers use."""

import math
from abc import abstractmethod
from typing import Any, Literal

import torch
from kornia.metrics import ssim
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

_DTYPES = {255: torch.uint8, 65535: torch.uint16}
_LUMA = (0.299, 0.587, 0.114)
_WINDOW = 11


class PairMetric(Metric):
    """Base of scores of (restored, target): one number per image, and the mean over images.

    A subclass writes :meth:`score` and :attr:`protocol`. The mean does not depend, to the last
    digit, on how images are spread over ranks, and a rank may have none. An image that a sampler
    repeats to fill a rank counts twice: give each image to one rank only.

    Args:
        kwargs: Passed to ``torchmetrics.Metric``.

    Attributes:
        image_dtype: The only type of images taken.
        smallest: Pixels that an image must have each way.
    """

    is_differentiable = False
    full_state_update = False

    image_dtype: torch.dtype = torch.uint8
    smallest: int = 1
    values: list[Tensor]

    def __init__(
        self,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        self.add_state("values", [], dist_reduce_fx="cat")

    @abstractmethod
    def score(self, restored: Tensor, target: Tensor) -> Tensor:
        """Return the score of each image, float64 ``(N,)``; the images were checked."""

    @property
    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """All that changes the score, as plain data."""

    def update(self, restored: Tensor, target: Tensor) -> None:
        """Add images; those on another device than the metric's are moved.

        Args:
            restored: uint8 ``(N, C, H, W)`` (uint16 where the metric says so), what is judged.
            target: The right answers, of the same type and shape.

        Raises:
            ValueError: If the images do not fit the metric or each other.
        """
        self._check(restored, target)
        self.values.append(self.score(restored.to(self.device), target.to(self.device)))

    def compute(self) -> Tensor:
        """Return the mean over all images of all ranks, a float64 scalar.

        Raises:
            ValueError: If there were no images.
        """
        values = self.per_image
        if not len(values):
            raise ValueError(f"{type(self).__name__} has seen no images; call update() first.")
        # fsum rounds once, so the order of the images does not matter
        mean = math.fsum(values.tolist()) / len(values)
        return torch.tensor(mean, dtype=torch.float64, device=self.device)

    @property
    def per_image(self) -> Tensor:
        """float64 ``(num,)``, in the order in which this rank was given the images.

        Within ``metric.sync_context()`` it holds all ranks' images, rank after rank.
        """
        if not len(self.values):
            return torch.zeros(0, dtype=torch.float64, device=self.device)
        return dim_zero_cat(self.values)

    def sync(
        self,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Gather the values of all ranks; called by :meth:`compute`."""
        # torchmetrics would send float32 from a rank without images, float64 from the others
        self.values = [self.per_image]
        super().sync(*args, **kwargs)

    def _check(self, restored: Tensor, target: Tensor) -> None:
        name = type(self).__name__
        for what, images in (("restored", restored), ("target", target)):
            if not isinstance(images, Tensor) or images.ndim != 4 or not images.numel():
                got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
                raise ValueError(
                    f"{name} takes at least one image as (N, C, H, W), got {what}: {got}."
                )
            if images.dtype != self.image_dtype:
                raise ValueError(f"{name}: {what} {self._wrong_type(images.dtype)}")
        if restored.shape != target.shape:
            raise ValueError(
                f"{name} compares images of one shape, got restored {tuple(restored.shape)} and "
                f"target {tuple(target.shape)}."
            )
        self._check_size(*target.shape[2:])

    def _wrong_type(self, dtype: torch.dtype) -> str:
        if dtype.is_floating_point:
            return (
                f"is {dtype}, but scores take whole numbers, as files hold them; "
                "imgsynth.images.to_uint8 clamps and rounds images in [-1, 1]."
            )
        return f"is {dtype}, but must be {self.image_dtype}."

    def _check_size(self, height: int, width: int) -> None:
        if min(height, width) < self.smallest:
            raise ValueError(
                f"{type(self).__name__} needs images of at least {self.smallest} x {self.smallest} "
                f"pixels, got {height} x {width}."
            )


def _luma(images: Tensor, option: str) -> Tensor:
    """ITU-R BT.601's weights, so that white stays white; a gray image is its own."""
    channels = images.shape[1]
    if channels == 1:
        return images
    if channels != 3:
        raise ValueError(f"{option} is defined for RGB and gray images, got {channels} channels.")
    return (images * images.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)


class _PixelMetric(PairMetric):
    """What :class:`PSNR` and :class:`SSIM` share: from whole numbers to the pixels compared."""

    def __init__(
        self,
        channels: Literal["rgb", "y"] = "rgb",
        crop_border: int = 0,
        data_range: int = 255,
        gt_mean: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        name = type(self).__name__
        if channels not in {"rgb", "y"}:
            raise ValueError(f"{name}: channels must be 'rgb' or 'y', got {channels!r}.")
        if crop_border < 0:
            raise ValueError(f"{name}: crop_border must be at least 0, got {crop_border}.")
        if data_range not in _DTYPES:
            raise ValueError(
                f"{name}: data_range must be 255 (uint8) or 65535 (uint16), got {data_range}."
            )
        self.channels = channels
        self.crop_border = crop_border
        self.data_range = data_range
        self.gt_mean = gt_mean
        self.image_dtype = _DTYPES[data_range]

    @property
    def protocol(self) -> dict[str, Any]:
        """All that changes the score, as plain data."""
        return {
            "metric": type(self).__name__.lower(),
            "channels": self.channels,
            "crop_border": self.crop_border,
            "data_range": self.data_range,
            "gt_mean": self.gt_mean,
            "mean_over": "images",
        }

    def score(self, restored: Tensor, target: Tensor) -> Tensor:
        """Return the score of each image, float64 ``(N,)``; the images were checked."""
        restored, target = restored.double(), target.double()
        if self.gt_mean:
            restored = self._as_bright(restored, target)
        return self.compare(self._pixels(restored), self._pixels(target))

    @abstractmethod
    def compare(self, restored: Tensor, target: Tensor) -> Tensor:
        """Return float64 ``(N,)`` from float64 images in [0, data_range]."""

    def _pixels(self, images: Tensor) -> Tensor:
        border = self.crop_border
        images = images[..., border : images.shape[-2] - border, border : images.shape[-1] - border]
        if self.channels == "rgb" or images.shape[1] == 1:
            return images
        # from 16 to 235; kornia's and Pillow's full range reads 1.32 dB lower than papers
        return (219 * _luma(images, "channels='y'") + 16 * self.data_range) / 255

    def _as_bright(self, restored: Tensor, target: Tensor) -> Tensor:
        light, aim = (_luma(images, "gt_mean").mean((1, 2, 3)) for images in (restored, target))
        gain = torch.where(light > 0, aim / light, 1.0)  # nothing makes a black image brighter
        return (restored * gain.view(-1, 1, 1, 1)).clamp(max=self.data_range)

    def _wrong_type(self, dtype: torch.dtype) -> str:
        for data_range, known in _DTYPES.items():
            if dtype == known:
                return (
                    f"is {dtype}, but data_range={self.data_range} was declared; "
                    f"{type(self).__name__}(data_range={data_range}) takes {dtype}."
                )
        return super()._wrong_type(dtype)

    def _check_size(self, height: int, width: int) -> None:
        if min(height, width) - 2 * self.crop_border < self.smallest:
            raise ValueError(
                f"{type(self).__name__} needs at least {self.smallest} pixels each way inside "
                f"crop_border={self.crop_border}, got images of {height} x {width}."
            )


class PSNR(_PixelMetric):
    """Peak signal-to-noise ratio in dB, of each image, then the mean over images.

    The mean of the images' values, as papers report it, not the value of the mean error (what
    pools the errors of a batch reads lower). Two equal images score infinity, and then
    the mean is infinite too: :attr:`per_image` says which.

    Args:
        channels: ``rgb``: the mean error over all channels, whatever their number. ``y``: the
            error of Y of ITU-R BT.601 in its studio range 16 to 235, not rounded, with the peak
            still ``data_range``; so super-resolution is reported. A gray image is compared as it
            is with both. (A gray image stored as RGB is not: ``y`` reads 1.32 dB higher.)
        crop_border: Pixels left out on each side; papers on super-resolution leave out the factor.
        data_range: 255 for uint8 images, 65535 for uint16.
        gt_mean: First multiply each restored image by one number, so that its luma has the
            target's mean, then clip. Some papers on low light do so (KinD, LLFlow), others do
            not; it lends the answer's brightness, so a score with it compares with no other.
        kwargs: Passed to ``torchmetrics.Metric``.

    Raises:
        ValueError: If an argument is out of range; from ``update``, if the images do not fit.

    Source:
        ITU-R BT.601 (Y); MATLAB's ``rgb2ycbcr`` of floats has the same weights. Gain: Zhang et al.
        2019, "Kindling the Darkness: A Practical Low-light Image Enhancer", its evaluation.

    Example:
        >>> psnr = PSNR()
        >>> target = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        >>> psnr.update(target + 1, target)
        >>> psnr.update(target + 16, target)
        >>> round(psnr.compute().item(), 4)
        36.0896
        >>> psnr.per_image.round(decimals=2).tolist()
        [48.13, 48.13, 24.05, 24.05]
    """

    higher_is_better = True

    def compare(self, restored: Tensor, target: Tensor) -> Tensor:
        """Return float64 ``(N,)`` from float64 images in [0, data_range]."""
        # torchmetrics takes the logarithm of the range in float32
        return 10 * torch.log10(self.data_range**2 / (restored - target).square().mean((1, 2, 3)))


class SSIM(_PixelMetric):
    """Structural similarity, at most 1, of each image, then the mean over images.

    A Gaussian window of 11 x 11 pixels with a standard deviation of 1.5, only where it lies within
    the image, K1 = 0.01, K2 = 0.03, variances with N: the authors' program. Each channel's mean
    counts the same. (Libraries that pad the border differ in the third decimal.)

    Args:
        channels: ``rgb`` or ``y``, as of :class:`PSNR`.
        crop_border: Pixels left out on each side, before windows are placed.
        data_range: 255 for uint8 images, 65535 for uint16.
        gt_mean: As of :class:`PSNR`.
        kwargs: Passed to ``torchmetrics.Metric``.

    Raises:
        ValueError: If an argument is out of range; from ``update``, if the images do not fit, or
            have fewer than 11 pixels each way.

    Source:
        Wang et al. 2004, "Image quality assessment: from error visibility to structural
        similarity", eq. 13 to 17.

    Example:
        >>> ssim = SSIM(channels="y", crop_border=2)
        >>> target = torch.arange(768, dtype=torch.uint8).view(1, 3, 16, 16)
        >>> ssim.update(255 - target, target)
        >>> round(ssim.compute().item(), 4)
        -0.866
    """

    higher_is_better = True
    smallest = _WINDOW

    @property
    def protocol(self) -> dict[str, Any]:
        """All that changes the score, as plain data."""
        return super().protocol | {"window": "gaussian 11, sigma 1.5, inside the image"}

    def compare(self, restored: Tensor, target: Tensor) -> Tensor:
        """Return float64 ``(N,)`` from float64 images in [0, data_range]."""
        # one by one: float64 maps of a whole batch of photographs do not fit into memory
        maps = (
            ssim(one, other, _WINDOW, float(self.data_range), eps=0.0, padding="valid")
            for one, other in zip(restored[:, None], target[:, None], strict=True)
        )
        return torch.stack([each.mean() for each in maps])
