"""CIFAR-10 and CIFAR-100, as torchvision stores them."""

from pathlib import Path
from typing import Any

import torch

from imgsynth.data.base import ImageDataModule, Split, resize


class CIFAR10(ImageDataModule):
    """50,000 training and 10,000 test photographs of ten kinds of things, 32x32 pixels, colour.

    The files are pickles, which can run code when they are read. They are read only if they are
    the published ones, byte for byte (by their md5 sums).

    Args:
        root: The folder that holds ``cifar-10-batches-py``.
        download: Fetch missing or damaged files (163 MiB). The archive stays in ``root``; if it is
            there already, it is only unpacked.
        size: Resize the images to ``size x size`` pixels (bilinear). None keeps 32x32.
        kwargs: What every :class:`~imgsynth.data.base.ImageDataModule` takes.

    Source:
        Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """

    stored_as = "CIFAR10"
    """torchvision's name of the data set."""

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
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, as the data's own files list them: they are read for it."""
        self._split("train")
        return self.names

    @property
    def _kind(self) -> Any:  # noqa: ANN401
        from torchvision import datasets

        return getattr(datasets, self.stored_as)

    @property
    def _folder(self) -> Path:
        return self.root / str(self._kind.base_folder)

    def _published(self) -> dict[str, str]:
        """Return the md5 sum of each file, as torchvision knows it."""
        kind = self._kind
        return dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])])

    def _wrong_files(self) -> list[str]:
        from torchvision.datasets.utils import check_integrity

        folder, published = self._folder, self._published()
        return [name for name, md5 in published.items() if not check_integrity(folder / name, md5)]

    def prepare_data(self) -> None:
        """Download the files if that was asked for and some are missing or damaged.

        Raises:
            ValueError: If the download fails.
        """
        if not self.download or not self._wrong_files():
            return
        from torchvision.datasets import utils

        kind = self._kind
        try:
            utils.download_and_extract_archive(
                kind.url, str(self.root), filename=kind.filename, md5=kind.tgz_md5
            )
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{type(self).__name__} could not be downloaded to {self._folder}: {error}"
            ) from error

    def load_split(self, split: str) -> Split:
        """Read one split from ``root``.

        Raises:
            FileNotFoundError: If the files are not there.
            ValueError: If they are not the published ones.
        """
        # torchvision unpickles what it finds, and a pickle runs whatever code its author wants. So
        # nothing is opened unless every file has the sum that torchvision lists for it; torchvision
        # compares the sums once more before it reads.
        wrong = self._wrong_files()
        if wrong:
            raise self._refused(wrong)
        stored = self._kind(str(self.root), train=split == "train", download=False)
        self.names = tuple(stored.classes)
        images = torch.from_numpy(stored.data).movedim(3, 1)
        return resize(images, self.size), torch.tensor(stored.targets)

    def _refused(self, wrong: list[str]) -> FileNotFoundError | ValueError:
        folder = self._folder
        if not any((folder / name).exists() for name in self._published()):
            return FileNotFoundError(
                f"No {self.stored_as} files in {folder} ({folder.resolve()}); fetch them with "
                f"--data.download true, or name the folder that holds {folder.name} with "
                "--data.root."
            )
        return ValueError(
            f"In {folder}, {', '.join(wrong)} is missing or not the published file (by its md5 "
            "sum). Nothing was read, as these files are pickles, which can run code; delete the "
            "folder and fetch it again with --data.download true."
        )


class CIFAR100(CIFAR10):
    """50,000 training and 10,000 test photographs of 100 kinds of things, 32x32 pixels, colour.

    The labels are the 100 fine ones. The files are pickles, which can run code when they are read.
    They are read only if they are the published ones, byte for byte (by their md5 sums).

    Args:
        root: The folder that holds ``cifar-100-python``.
        download: Fetch missing or damaged files (161 MiB). The archive stays in ``root``; if it is
            there already, it is only unpacked.
        size: Resize the images to ``size x size`` pixels (bilinear). None keeps 32x32.
        kwargs: What every :class:`~imgsynth.data.base.ImageDataModule` takes.

    Source:
        Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """

    stored_as = "CIFAR100"
