"""Encoders and decoders of variational autoencoders whose latent is a vector.

An encoder turns images into the mean and the log variance of a latent; a decoder turns a latent
into one number a pixel, whose meaning (logit, mean...) is the likelihood's business. No batch
statistics anywhere: what an image is encoded as depends on the image alone.

The log variance is not bounded. It starts near 0, its exponential overflows beyond 88 only (mixed
precision computes ``exp`` in float32), and the KL divergence grows with that exponential; a bound
would rather hide that something else diverges.
"""

from itertools import pairwise
from math import gcd, prod

import torch.nn.functional as F
from torch import Tensor, nn

from imgsynth.describe import Described
from imgsynth.networks.blocks import (
    ConditionalLatent,
    check_images,
    doublings,
    known_classes,
    known_shape,
)


class _Encoder(Described, nn.Module):
    """Layers from an image to features, then one linear map for the mean and the log variance."""

    def __init__(
        self, image_shape: tuple[int, int, int] | None, num_classes: int | None, latent_dim: int
    ) -> None:
        super().__init__()
        self.image_shape = known_shape(image_shape, type(self).__name__)
        self.num_classes = known_classes(num_classes, type(self).__name__)
        self.latent_dim = latent_dim

    def _set(self, layers: list[nn.Module], features: int, class_dim: int) -> None:
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.condition = ConditionalLatent(features, self.num_classes, class_dim)
        self.heads = nn.Linear(self.condition.out_features, 2 * self.latent_dim)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            images: ``(B, *image_shape)`` in [-1, 1].
            labels: ``(B,)`` int64, exactly if the encoder is conditional.

        Returns:
            Mean and log variance (natural logarithm), each ``(B, latent_dim)``.

        Raises:
            ValueError: If shapes or labels do not fit, see
                :class:`~imgsynth.networks.blocks.ConditionalLatent`.
        """
        check_images(images, self.image_shape, type(self).__name__)
        features: Tensor = self.condition(self.layers(images), labels)
        mu, logvar = self.heads(features).chunk(2, 1)
        return mu, logvar


class _Decoder(Described, nn.Module):
    """A latent, with its class, then layers up to the image's shape."""

    layers: nn.Sequential

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None,
        num_classes: int | None,
        latent_dim: int,
        class_dim: int,
    ) -> None:
        super().__init__()
        self.image_shape = known_shape(image_shape, type(self).__name__)
        self.num_classes = known_classes(num_classes, type(self).__name__)
        self.latent_dim = latent_dim
        self.latent = ConditionalLatent(latent_dim, self.num_classes, class_dim)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decode latents.

        Args:
            z: ``(B, latent_dim)``.
            labels: ``(B,)`` int64, exactly if the decoder is conditional.

        Returns:
            ``(B, *image_shape)``, any real numbers, for a likelihood to interpret.

        Raises:
            ValueError: If shapes or labels do not fit, see
                :class:`~imgsynth.networks.blocks.ConditionalLatent`.
        """
        outputs: Tensor = self.layers(self.latent(z, labels))
        return outputs


class MLPEncoder(_Encoder):
    """Dense layers with ReLU from an image to a latent's mean and log variance.

    With the defaults, the encoder of pythae's VAE where it is given none, for images in [-1, 1]
    where pythae's are in [0, 1]: first weights ``W`` and biases ``b`` of pythae's compute the same
    here as ``W / 2`` and ``b + W.sum(1) / 2``; the heads are its two last layers on top of each
    other, the mean first. Weights start as PyTorch starts them, as there.

    Args:
        image_shape: ``(channels, height, width)`` of the images. Every pixel costs ``width``
            weights: 0.4 M in all at 28x28, 100 M at 3x256x256.
        num_classes: Classes, given by a learnt embedding next to the features; None or 0 makes an
            unconditional encoder.
        latent_dim: Length of the latent.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        class_dim: Length of the class embedding.

    Raises:
        ValueError: If ``image_shape`` is missing or not three positive numbers.

    Source:
        Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix C.2 (there with tanh);
        Chadebec et al. 2022, "Pythae: Unifying Generative Autoencoders in Python" (the defaults).

    Example:
        >>> mu, logvar = MLPEncoder((1, 8, 8), latent_dim=16)(torch.zeros(5, 1, 8, 8))
        >>> mu.shape, logvar.shape
        (torch.Size([5, 16]), torch.Size([5, 16]))
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        latent_dim: int = 32,
        width: int = 512,
        depth: int = 1,
        class_dim: int = 32,
    ) -> None:
        super().__init__(image_shape, num_classes, latent_dim)
        layers: list[nn.Module] = [nn.Flatten()]
        features = prod(self.image_shape)
        for _ in range(depth):
            layers += [nn.Linear(features, width), nn.ReLU(inplace=True)]
            features = width
        self._set(layers, features, class_dim)


