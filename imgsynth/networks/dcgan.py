"""DCGAN: strided convolutions between a small map and an image, for 8 to 128 pixels and beyond."""

from torch import Tensor, nn

from imgsynth.describe import Described
from imgsynth.networks.blocks import (
    ConditionalLatent,
    ProjectionHead,
    check_images,
    doublings,
    known_classes,
    known_shape,
    spectrally_normalised,
)


def _initialise_as_in_the_paper(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)


class DCGANGenerator(Described, nn.Module):
    """A latent, projected to a small map that transposed convolutions double up to the image.

    Args:
        image_shape: ``(channels, height, width)`` of the images made. Sides are ``start`` to
            ``2 * start - 1`` pixels times the same power of two: 8, 16, 32, 64, 128, but also 28,
            48 or 96, and 64x96.
        num_classes: Classes to choose from, given by a learnt embedding next to z; None or 0
            makes an unconditional generator.
        latent_dim: Length of z.
        width: Channels of the last hidden map. Each smaller map has twice as many.
        max_width: Most channels of a map.
        start: Short side of the smallest map: with 4, sizes that are powers of two start from
            4x4.
        full_size_map: Let the last hidden map have the image's size, before a 3x3 convolution, as
            small images need; without, as in the paper, it has half the size.
        batch_norm: Normalise every hidden map over the batch.
        class_dim: Length of the class embedding.

    Raises:
        ValueError: If ``image_shape`` is missing or of a size that doubling cannot reach.

    Source:
        Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional
        Generative Adversarial Networks", section 3 and figure 1 (64 pixels, ``width=128``,
        ``max_width=1024``).

    Example:
        The classic setting at 128 pixels: latents of 100, a start of 4x4x512.

        >>> generator = DCGANGenerator((3, 128, 128), latent_dim=100, width=32)
        >>> generator(torch.randn(2, 100)).shape
        torch.Size([2, 3, 128, 128])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        latent_dim: int = 100,
        width: int = 64,
        max_width: int = 512,
        start: int = 4,
        full_size_map: bool = False,
        batch_norm: bool = True,
        class_dim: int = 32,
    ) -> None:
        super().__init__()
        self.image_shape = known_shape(image_shape, "DCGANGenerator")
        self.num_classes = known_classes(num_classes, "DCGANGenerator")
        self.latent_dim = latent_dim
        num_doublings = doublings(self.image_shape, start, "DCGANGenerator")
        channels, *size = self.image_shape
        num_maps = num_doublings + full_size_map
        widths = [min(width * 2**n, max_width) for n in reversed(range(num_maps))]
        self._map_shape = (widths[0], *(side // 2**num_doublings for side in size))

        self.latent = ConditionalLatent(latent_dim, self.num_classes, class_dim)
        features = widths[0] * self._map_shape[1] * self._map_shape[2]
        self.project = nn.Linear(self.latent.out_features, features, bias=not batch_norm)
        layers: list[nn.Module] = []
        for n, num in enumerate(widths):
            if n:
                layers.append(nn.ConvTranspose2d(widths[n - 1], num, 4, 2, 1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(num))
            layers.append(nn.ReLU(inplace=True))
        if full_size_map:
            layers.append(nn.Conv2d(widths[-1], channels, 3, 1, 1))
        else:
            layers.append(nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1))
        self.layers = nn.Sequential(*layers, nn.Tanh())
        if batch_norm:
            _initialise_as_in_the_paper(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Make images.

        Args:
            z: ``(B, latent_dim)``, standard normal.
            labels: ``(B,)`` int64, exactly if the generator is conditional.

        Returns:
            ``(B, *image_shape)`` in [-1, 1].

        Raises:
            ValueError: If shapes or labels do not fit, see
                :class:`~imgsynth.networks.blocks.ConditionalLatent`.
        """
        start: Tensor = self.project(self.latent(z, labels))
        images: Tensor = self.layers(start.view(-1, *self._map_shape))
        return images


class DCGANDiscriminator(Described, nn.Module):
    """Strided convolutions that halve an image down to a small map, judged by a linear layer.

    Args:
        image_shape: ``(channels, height, width)`` of the images judged; sizes as in
            :class:`DCGANGenerator`.
        num_classes: Classes, judged by projection; None or 0 makes an unconditional one.
        width: Channels of the first hidden map. Each smaller map has twice as many.
        max_width: Most channels of a map.
        start: Short side of the smallest map, see :class:`DCGANGenerator`.
        full_size_map: Begin with a 3x3 convolution at the image's size, as small images need.
        batch_norm: Normalise every hidden map but the first over the batch. Switch it off with
            spectral normalisation and with gradient penalties (WGAN-GP, R1).
        spectral_norm: Normalise every layer spectrally.
        dropout: Probability that a unit of a hidden map is dropped in training.

    Raises:
        ValueError: If ``image_shape`` is missing or of a size that halving cannot reduce.

    Source:
        Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional
        Generative Adversarial Networks", section 3; Miyato et al. 2018, "Spectral Normalization
        for GANs"; Miyato & Koyama 2018, "cGANs with Projection Discriminator", eq. 3.

    Example:
        >>> DCGANDiscriminator((3, 64, 64), width=8)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        width: int = 64,
        max_width: int = 512,
        start: int = 4,
        full_size_map: bool = False,
        batch_norm: bool = True,
        spectral_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.image_shape = known_shape(image_shape, "DCGANDiscriminator")
        self.num_classes = known_classes(num_classes, "DCGANDiscriminator")
        num_halvings = doublings(self.image_shape, start, "DCGANDiscriminator")
        widths = [min(width * 2**n, max_width) for n in range(num_halvings + full_size_map)]
        layers: list[nn.Module] = []
        previous = self.image_shape[0]
        for n, num in enumerate(widths):
            norm = batch_norm and n > 0
            kernel, stride = (3, 1) if full_size_map and n == 0 else (4, 2)
            conv = nn.Conv2d(previous, num, kernel, stride, 1, bias=not norm)
            layers.append(spectrally_normalised(conv, spectral_norm))
            if norm:
                layers.append(nn.BatchNorm2d(num))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            previous = num
        self.layers = nn.Sequential(*layers, nn.Flatten())
        height, width_ = (side // 2**num_halvings for side in self.image_shape[1:])
        self.head = ProjectionHead(previous * height * width_, self.num_classes, spectral_norm)
        if batch_norm and not spectral_norm:
            _initialise_as_in_the_paper(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Judge images.

        Args:
            images: ``(B, *image_shape)`` in [-1, 1].
            labels: ``(B,)`` int64, exactly if the discriminator is conditional.

        Returns:
            Logits ``(B,)``, high for real.

        Raises:
            ValueError: If shapes or labels do not fit, see
                :class:`~imgsynth.networks.blocks.ProjectionHead`.
        """
        check_images(images, self.image_shape, "DCGANDiscriminator")
        logits: Tensor = self.head(self.layers(images), labels)
        return logits
