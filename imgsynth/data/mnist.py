"""MNIST and Fashion-MNIST, as torchvision stores them."""

from pathlib import Path
from typing import Any

from imgsynth.data.base import ImageDataModule, Split, resize


class MNIST(ImageDataModule):
    """60,000 training and 10,000 test images of handwritten digits, 28x28 pixels, gray.

    Args:
        root: The folder that holds ``MNIST/raw``.
        download: Fetch missing files.
        size: Resize the images to ``size x size`` pixels (bilinear). None keeps 28x28.
        kwargs: What every :class:`~imgsynth.data.base.ImageDataModule` takes.

    Source:
        LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition".
    """

    names = tuple("0123456789")

    stored_as = "MNIST"
    """torchvision's name of the data set, and the folder in ``root``."""

    def __init__(
        self,
        root: str | Path = "data",
        download: bool = False,
        size: int | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.download = download
        self.size = size

    @property
    def _folder(self) -> Path:
        return self.root / self.stored_as / "raw"

    def _read(self, train: bool, download: bool) -> Split:
        from torchvision import datasets

        kind = getattr(datasets, self.stored_as)
        stored = kind(str(self.root), train=train, download=download)
        return stored.data[:, None], stored.targets

    def prepare_data(self) -> None:
        """Download the files if that was asked for and they are missing.

        Raises:
            ValueError: If the download fails.
        """
        if not self.download:
            return
        try:
            self._read(train=True, download=True)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{type(self).__name__} could not be downloaded to {self._folder}: {error}"
            ) from error

    def load_split(self, split: str) -> Split:
        """Read one split from ``root``.

        Raises:
            FileNotFoundError: If the files are not there.
            ValueError: If they cannot be read.
        """
        try:
            images, labels = self._read(train=split == "train", download=False)
        except RuntimeError as error:
            if "not found" not in str(error):
                raise self._unreadable(error) from error
            raise FileNotFoundError(
                f"No {self.stored_as} files in {self._folder} ({self._folder.resolve()}); "
                "fetch them with --data.download true, or name the folder that holds "
                f"{self.stored_as}/raw with --data.root."
            ) from error
        except (AssertionError, TypeError, ValueError, OSError) as error:
            raise self._unreadable(error) from error
        return resize(images, self.size), labels

    def _unreadable(self, error: Exception) -> ValueError:
        return ValueError(
            f"The {self.stored_as} files in {self._folder} cannot be read ({error!r}); delete "
            "them and fetch them again with --data.download true."
        )


class FashionMNIST(MNIST):
    """60,000 training and 10,000 test images of clothes, 28x28 pixels, gray, ten classes.

    Args:
        root: The folder that holds ``FashionMNIST/raw``.
        download: Fetch missing files.
        size: Resize the images to ``size x size`` pixels (bilinear). None keeps 28x28.
        kwargs: What every :class:`~imgsynth.data.base.ImageDataModule` takes.

    Source:
        Xiao et al. 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
        Algorithms".
    """

    stored_as = "FashionMNIST"

    names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