class MLPDecoder(_Decoder):
    """Dense layers with ReLU from a latent to one number a pixel.

    With the defaults, the decoder of pythae's VAE where it is given none, without its last
    sigmoid, which belongs to the likelihood.

    Args:
        image_shape: ``(channels, height, width)`` of the images.
        num_classes: Classes, given by a learnt embedding next to z; None or 0 makes an
            unconditional decoder.
        latent_dim: Length of z.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        class_dim: Length of the class embedding.

    Raises:
        ValueError: If ``image_shape`` is missing or not three positive numbers.

    Source:
        Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix C.1 (there with tanh);
        Chadebec et al. 2022, "Pythae: Unifying Generative Autoencoders in Python" (the defaults).

    Example:
        >>> MLPDecoder((1, 8, 8), latent_dim=16)(torch.randn(5, 16)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        latent_dim: int = 32,
        width: int = 512,
        depth: int = 1,
        class_dim: int = 32,
    ) -> None:
        super().__init__(image_shape, num_classes, latent_dim, class_dim)
        layers: list[nn.Module] = []
        features = self.latent.out_features
        for _ in range(depth):
            layers += [nn.Linear(features, width), nn.ReLU(inplace=True)]
            features = width
        layers.append(nn.Linear(features, prod(self.image_shape)))
        self.layers = nn.Sequential(*layers, nn.Unflatten(1, self.image_shape))


def _norm(channels: int) -> nn.GroupNorm:
    """Normalise at most 8 groups of channels, of at least 4 each: one alone would lose its mean."""
    return nn.GroupNorm(gcd(8, channels, max(1, channels // 4)), channels)


class _UpConv(nn.Conv2d):
    """Doubling by nearest neighbours and a 3x3 convolution, in one transposed convolution.

    A pixel of the large map sees 2x2 pixels of the small one, so that the two steps are one
    transposed convolution with stride 2, whose 4x4 kernel holds sums of the nine weights: the
    same result for 4/9 of the multiplications and without the large map between. Unlike with 16
    free weights, no pixel of a 2x2 block is favoured: no checkerboard.

    Source:
        Odena et al. 2016, "Deconvolution and Checkerboard Artifacts"; Karras et al. 2018,
        "Progressive Growing of GANs" (the two steps in one, in its code).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3)

    def forward(self, maps: Tensor) -> Tensor:
        """Return ``(B, out_channels, 2H, 2W)`` of ``(B, in_channels, H, W)``."""
        weight = self.weight.flip(2, 3)  # as a transposed convolution uses it
        rows = F.pad(weight, (0, 0, 1, 0)) + F.pad(weight, (0, 0, 0, 1))
        kernel = F.pad(rows, (1, 0)) + F.pad(rows, (0, 1))
        return F.conv_transpose2d(maps, kernel.transpose(0, 1), self.bias, stride=2, padding=1)


