"""CelebA, as torchvision stores it."""

import difflib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from imgsynth.data.folder import ImageFolder
from imgsynth.data.organise import Organisation
from imgsynth.data.scan import Listing

_SPLITS_FILE = "list_eval_partition.txt"
_ATTRIBUTES_FILE = "list_attr_celeba.txt"


class CelebA(ImageFolder):
    """202,599 aligned photographs of faces, 178x218 pixels: 162,770 / 19,867 / 19,962.

    Splits ``train``, ``val`` and ``test`` as published. Decoded to 64x64 pixels: 2.5 GB.

    Args:
        root: The folder that holds ``celeba/img_align_celeba`` and ``celeba/list_*.txt``.
        size: Pixels a side: the shorter side is resized to it, and the centre is cut out.
        attribute: Label images by one of the 40 attributes, such as ``Smiling``: 0 without, 1 with.
            None leaves them unlabelled.
        download: Fetch what is missing of ``celeba/list_attr_celeba.txt``,
            ``celeba/list_eval_partition.txt`` and ``celeba/img_align_celeba.zip`` (1.4 GB;
            torchvision needs the package ``gdown`` for it), and unpack the images.
        kwargs: What every :class:`~imgsynth.data.folder.ImageFolder` takes, except what is settled
            here: channels, bits, splits and classes.

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
        # All that the data set settles is given here, so that nobody sets it without effect.
        super().__init__(
            Path(root) / "celeba" / "img_align_celeba",
            size,
            channels=3,
            bits=8,
            table=None,
            class_depth=None,
            class_names=None,
            split_by=None,
            test_fraction=0.0,
            val_fraction=0.0,
            allow_unlisted=False,
            **kwargs,
        )
        self.attribute = attribute
        self.download = download

    def _files(self) -> tuple[Listing, Organisation]:
        if self._found is None:
            self._fetch()
        return super()._files()

    def _wrong(self) -> list[str]:
        """Return which files are missing or, by their md5 sums, not the published ones."""
        from torchvision.datasets import CelebA as Stored
        from torchvision.datasets.utils import check_integrity

        folder = self.root.parent
        sums = {name: md5 for _, md5, name in Stored.file_list}
        needed = (_SPLITS_FILE, _ATTRIBUTES_FILE)
        wrong = [name for name in needed if not check_integrity(folder / name, sums[name])]
        return wrong if self.root.is_dir() else [*wrong, self.root.name]

    def _fetch(self) -> None:
        """Download the files if that was asked for and some are missing."""
        wrong = self._wrong()
        if not wrong:
            return
        folder = self.root.parent
        if not self.download:
            raise FileNotFoundError(
                f"No complete CelebA in {folder} ({folder.resolve()}): {', '.join(wrong)} missing "
                "or not as published (by the md5 sum); fetch it with --data.download true, or name "
                "the folder that holds celeba/img_align_celeba with --data.root."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".download.lock"):  # of several processes one downloads
                self._download()
        except Exception as error:  # gdown, which is not always there, has errors of its own
            raise ValueError(f"CelebA could not be downloaded to {folder}: {error}") from error

    def _download(self) -> None:
        from torchvision.datasets import CelebA as Stored
        from torchvision.datasets import utils

        folder, wrong = self.root.parent, self._wrong()
        for file_id, md5, name in Stored.file_list:
            needed = name.removesuffix(".zip") in wrong
            if needed and not utils.check_integrity(folder / name, md5):
                utils.download_file_from_google_drive(file_id, folder, name, md5)
        if self.root.name in wrong:
            # Elsewhere until it is complete.
            part = folder / f"{self.root.name}.part"
            shutil.rmtree(part, ignore_errors=True)
            utils.extract_archive(folder / f"{self.root.name}.zip", part)
            (part / self.root.name).rename(self.root)
            shutil.rmtree(part)

    def organise(self, listing: Listing) -> Organisation:
        """Read splits and labels from the published tables.

        Raises:
            ValueError: If there is no such attribute.
            FileNotFoundError: If images are missing.
        """
        # Read here: torchvision reads all five tables, which takes 11 s at each start.
        lines = [line.split() for line in self._lines(_SPLITS_FILE)]
        partition = np.array([int(number) for _, number in lines])
        names = [name for name, _ in lines]
        place = {name: i for i, name in enumerate(listing.names)}
        missing = [name for name in names if name not in place]
        if missing:
            raise FileNotFoundError(
                f"{len(missing):,} of the {len(names):,} images of CelebA are not in {self.root}, "
                f"such as {missing[0]}; delete that folder, and --data.download true makes it anew."
            )
        places = np.array([place[name] for name in names], np.int64)
        splits = {
            split: np.sort(places[partition == i])
            for i, split in enumerate(("train", "val", "test"))
        }
        if self.attribute is None:
            return Organisation(splits, None, ())
        has = self._has(self.attribute)
        labels = np.full(len(listing), -1, np.int64)
        labels[places] = [has[name] for name in names]
        return Organisation(splits, labels, (f"not {self.attribute}", self.attribute))

    def _has(self, attribute: str) -> dict[str, bool]:
        """Return which images have an attribute, by their names."""
        _, header, *rows = self._lines(_ATTRIBUTES_FILE)
        attributes = header.split()
        if attribute not in attributes:
            close = difflib.get_close_matches(attribute, attributes, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(attributes)}."
            raise ValueError(f"CelebA has no attribute {attribute!r}; {hint}")
        column = attributes.index(attribute) + 1
        return {words[0]: words[column] == "1" for words in map(str.split, rows)}

    def _lines(self, name: str) -> list[str]:
        return (self.root.parent / name).read_text(encoding="ascii").splitlines()
