"""Images to try a trained model on: those held out from it, or a user's own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from imgsynth.cli.errors import UsageError, did_you_mean, listing, nearest
from imgsynth.cli.trained import Trained

if TYPE_CHECKING:
    from torch import Tensor

    from imgsynth.data.rule import Rule

BLOCK = 64
"""Images at a time, always the same ones together: part of what a seed means."""

_RULE = ("fit", "interpolation", "background", "bits")


class Block(NamedTuple):
    """Some images.

    Attributes:
        images: Float ``(B, C, H, W)`` in [-1, 1], on the CPU.
        labels: int64 ``(B,)``, or None.
    """

    images: "Tensor"
    labels: "Tensor | None"


@dataclass(frozen=True)
class Images:
    """Images in a fixed order.

    Attributes:
        num: How many.
        what: What they are, in words.
        blocks: Yields them, :data:`BLOCK` at a time.
        sources: Their files' names, where they come from files.
        real: What they are, as plain data that a protocol holds; empty for a user's own.
        is_own: Whether they are a user's own.
    """

    num: int
    what: str
    blocks: Callable[[], Iterator[Block]]
    sources: list[str] | None
    real: dict[str, Any]
    is_own: bool = False


def image_shape(trained: Trained) -> tuple[int, int, int]:
    """Return channels, height and width of the images that the model takes."""
    from imgsynth.methods.sampler import stated

    for name in ("encoder", "decoder"):
        shape = stated(getattr(trained.method, name, None), "image_shape")  # type: ignore[arg-type]
        if shape is not None:
            channels, height, width = shape
            return channels, height, width
    channels, height, width = trained.datamodule().image_shape
    return channels, height, width


# -- of the run's data ----------------------------------------------------------------------------


def held_out(trained: Trained, split: str | None, num: int | None) -> Images:
    """Return images of the run's data, in its order.

    Args:
        trained: The model.
        split: Which part; None takes ``test``, or ``val`` where there is none.
        num: At most so many; None all.

    Raises:
        UsageError: If there is no such split.
        ValueError: If the data cannot be read.
    """
    data = trained.datamodule()
    name = type(data).__name__
    split = _split(data.splits, split, name)
    data.prepare_data()
    data.setup()
    ours, theirs = image_shape(trained), data.image_shape
    if ours != theirs:
        raise UsageError(
            f"The model takes images of shape {ours}, but those of {name} are of shape {theirs}."
        )
    everything = data.num_images(split)
    num = everything if num is None else min(num, everything)
    part = f"{num:,}" if num == everything else f"the first {num:,} of {everything:,}"
    sources = data.files(split)[:num] if hasattr(data, "files") else None

    def blocks() -> Iterator[Block]:
        from imgsynth.images import from_uint8

        left = num
        for images, labels in data.reference(split, BLOCK):
            yield Block(from_uint8(images)[:left], None if labels is None else labels[:left])
            left -= len(images)
            if left <= 0:
                return

    real = {"split": split, "fingerprint": data.fingerprint_of(split), "num": num}
    return Images(num, f"{part} images of {name}, split {split}", blocks, sources, real)


def _split(splits: tuple[str, ...], wanted: str | None, name: str) -> str:
    if wanted is None:
        wanted = next((split for split in ("test", "val") if split in splits), None)
        if wanted is None:
            raise UsageError(
                f"{name} holds no images out: its only split is {listing(splits)}.",
                "Expected --split train, or --data.test_fraction 0.1 if it was trained so.",
            )
    if wanted not in splits:
        raise UsageError(
            f"--split {wanted!r}: {name} has no such split.",
            f"Expected {' or '.join(splits)}.",
            did_you_mean(f"--split {split}" for split in nearest(wanted, splits)),
        )
    return wanted


# -- a user's own ---------------------------------------------------------------------------------


def own(trained: Trained, path: Path, num: int | None) -> Images:
    """Return the images of a file or folder, as the run would make them of its own.

    Args:
        trained: The model.
        path: An image file, or a folder of them.
        num: At most so many, in the order of their names; None all.

    Raises:
        UsageError: If a file is no image.
        ValueError: If the folder holds none.
    """
    from imgsynth.data.decode import read_header
    from imgsynth.data.scan import scan

    if path.is_dir():
        root, names = path, list(scan(path).names)[:num]
    else:
        root, names = path.parent, [path.name]
    rule, binarise = _rule(trained)
    files = _Files(root, names, rule, binarise)
    for name in names:  # before it costs anything
        files.usable(name, read_header)
    height, width = rule.size or (0, 0)
    what = f"{_plural(len(names), 'image')} of {printable(str(path))}, {rule.fit} to "
    what += f"{height}x{width}, {_plural(rule.channels or 0, 'channel')}"
    what += ", drawn black and white" if binarise else ""
    return Images(len(names), what, files.blocks, names, {}, is_own=True)


@dataclass(frozen=True)
class _Files:
    """Image files, as a rule makes them."""

    root: Path
    names: list[str]
    rule: "Rule"
    binarise: bool

    def usable(self, name: str, work: Callable[[Path], Any]) -> Any:  # noqa: ANN401
        """Return what ``work`` makes of a file; the error names the file."""
        from imgsynth.data.decode import UnusableImage

        try:
            return work(self.root / name)
        except UnusableImage as error:
            raise UsageError(f"{printable(str(self.root / name))} {error}.") from error

    def blocks(self) -> Iterator[Block]:
        """Yield the images."""
        import torch

        for start in range(0, len(self.names), BLOCK):
            places = range(start, min(start + BLOCK, len(self.names)))
            yield Block(torch.stack([self._image(place) for place in places]), None)

    def _image(self, place: int) -> "Tensor":
        import torch

        from imgsynth.data.decode import decode
        from imgsynth.images import from_uint8
        from imgsynth.seeding import generator

        name = self.names[place]
        image = from_uint8(self.usable(name, lambda path: self.rule.apply(decode(path))))
        if not self.binarise:
            return image
        drawn = torch.rand(image.shape, generator=generator(0, "binarise", place))
        return torch.where(2 * drawn - 1 < image, 1.0, -1.0)


def _rule(trained: Trained) -> "tuple[Rule, bool]":
    """Return the rule of the run's own data, and whether it draws black and white images."""
    from imgsynth.data.rule import Rule

    channels, height, width = image_shape(trained)
    said = {} if trained.config is None else trained.config["data"]["init_args"]
    arguments = {name: said[name] for name in _RULE if said.get(name) is not None}
    return Rule((height, width), channels=channels, **arguments), bool(said.get("binarise"))