class ConvEncoder(_Encoder):
    """Strided convolutions that halve an image down to a small map; mean and log variance of it.

    Leaky ReLU after each. Nothing is normalised unless told: normalisation hides from the layers
    after it how rich in contrast an image is, which the latent has to tell.

    Args:
        image_shape: ``(channels, height, width)`` of the images; sizes as in
            :class:`~imgsynth.networks.dcgan.DCGANGenerator`: 8, 16, 28, 32, 48, 64, 96, 128, 256,
            and 64x96.
        num_classes: Classes, given by a learnt embedding next to the features; None or 0 makes an
            unconditional encoder.
        latent_dim: Length of the latent.
        width: Channels of the first map. Each smaller map has twice as many.
        max_width: Most channels of a map.
        start: Short side of the smallest map: with 4, sizes that are powers of two end at 4x4.
        full_size_map: Begin with a 3x3 convolution at the image's size, as small images need.
        group_norm: Normalise every hidden map but the first over groups of channels, for networks
            that do not train without.
        class_dim: Length of the class embedding.

    Raises:
        ValueError: If ``image_shape`` is missing or of a size that halving cannot reduce.

    Source:
        Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional
        Generative Adversarial Networks", section 3 (the convolutions); Wu & He 2018, "Group
        Normalization" (if told).

    Example:
        >>> encoder = ConvEncoder((3, 128, 128), latent_dim=64)
        >>> mu, logvar = encoder(torch.zeros(2, 3, 128, 128))
        >>> mu.shape, f"{sum(p.numel() for p in encoder.parameters()):,} parameters"
        (torch.Size([2, 64]), '3,836,512 parameters')
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        latent_dim: int = 32,
        width: int = 32,
        max_width: int = 512,
        start: int = 4,
        full_size_map: bool = False,
        group_norm: bool = False,
        class_dim: int = 32,
    ) -> None:
        super().__init__(image_shape, num_classes, latent_dim)
        num_halvings = doublings(self.image_shape, start, type(self).__name__)
        widths = _widths(width, max_width, num_halvings + full_size_map)
        layers: list[nn.Module] = []
        previous = self.image_shape[0]
        for n, num in enumerate(widths):
            kernel, stride = (3, 1) if full_size_map and n == 0 else (4, 2)
            layers.append(nn.Conv2d(previous, num, kernel, stride, 1))
            if group_norm and n:
                layers.append(_norm(num))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            previous = num
        self._set(layers, prod(_small_map(self.image_shape, widths[-1], num_halvings)), class_dim)


class ConvDecoder(_Decoder):
    """A latent, projected to a small map that convolutions double up to the image.

    Leaky ReLU after each; doubling is by nearest neighbours before a 3x3 convolution, which leaves
    no checkerboard. Nothing is normalised unless told, see :class:`ConvEncoder`.

    Args:
        image_shape: ``(channels, height, width)`` of the images; sizes as in
            :class:`ConvEncoder`.
        num_classes: Classes, given by a learnt embedding next to z; None or 0 makes an
            unconditional decoder.
        latent_dim: Length of z.
        width: Channels of the last hidden map. Each smaller map has twice as many.
        max_width: Most channels of a map.
        start: Short side of the smallest map, see :class:`ConvEncoder`.
        full_size_map: Let the last hidden map have the image's size, before one more 3x3
            convolution; without, it has half the size.
        group_norm: Normalise every hidden map but the first over groups of channels.
        class_dim: Length of the class embedding.

    Raises:
        ValueError: If ``image_shape`` is missing or of a size that doubling cannot reach.

    Source:
        Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional
        Generative Adversarial Networks", section 3 (the maps); Odena et al. 2016, "Deconvolution
        and Checkerboard Artifacts" (doubling).

    Example:
        >>> decoder = ConvDecoder((3, 128, 128), latent_dim=64)
        >>> outputs = decoder(torch.randn(2, 64))
        >>> outputs.shape, f"{sum(p.numel() for p in decoder.parameters()):,} parameters"
        (torch.Size([2, 3, 128, 128]), '2,100,547 parameters')
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        latent_dim: int = 32,
        width: int = 32,
        max_width: int = 512,
        start: int = 4,
        full_size_map: bool = False,
        group_norm: bool = False,
        class_dim: int = 32,
    ) -> None:
        super().__init__(image_shape, num_classes, latent_dim, class_dim)
        num_doublings = doublings(self.image_shape, start, type(self).__name__)
        widths = _widths(width, max_width, num_doublings + full_size_map)[::-1]
        shape = _small_map(self.image_shape, widths[0], num_doublings)
        layers: list[nn.Module] = [
            nn.Linear(self.latent.out_features, prod(shape)),
            nn.Unflatten(1, shape),
        ]
        for n, num in enumerate(widths):
            if n:
                layers.append(_UpConv(widths[n - 1], num))
            if group_norm and n:
                layers.append(_norm(num))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        channels = self.image_shape[0]
        if full_size_map:
            layers.append(nn.Conv2d(widths[-1], channels, 3, 1, 1))
        else:
            layers.append(_UpConv(widths[-1], channels))
        self.layers = nn.Sequential(*layers)


