"""CelebA, as torchvision stores it."""

from pathlib import Path
from typing import Any

import numpy as np

from imgsynth.data.folder import ImageFolder
from imgsynth.data.organise import Organisation
from imgsynth.data.scan import Listing


class CelebA(ImageFolder):
    """202,599 aligned photographs of faces, 178x218 pixels: 162,770 / 19,867 / 19,962.

    Splits ``train``, ``val`` and ``test`` as published. Decoded to 64x64 pixels: 2.5 GB.

    Args:
        root: The folder that holds ``celeba/img_align_celeba`` and ``celeba/list_*.txt``.
        size: Pixels a side: the shorter side is resized to it, and the centre is cut out.
        attribute: Label images by one of the 40 attributes, such as ``Smiling``: 0 without, 1 with.
            None leaves them unlabelled.
        download: Fetch missing files, 1.4 GB (torchvision needs the package ``gdown`` for it).
        kwargs: What every :class:`~imgsynth.data.folder.ImageFolder` takes.

    Source:
        Liu et al. 2015, "Deep Learning Face Attributes in the Wild".
    """

    def __init__(
        self,
        root: str | Path = "data",
        size: int = 64,
        attribute: str | None = None,
        download: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        folder = Path(root).expanduser() / "celeba" / "img_align_celeba"
        super().__init__(folder, size, channels=3, bits=8, **kwargs)
        self.data_root = Path(root).expanduser()
        self.attribute = attribute
        self.download = download

    def prepare_data(self) -> None:
        """Download the files if that was asked for and they are missing; decode the images."""
        if self.download:
            self._stored(download=True)
        super().prepare_data()

    def _stored(self, download: bool = False) -> Any:  # noqa: ANN401
        from torchvision.datasets import CelebA as Stored

        try:
            return Stored(str(self.data_root), split="all", download=download)
        except (RuntimeError, OSError, ImportError, ValueError) as error:
            if download:
                raise ValueError(
                    f"CelebA could not be downloaded to {self.data_root / 'celeba'}: {error}"
                ) from error
            raise FileNotFoundError(
                f"No complete CelebA in {self.data_root / 'celeba'} "
                f"({self.data_root.resolve()}): {error}; fetch it with --data.download true, or "
                "name the folder that holds celeba/img_align_celeba with --data.root."
            ) from error

    def organise(self, listing: Listing) -> Organisation:
        """Read splits and attributes from torchvision's tables."""
        stored = self._stored()
        attributes = [name for name in stored.attr_names if name]
        if self.attribute is not None and self.attribute not in attributes:
            raise ValueError(
                f"CelebA has no attribute {self.attribute!r}; it has {', '.join(attributes)}."
            )
        place = {name: i for i, name in enumerate(listing.names)}
        missing = [name for name in stored.filename if name not in place]
        if missing:
            raise FileNotFoundError(
                f"{len(missing):,} of the {len(stored.filename):,} images of CelebA are not in "
                f"{self.root}, such as {missing[0]!r}."
            )
        partition = stored._load_csv("list_eval_partition.txt").data[:, 0].numpy()
        places = np.array([place[name] for name in stored.filename], np.int64)
        names = ("train", "val", "test")
        splits = {name: np.sort(places[partition == i]) for i, name in enumerate(names)}
        if self.attribute is None:
            return Organisation(splits, None, ())
        labels = np.full(len(listing), -1, np.int64)
        labels[places] = stored.attr[:, attributes.index(self.attribute)].numpy()
        return Organisation(splits, labels, (f"not {self.attribute}", self.attribute))
