"""Classifiers of the data's own labels as extractors, in files that hold no code."""

import copy
import os
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from imgsynth.describe import MARKER, build, class_path, describe
from imgsynth.images import from_uint8
from imgsynth.metrics.extractor import Extractor

_FORMAT = "imgsynth classifier 1"
_FACTS = {"accuracy": float, "num_heldout": int, "data": str, "fingerprint": str, "training": str}


class ClassifierExtractor(Extractor):
    """A classifier whose penultimate activations are the features.

    Scores in such a space can be compared only where the very same weights gave them, which the
    identity holds; they are never called FID. The network is copied.

    Args:
        network: A classifier like those of :mod:`imgsynth.networks`: ``features(images)`` returns
            ``(N, num_features)``, ``head`` turns those into logits, and ``image_shape``,
            ``num_classes`` and ``num_features`` are stated.
        accuracy: Share of held-out images that it reads rightly.
        num_heldout: How many these are.
        data: What it was trained on.
        fingerprint: Hash of the images it was trained on, of a datamodule's ``fingerprint_of``.
        training: How it was trained, in words.

    Raises:
        ValueError: If the network is no such classifier.

    Example:
        >>> from imgsynth.networks import SmallCNN
        >>> network = SmallCNN((1, 8, 8), num_classes=10, num_features=48)
        >>> extractor = ClassifierExtractor(network, accuracy=0.1, num_heldout=500, data="Digits")
        >>> features, logits = extractor(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
        >>> features.shape, logits.shape
        (torch.Size([2, 48]), torch.Size([2, 10]))
    """

    name = "classifier"

    def __init__(
        self,
        network: nn.Module,
        *,
        accuracy: float,
        num_heldout: int,
        data: str,
        fingerprint: str = "",
        training: str = "",
    ) -> None:
        super().__init__()
        stated = ("features", "head", "image_shape", "num_classes", "num_features")
        missing = [name for name in stated if not hasattr(network, name)]
        if missing:
            raise ValueError(
                f"{type(network).__name__} lacks {', '.join(missing)}: a classifier that gives "
                "features is built like imgsynth.networks.SmallCNN."
            )
        copied: Any = copy.deepcopy(network)
        self.network = copied
        self.image_shape = tuple(copied.image_shape)
        self.num_features = copied.num_features
        self.num_logits = copied.num_classes
        self.channels = self.image_shape[0]
        self.accuracy = accuracy
        self.num_heldout = num_heldout
        self.data = data
        self.fingerprint = fingerprint
        self.training_in_words = training
        self.freeze()

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Turn uint8 ``(N, *image_shape)`` into features and logits.

        Raises:
            ValueError: If the images have another size.
        """
        height, width = self.image_shape[1:]
        if images.shape[2:] != (height, width):
            raise ValueError(
                f"The classifier was trained on images of {height}x{width} pixels, got "
                f"{images.shape[2]}x{images.shape[3]}; it judges images of its own size only."
            )
        network: Any = self.network
        features = network.features(from_uint8(images))
        return features, network.head(features)

    def preprocessing(self) -> dict[str, Any]:
        """Return the size, and that nothing is resized."""
        return {
            "network": class_path(type(self.network)),
            "data": self.data,
            "accuracy": round(self.accuracy, 6),
            "size": list(self.image_shape[1:]),
            "resize": None,
            "normalisation": "[-1, 1]",
        }

    def save(self, path: str | Path) -> None:
        """Write it as plain data and tensors, whole or not at all.

        Args:
            path: The file; missing folders are made.

        Raises:
            ValueError: If the network does not record how it was built.
            OSError: If the file cannot be written.
        """
        network = describe(self.network)
        if MARKER in str(network):
            raise ValueError(
                f"{type(self.network).__name__} does not record how it was built, so it cannot be "
                "saved; let it, and what it is given, inherit imgsynth.describe.Described."
            )
        content = {
            "format": _FORMAT,
            "network": network,
            "weights": {k: v.cpu() for k, v in self.network.state_dict().items()},
            "accuracy": self.accuracy,
            "num_heldout": self.num_heldout,
            "data": self.data,
            "fingerprint": self.fingerprint,
            "training": self.training_in_words,
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                torch.save(content, file)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, *, trusted: tuple[str, ...] = ()) -> Self:
        """Read what :meth:`save` wrote; nothing in the file can run code.

        Args:
            path: The file.
            trusted: Packages other than imgsynth whose network classes it may name.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no such file, or names a class that is not trusted.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no classifier at {str(path)!r}.")
        content = _read(path)
        with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and replaced
            network = build(content["network"], trusted=trusted)
        try:
            network.load_state_dict(content["weights"])
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"The weights in {str(path)!r} do not fit its network.") from error
        return cls(network, **{name: content[name] for name in _FACTS})


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a file of another kind can break the reader in any way
        _, is_object, rest = str(error).partition("GLOBAL ")
        if is_object:
            raise ValueError(
                f"{str(path)!r} holds pickled Python objects ({rest.split()[0]}); refused, nothing "
                "of it was run. Expected a file written by ClassifierExtractor.save."
            ) from error
        raise ValueError(
            f"{str(path)!r} is truncated or no classifier ({path.stat().st_size} bytes); delete "
            "it to have a classifier trained anew."
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(
            f"{str(path)!r} holds no classifier of this version ({_FORMAT!r}); expected a file "
            "written by ClassifierExtractor.save."
        )
    expected = {"network": dict, "weights": dict, **_FACTS}
    for name, kind in expected.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"{str(path)!r} is no whole classifier: {name!r} is missing or wrong.")
    return content