def _widths(width: int, max_width: int, num_maps: int) -> list[int]:
    """Return the channels of the maps, the largest map first."""
    return [min(width * 2**n, max_width) for n in range(num_maps)]


def _small_map(
    image_shape: tuple[int, int, int], channels: int, num_halvings: int
) -> tuple[int, int, int]:
    _, height, width = image_shape
    return channels, height // 2**num_halvings, width // 2**num_halvings


class _Residual(nn.Module):
    """A residual block with pre-activation: twice normalisation, SiLU and a convolution.

    Args:
        first: Its first convolution, which may change size and channels.
        skip: What its input passes on the way around, to the same shape.
    """

    def __init__(self, first: nn.Conv2d, skip: nn.Module) -> None:
        super().__init__()
        channels = first.out_channels
        self.skip = skip
        self.branch = nn.Sequential(
            _norm(first.in_channels),
            nn.SiLU(inplace=True),
            first,
            _norm(channels),
            nn.SiLU(inplace=True),
            nn.Conv2d(channels, channels, 3, 1, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return the sum of both ways."""
        result: Tensor = self.skip(maps) + self.branch(maps)
        return result


def _same(channels: int, num: int) -> list[nn.Module]:
    """Make ``num`` blocks that keep the map's shape."""
    return [_Residual(nn.Conv2d(channels, channels, 3, 1, 1), nn.Identity()) for _ in range(num)]


def _halving(channels: int, wider: int) -> _Residual:
    skip = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, wider, 1))
    return _Residual(nn.Conv2d(channels, wider, 4, 2, 1), skip)


def _doubling(channels: int, narrower: int) -> _Residual:
    skip = nn.Sequential(nn.Conv2d(channels, narrower, 1), nn.Upsample(scale_factor=2))
    return _Residual(_UpConv(channels, narrower), skip)


