"""ImageNet, as torchvision lays it out."""

import shutil
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from imgsynth.data.folder import ImageFolder
from imgsynth.data.organise import Organisation
from imgsynth.data.scan import Listing

_SPLITS = ("train", "val")


class ImageNet(ImageFolder):
    """1,281,167 training and 50,000 validation photographs of 1,000 classes.

    ``root`` holds ``train/n01440764/...`` and ``val/n01440764/...``, or the archives that
    image-net.org gives to who registers (nobody may pass them on, so there is no download). What
    else lies there is not used. Decoded to 64x64 pixels the images take 16 GB, to 128x128 pixels
    65 GB: see ``cache_gb``.

    Labels are in the order of the folders' names. Where ``meta.bin`` is, which torchvision writes
    from the archives, classes are called by their first English name.

    Args:
        root: The folder.
        size: Pixels a side: the shorter side is resized to it, and the centre is cut out.
        unpack: If ``train`` or ``val`` is missing, unpack the archives (ILSVRC2012_img_train.tar,
            ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz) in ``root``. Takes hours.
        kwargs: What every :class:`~imgsynth.data.folder.ImageFolder` takes, except what is settled
            here: channels, bits, splits and classes.

    Source:
        Russakovsky et al. 2015, "ImageNet Large Scale Visual Recognition Challenge".
    """

    def __init__(
        self,
        root: str | Path = "data/imagenet",
        size: int = 64,
        unpack: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        # All that the data set settles is given here, so that nobody sets it without effect.
        super().__init__(
            root,
            size,
            channels=3,
            bits=8,
            table=None,
            class_depth=1,
            class_names=None,
            split_by={split: split for split in _SPLITS},
            test_fraction=0.0,
            val_fraction=0.0,
            allow_unlisted=False,
            **kwargs,
        )
        self.unpack = unpack

    def _files(self) -> tuple[Listing, Organisation]:
        if self._found is None:
            self._fetch()
        return super()._files()

    def _missing(self) -> list[str]:
        return [split for split in _SPLITS if not (self.root / split).is_dir()]

    def _fetch(self) -> None:
        """Unpack the archives if that was asked for and something is missing."""
        missing = self._missing()
        if not missing:
            return
        if not (self.unpack and self.root.is_dir()):
            raise FileNotFoundError(
                f"No folder {self.root / missing[0]} (looked in {self.root.resolve()}); name the "
                "folder that holds train and val with --data.root, or put the archives of "
                "image-net.org there and add --data.unpack true."
            )
        try:
            with FileLock(self.root / ".unpack.lock"):  # of several processes one unpacks
                self._unpack()
        except (RuntimeError, OSError, EOFError, tarfile.TarError) as error:
            raise ValueError(f"ImageNet could not be unpacked in {self.root}: {error}") from error

    def _unpack(self) -> None:
        from torchvision.datasets import imagenet

        missing = self._missing()
        if missing and not (self.root / imagenet.META_FILE).is_file():
            imagenet.parse_devkit_archive(str(self.root))
        parse = {"train": imagenet.parse_train_archive, "val": imagenet.parse_val_archive}
        for split in missing:
            # Under another name until it is complete: half of ImageNet looks like all of it.
            part = self.root / f"{split}.part"
            shutil.rmtree(part, ignore_errors=True)
            parse[split](str(self.root), folder=part.name)
            part.rename(self.root / split)

    def organise(self, listing: Listing) -> Organisation:
        """Take splits and classes from the folders, and call classes by their English names.

        Raises:
            ValueError: If images are not in a folder of their class, or ``meta.bin`` is broken.
        """
        for split in _SPLITS:
            depths = {name.count("/") for name in listing.names if name.startswith(f"{split}/")}
            if not depths or min(depths) < 2:
                raise ValueError(
                    f"{self.root / split} has {'images outside' if depths else 'no images in'} the "
                    "folders of classes; expected n01440764/NAME.JPEG and so on, as "
                    "--data.unpack true makes them where the folder is missing."
                )
        empty = [folder for folder in listing.empty if folder.startswith("train/")]
        organised = self.organiser(listing.names, empty)
        words = self._words()
        first = [words.get(wnid, (wnid,))[0] for wnid in organised.classes]
        count = Counter(map(str.casefold, first))  # there are two cranes, a Cardigan, a cardigan
        classes = tuple(
            name if count[name.casefold()] == 1 else f"{name} ({wnid})"
            for name, wnid in zip(first, organised.classes, strict=True)
        )
        return replace(organised, classes=classes)

    def _words(self) -> dict[str, tuple[str, ...]]:
        from torchvision.datasets import imagenet

        file = self.root / imagenet.META_FILE
        if not file.is_file():
            return {}
        try:
            words: dict[str, tuple[str, ...]] = imagenet.load_meta_file(str(self.root))[0]
        except Exception as error:  # torch fails in many ways on what it did not write
            raise ValueError(
                f"{file} is broken, which has the names of the classes; without it they are called "
                "by their folders, and --data.unpack true writes it where train or val is missing."
            ) from error
        return words
