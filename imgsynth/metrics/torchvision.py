"""Features of torchvision's classification networks, from a weights file of the user's."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from imgsynth.describe import Described
from imgsynth.metrics.extractor import Extractor
from imgsynth.metrics.resize import RESIZES, check_resize
from imgsynth.metrics.weights import check_layers, read_weights


class TorchvisionExtractor(Described, Extractor):
    """A classification network of torchvision: what its last layer sees, and its logits.

    Maps before the last layer, as in SqueezeNet, are averaged over their places. Images are
    resized to a square, not cropped. Nothing is downloaded.

    Args:
        network: Its name, such as ``resnet18``; ``torchvision.models.list_models()`` has them.
        weights: Its ``state_dict`` in a file. The number of classes is read from it.
        layer: The layer whose input the features are; None is the last one, the classifier.
        size: Side in pixels that images are resized to.
        resize: How; a name in :data:`~imgsynth.metrics.resize.RESIZES`.
        mean: What is subtracted from each channel, in levels of 0 to 255.
        std: What each channel is divided by then.
        bgr: Turn the order of channels to blue, green, red before, as networks of Caffe expect.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such network or layer, or the file has another one's weights.

    Example:
        >>> # TorchvisionExtractor("resnet18", "resnet18-f37072fd.pth")
        >>> # Weights that come from Caffe:
        >>> # TorchvisionExtractor("squeezenet1_0", "squeezenet.pth", size=227, bgr=True,
        >>> #                      mean=(104, 117, 123), std=(1, 1, 1))
    """

    def __init__(
        self,
        network: str,
        weights: str | Path,
        layer: str | None = None,
        size: int = 224,
        resize: str = "torch-antialias",
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        bgr: bool = False,
    ) -> None:
        super().__init__()
        check_resize(resize)
        if len(mean) != 3 or len(std) != 3:
            raise ValueError(f"mean and std have three values each, got {mean} and {std}.")
        self.name = f"torchvision/{network}"
        self.size, self.resize = size, resize
        self.mean, self.std, self.bgr = tuple(map(float, mean)), tuple(map(float, std)), bgr
        self.network, last = _with_weights(network, Path(weights).expanduser())
        self.layer = last if layer is None else layer
        _check_layer(self.network, self.layer, self.name)
        self.freeze()
        with torch.no_grad():
            features, logits = self.extract(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        self.num_features, self.num_logits = features.shape[1], logits.shape[1]

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Resize, normalise, run the network and look at what reaches the layer."""
        seen: list[Tensor] = []
        layer = self.network.get_submodule(self.layer)
        watch = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = self.network(self._prepared(images))
        finally:
            watch.remove()
        (features,) = seen
        features = features.mean((2, 3)) if features.ndim == 4 else features.flatten(1)
        return features, logits.flatten(1)

    def _prepared(self, images: Tensor) -> Tensor:
        pixels = RESIZES[self.resize](images, self.size)
        if self.bgr:
            pixels = pixels.flip(1)
        mean, std = (pixels.new_tensor(v).reshape(3, 1, 1) for v in (self.mean, self.std))
        return (pixels - mean) / std

    def preprocessing(self) -> dict[str, Any]:
        """Return layer, size, resize, normalisation and order of the channels."""
        return {
            "layer": self.layer,
            "size": self.size,
            "resize": self.resize,
            "mean": list(self.mean),
            "std": list(self.std),
            "bgr": self.bgr,
        }


def _with_weights(network: str, path: Path) -> tuple[nn.Module, str]:
    """Build the network of a file; return it and the name of its last layer."""
    names = models.list_models(module=models)
    if network not in names:
        near = difflib.get_close_matches(network, names, n=2)
        raise ValueError(
            f"torchvision has no classification network {network!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else f": {', '.join(names[:8])}, ...")
        )
    state = read_weights(path, f"the state_dict of torchvision's {network}")
    options: dict[str, Any] = {"weights": None}
    if network in {"googlenet", "inception_v3"}:
        # transform_input: as torchvision sets it for its own weights of these two
        options |= {"init_weights": False, "transform_input": True}
        options["aux_logits"] = any("aux" in name.lower() for name in state)
    with torch.random.fork_rng([]):  # the caller's random numbers stay where they are
        built: nn.Module = models.get_model(network, **options)
        last = _last_layer(built)
        found = state.get(f"{last}.weight")
        if found is not None and len(found) != len(built.get_parameter(f"{last}.weight")):
            built = models.get_model(network, num_classes=len(found), **options)
    shapes = {name: tensor.shape for name, tensor in built.state_dict().items()}
    check_layers(path, state, shapes, f"torchvision's {network}")
    built.load_state_dict(state, strict=False)  # counters of batches may be missing
    return built, last


def _last_layer(network: nn.Module) -> str:
    named = network.named_modules()
    return [str(name) for name, layer in named if isinstance(layer, nn.Linear | nn.Conv2d)][-1]


def _check_layer(network: nn.Module, layer: str, name: str) -> None:
    layers = [n for n, _ in network.named_modules() if n]
    if layer not in layers:
        near = difflib.get_close_matches(layer, layers, n=3) or layers[-3:]
        raise ValueError(f"{name} has no layer {layer!r}; it has {', '.join(near)}, for example.")