class ResNetEncoder(_Encoder):
    """Residual blocks with pre-activation that halve an image down to a small map.

    A 3x3 convolution at the image's size; then, for each size, a block that halves the map and
    others that keep it, with group normalisation and SiLU; mean and log variance of the last map.

    Args:
        image_shape: ``(channels, height, width)`` of the images; sizes as in
            :class:`ConvEncoder`.
        num_classes: Classes, given by a learnt embedding next to the features; None or 0 makes an
            unconditional encoder.
        latent_dim: Length of the latent.
        width: Channels of the map of the image's size. Each smaller map has twice as many.
        max_width: Most channels of a map.
        num_blocks: Blocks a size, the halving one included.
        start: Short side of the smallest map: with 4, sizes that are powers of two end at 4x4.
        class_dim: Length of the class embedding.

    Raises:
        ValueError: If ``image_shape`` is missing or of a size that halving cannot reduce.

    Source:
        He et al. 2016, "Identity Mappings in Deep Residual Networks", figure 1b (there with batch
        normalisation and ReLU); Wu & He 2018, "Group Normalization"; He et al. 2019, "Bag of
        Tricks for Image Classification", figure 2c (the mean over 2x2 pixels on the way around).

    Example:
        >>> encoder = ResNetEncoder((3, 64, 64), latent_dim=64)
        >>> mu, logvar = encoder(torch.zeros(2, 3, 64, 64))
        >>> mu.shape, f"{sum(p.numel() for p in encoder.parameters()):,} parameters"
        (torch.Size([2, 64]), '3,739,520 parameters')
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        latent_dim: int = 32,
        width: int = 32,
        max_width: int = 256,
        num_blocks: int = 1,
        start: int = 4,
        class_dim: int = 32,
    ) -> None:
        super().__init__(image_shape, num_classes, latent_dim)
        num_halvings = doublings(self.image_shape, start, type(self).__name__)
        widths = _widths(width, max_width, num_halvings + 1)
        layers: list[nn.Module] = [nn.Conv2d(self.image_shape[0], widths[0], 3, 1, 1)]
        for larger, smaller in pairwise(widths):
            layers += [_halving(larger, smaller), *_same(smaller, num_blocks - 1)]
        layers += [_norm(widths[-1]), nn.SiLU(inplace=True)]
        self._set(layers, prod(_small_map(self.image_shape, widths[-1], num_halvings)), class_dim)


class ResNetDecoder(_Decoder):
    """A latent, projected to a small map that residual blocks double up to the image.

    For each size a block that doubles the map and others that keep it, with group normalisation
    and SiLU; a 3x3 convolution at the image's size. Doubling is by nearest neighbours, which
    leaves no checkerboard.

    Args:
        image_shape: ``(channels, height, width)`` of the images; sizes as in
            :class:`ConvEncoder`.
        num_classes: Classes, given by a learnt embedding next to z; None or 0 makes an
            unconditional decoder.
        latent_dim: Length of z.
        width: Channels of the map of the image's size. Each smaller map has twice as many.
        max_width: Most channels of a map.
        num_blocks: Blocks a size, the doubling one included.
        start: Short side of the smallest map, see :class:`ResNetEncoder`.
        class_dim: Length of the class embedding.

    Raises:
        ValueError: If ``image_shape`` is missing or of a size that doubling cannot reach.

    Source:
        He et al. 2016, "Identity Mappings in Deep Residual Networks", figure 1b (there with batch
        normalisation and ReLU); Odena et al. 2016, "Deconvolution and Checkerboard Artifacts".

    Example:
        >>> decoder = ResNetDecoder((3, 64, 64), latent_dim=64)
        >>> outputs = decoder(torch.randn(2, 64))
        >>> outputs.shape, f"{sum(p.numel() for p in decoder.parameters()):,} parameters"
        (torch.Size([2, 3, 64, 64]), '2,139,779 parameters')
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        latent_dim: int = 32,
        width: int = 32,
        max_width: int = 256,
        num_blocks: int = 1,
        start: int = 4,
        class_dim: int = 32,
    ) -> None:
        super().__init__(image_shape, num_classes, latent_dim, class_dim)
        num_doublings = doublings(self.image_shape, start, type(self).__name__)
        widths = _widths(width, max_width, num_doublings + 1)[::-1]
        shape = _small_map(self.image_shape, widths[0], num_doublings)
        layers: list[nn.Module] = [
            nn.Linear(self.latent.out_features, prod(shape)),
            nn.Unflatten(1, shape),
        ]
        for smaller, larger in pairwise(widths):
            layers += [_doubling(smaller, larger), *_same(larger, num_blocks - 1)]
        last = nn.Conv2d(widths[-1], self.image_shape[0], 3, 1, 1)
        self.layers = nn.Sequential(*layers, _norm(widths[-1]), nn.SiLU(inplace=True), last)
