"""Classifiers, whose penultimate activations serve as features for scores."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from imgsynth.describe import Described
from imgsynth.networks.blocks import check_images, known_classes, known_shape


class SmallCNN(Described, nn.Module):
    """3x3 convolutions with batch normalisation and SiLU, for images of 8 to 64 pixels.

    One at the image's size, two after each halving of the map, which doubles its channels. The
    features are the means over the last map, of 4 to 7 pixels; SiLU is smooth and nowhere flat,
    so none of them is dead.

    Args:
        image_shape: ``(channels, height, width)`` of the images; sides of at least 8 pixels.
        num_classes: Classes to tell apart.
        width: Channels of the first map.
        num_features: Channels of the last two maps.

    Raises:
        ValueError: If ``image_shape`` is missing or too small, or there are fewer than 2 classes.

    Source:
        Simonyan & Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image
        Recognition" (stacks of 3x3); Ioffe & Szegedy 2015, "Batch Normalization"; Elfwing et al.
        2018, "Sigmoid-Weighted Linear Units" (SiLU).

    Example:
        >>> network = SmallCNN((1, 8, 8), num_classes=10, width=16)
        >>> network(torch.zeros(5, 1, 8, 8)).shape, network.features(torch.zeros(5, 1, 8, 8)).shape
        (torch.Size([5, 10]), torch.Size([5, 64]))
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        width: int = 16,
        num_features: int = 64,
    ) -> None:
        super().__init__()
        self.image_shape = _shape(image_shape, 8, "SmallCNN")
        self.num_classes = _classes(num_classes, "SmallCNN")
        self.num_features = num_features
        channels, *sides = self.image_shape
        layers: list[nn.Module] = [_convolution(channels, width)]
        side, channels = min(sides), width
        while side >= 8:
            side = -(-side // 2)
            wider = 2 * channels if side >= 8 else num_features
            # Odd sides: the pixels at the rim count, without padding.
            layers.append(nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False))
            layers += [_convolution(channels, wider), _convolution(wider, wider)]
            channels = wider
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(num_features, self.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Return what the last layer sees: ``(B, num_features)``.

        Args:
            images: ``(B, *image_shape)`` in [-1, 1].

        Raises:
            ValueError: If the images have another shape.
        """
        check_images(images, self.image_shape, "SmallCNN")
        maps: Tensor = self.layers(images)
        return maps.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)`` of images ``(B, *image_shape)`` in [-1, 1]."""
        logits: Tensor = self.head(self.features(images))
        return logits


class ResNet18(Described, nn.Module):
    """The residual network of 18 layers.

    Args:
        image_shape: ``(channels, height, width)`` of the images; sides of at least 8 pixels, or
            32 with the large stem.
        num_classes: Classes to tell apart.
        width: Channels of the first map; the features are 8 times as many.
        small_stem: Begin with one 3x3 convolution at the image's size, instead of a 7x7 one and
            max-pooling that leave a quarter of it. None does so if a side has 64 pixels or less.

    Raises:
        ValueError: If ``image_shape`` is missing or too small, or there are fewer than 2 classes.

    Source:
        He et al. 2016, "Deep Residual Learning for Image Recognition", table 1; section 4.2 for
        the small stem.

    Example:
        >>> ResNet18((3, 32, 32), num_classes=10, width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        width: int = 64,
        small_stem: bool | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = known_shape(image_shape, "ResNet18")
        small = min(self.image_shape[1:]) <= 64 if small_stem is None else small_stem
        self.image_shape = _shape(image_shape, 8 if small else 32, "ResNet18")
        self.num_classes = _classes(num_classes, "ResNet18")
        self.num_features = 8 * width
        kernel, stride = (3, 1) if small else (7, 2)
        layers: list[nn.Module] = [
            nn.Conv2d(self.image_shape[0], width, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        if not small:
            layers.append(nn.MaxPool2d(3, 2, 1))
        for stage in range(4):
            channels, before = width * 2**stage, width * 2 ** max(0, stage - 1)
            layers += [_residual(before, channels), _residual(channels, channels)]
        self.layers = nn.Sequential(*layers)
        for module in self.layers.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.head = nn.Linear(self.num_features, self.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Return what the last layer sees: ``(B, num_features)``.

        Args:
            images: ``(B, *image_shape)`` in [-1, 1].

        Raises:
            ValueError: If the images have another shape.
        """
        check_images(images, self.image_shape, "ResNet18")
        maps: Tensor = self.layers(images)
        return maps.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)`` of images ``(B, *image_shape)`` in [-1, 1]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _shape(
    image_shape: tuple[int, int, int] | None, smallest: int, owner: str
) -> tuple[int, int, int]:
    shape = known_shape(image_shape, owner)
    if min(shape[1:]) < smallest:
        raise ValueError(
            f"{owner} needs images of at least {smallest}x{smallest} pixels, got "
            f"{shape[1]}x{shape[2]}; resize them."
        )
    return shape


def _classes(num_classes: int | None, owner: str) -> int:
    num = known_classes(num_classes, owner)
    if num < 2:
        raise ValueError(
            f"{owner} tells at least 2 classes apart, got num_classes={num_classes}; pass "
            "num_classes=data.num_classes."
        )
    return num


def _convolution(before: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, channels, 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.SiLU(inplace=True),
    )


def _residual(before: int, channels: int) -> nn.Module:
    """Return a block that halves the map where it changes the channels."""
    shortcut = None
    if before != channels:
        shortcut = nn.Sequential(
            nn.Conv2d(before, channels, 1, 2, bias=False), nn.BatchNorm2d(channels)
        )
    block: nn.Module = BasicBlock(before, channels, 1 if shortcut is None else 2, shortcut)
    return block
