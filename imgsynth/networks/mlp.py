"""Dense networks: the setting of the first GAN."""

from math import prod

from torch import Tensor, nn

from imgsynth.describe import Described
from imgsynth.networks.blocks import (
    ConditionalLatent,
    ProjectionHead,
    check_images,
    known_classes,
    known_shape,
    spectrally_normalised,
)


class MLPGenerator(Described, nn.Module):
    """Dense layers with leaky ReLU from a latent to an image, tanh at the end.

    Args:
        image_shape: ``(channels, height, width)`` of the images made.
        num_classes: Classes to choose from, given by a learnt embedding next to z; None or 0
            makes an unconditional generator.
        latent_dim: Length of z.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        class_dim: Length of the class embedding.

    Raises:
        ValueError: If ``image_shape`` is missing or not three positive numbers.

    Source:
        Goodfellow et al. 2014, "Generative Adversarial Nets", section 5 (there with ReLU, a
        sigmoid output and images in [0, 1]).

    Example:
        >>> MLPGenerator((1, 8, 8), latent_dim=16)(torch.randn(5, 16)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        latent_dim: int = 100,
        width: int = 256,
        depth: int = 3,
        class_dim: int = 32,
    ) -> None:
        super().__init__()
        self.image_shape = known_shape(image_shape, "MLPGenerator")
        self.num_classes = known_classes(num_classes, "MLPGenerator")
        self.latent_dim = latent_dim
        self.latent = ConditionalLatent(latent_dim, self.num_classes, class_dim)
        layers: list[nn.Module] = []
        features = self.latent.out_features
        for _ in range(depth):
            layers += [nn.Linear(features, width), nn.LeakyReLU(0.2, inplace=True)]
            features = width
        layers += [nn.Linear(features, prod(self.image_shape)), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

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
        images: Tensor = self.layers(self.latent(z, labels))
        return images.view(-1, *self.image_shape)


class MLPDiscriminator(Described, nn.Module):
    """Dense layers with leaky ReLU from an image to a logit.

    Args:
        image_shape: ``(channels, height, width)`` of the images judged.
        num_classes: Classes, judged by projection; None or 0 makes an unconditional one.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        dropout: Probability that a hidden unit is dropped in training.
        spectral_norm: Normalise every layer spectrally.

    Raises:
        ValueError: If ``image_shape`` is missing or not three positive numbers.

    Source:
        Goodfellow et al. 2014, "Generative Adversarial Nets", section 5 (there with maxout);
        Miyato & Koyama 2018, "cGANs with Projection Discriminator", eq. 3.

    Example:
        >>> MLPDiscriminator((1, 8, 8))(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        width: int = 256,
        depth: int = 3,
        dropout: float = 0.0,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        self.image_shape = known_shape(image_shape, "MLPDiscriminator")
        self.num_classes = known_classes(num_classes, "MLPDiscriminator")
        layers: list[nn.Module] = [nn.Flatten()]
        features = prod(self.image_shape)
        for _ in range(depth):
            layers.append(spectrally_normalised(nn.Linear(features, width), spectral_norm))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            features = width
        self.layers = nn.Sequential(*layers)
        self.head = ProjectionHead(features, self.num_classes, spectral_norm)

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
        check_images(images, self.image_shape, "MLPDiscriminator")
        logits: Tensor = self.head(self.layers(images), labels)
        return logits