def labels_of(
    trained: Trained, images: Images, label: str | None, *, needed: bool
) -> "Tensor | None":
    """Return the labels of a user's own images, for a model that needs them.

    Args:
        trained: The model.
        images: The images.
        label: What ``--label`` says: a number or a class.
        needed: Whether the model needs labels.

    Returns:
        int64 ``(N,)``; None if the model needs none.

    Raises:
        UsageError: If nothing says of which class an image is, or the model has no classes.
    """
    import torch

    if not needed:
        if label is not None:
            raise UsageError(f"--label {label}: the model is unconditional, it has no classes.")
        return None
    classes = _classes(trained)
    if label is not None:
        number = classes.get(label)
        if number is None:
            raise UsageError(f"--label {label}: there is no such class.", _expected(classes))
        return torch.full((images.num,), number)
    if images.sources is None:
        raise UsageError(
            "The model is conditional on classes, but its data has no labels.",
            f"Expected --label L. {_expected(classes)}",
        )
    numbers = [classes.get(name.rpartition("/")[0].partition("/")[0]) for name in images.sources]
    if None in numbers:
        name = images.sources[numbers.index(None)]
        raise UsageError(
            f"The model is conditional on {trained.method.num_classes} classes, and nothing says "
            f"of which one {printable(name)!r} is.",
            "Expected --label L for all, or a folder of each class, named like it.",
            _expected(classes),
        )
    return torch.tensor(numbers)


def _expected(classes: dict[str, int]) -> str:
    return f"The classes are {listing(dict.fromkeys(classes))}."


def _classes(trained: Trained) -> dict[str, int]:
    """Return labels by the classes' names and, where these do not say otherwise, by number."""
    num = trained.method.num_classes
    numbers = {str(label): label for label in range(num)}
    try:
        names = trained.datamodule().class_names if trained.config is not None else ()
    except OSError:  # the data is somewhere else
        names = ()
    named = {name: label for label, name in enumerate(names)} if len(names) == num else {}
    return named | {text: label for text, label in numbers.items() if text not in named}


def printable(name: str) -> str:
    """Return a file's name without bytes that are no text."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _plural(num: int, noun: str) -> str:
    return f"{num:,} {noun}{'' if num == 1 else 's'}"
