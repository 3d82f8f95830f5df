"""ImageNet, as torchvision lays it out."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from imgsynth.data.folder import ImageFolder
from imgsynth.data.organise import Organisation
from imgsynth.data.scan import Listing


class ImageNet(ImageFolder):
    """1,281,167 training and 50,000 validation photographs of 1,000 classes.

    ``root`` holds ``train/n01440764/...`` and ``val/n01440764/...``, or the archives that
    image-net.org gives to who registers (nobody may pass them on, so there is no download).
    Decoded to 64x64 pixels the images take 16 GB, to 128x128 pixels 65 GB: see ``cache_gb``.

    Args:
        root: The folder.
        size: Pixels a side: the shorter side is resized to it, and the centre is cut out.
        unpack: If ``train`` or ``val`` is missing, unpack the archives (ILSVRC2012_img_train.tar,
            ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz) in ``root``. Takes hours.
        kwargs: What every :class:`~imgsynth.data.folder.ImageFolder` takes.

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
        super().__init__(root, size, channels=3, bits=8, **kwargs)
        self.unpack = unpack

    def prepare_data(self) -> None:
        """Unpack the archives if that was asked for, and decode the images.

        Raises:
            ValueError: If the archives cannot be unpacked.
            FileNotFoundError: If there are no images.
        """
        missing = [split for split in ("train", "val") if not (self.root / split).is_dir()]
        if missing and not self.unpack:
            raise FileNotFoundError(
                f"No folder {self.root / missing[0]} ({self.root.resolve()}); name the folder that "
                "holds train and val with --data.root, or put the archives of image-net.org there "
                "and add --data.unpack true."
            )
        if missing:
            self._unpack(missing)
        super().prepare_data()

    def _unpack(self, missing: list[str]) -> None:
        from torchvision.datasets import imagenet

        try:
            if not (self.root / imagenet.META_FILE).is_file():
                imagenet.parse_devkit_archive(str(self.root))
            if "train" in missing:
                imagenet.parse_train_archive(str(self.root))
            if "val" in missing:
                imagenet.parse_val_archive(str(self.root))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"ImageNet could not be unpacked in {self.root}: {error}") from error

    def organise(self, listing: Listing) -> Organisation:
        """Call classes by their first English name, where the archives' own list is there."""
        organised = super().organise(listing)
        words = self._words()
        first = [words.get(wnid, (wnid,))[0] for wnid in organised.classes]
        count = Counter(first)  # there are two cranes
        names = zip(first, organised.classes, strict=True)
        classes = tuple(name if count[name] == 1 else f"{name} ({wnid})" for name, wnid in names)
        return replace(organised, classes=classes)

    def _words(self) -> dict[str, tuple[str, ...]]:
        from torchvision.datasets import imagenet

        if not (self.root / imagenet.META_FILE).is_file():
            return {}
        words: dict[str, tuple[str, ...]] = imagenet.load_meta_file(str(self.root))[0]
        return words
