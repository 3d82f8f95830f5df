"""LPIPS, the distance that a trained network sees, without a download."""

import hashlib
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torchmetrics.functional.image.lpips import _LPIPS

from imgsynth.images import from_uint8
from imgsynth.metrics.extractor import exact, hash_of
from imgsynth.metrics.pairs import PairMetric
from imgsynth.metrics.weights import read_weights

_Net: TypeAlias = Literal["alex", "vgg", "squeeze"]

_TRUNKS = {
    "alex": ("alexnet", "alexnet-owt-7be5be79.pth", 31),
    "vgg": ("vgg16", "vgg16-397923af.pth", 16),
    "squeeze": ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", 17),
}
"""Per network: its name and file in torchvision, and the fewest pixels that it takes."""


class LPIPS(PairMetric):
    """Learned perceptual distance, 0 for equal images, of each image, then the mean over images.

    Version 0.1 of the authors. Images are not resized. Gray images are compared as RGB images with
    three equal channels. Computed in plain float32, also within autocast or where TF32 is
    allowed, so that a value does not depend on how a run trains; the mean is taken in float64.

    The network is no part of ``parameters()`` or ``state_dict()``, so checkpoints stay small.

    Args:
        net: ``alex`` (what most papers report), ``vgg`` or ``squeeze``.
        weights: The trunk trained on ImageNet, a file of torchvision: ``alexnet-owt-7be5be79.pth``,
            ``vgg16-397923af.pth`` or ``squeezenet1_1-b8a52dc0.pth``. Nothing is downloaded; the
            small layers on top come with torchmetrics.
        kwargs: Passed to ``torchmetrics.Metric``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds pickled objects or another network, or an argument is
            unknown; from ``update``, if the images do not fit.

    Source:
        Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
        eq. 1, with the layers called lin.

    Example:
        >>> # lpips = LPIPS("alex", weights="alexnet-owt-7be5be79.pth")
        >>> # lpips.update(restored, target)
        >>> # lpips.compute()
    """

    higher_is_better = False

    _network: _LPIPS

    def __init__(
        self,
        net: _Net = "alex",
        *,
        weights: str | Path,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        if net not in _TRUNKS:
            raise ValueError(f"LPIPS: net must be one of {', '.join(_TRUNKS)}, got {net!r}.")
        path = Path(weights)
        _, file_name, self.smallest = _TRUNKS[net]
        self.net = net
        # around nn.Module, which would make it a part of checkpoints
        object.__setattr__(self, "_network", _network(net, path))
        self._identity = {
            "weights": hash_of(self._network),
            # torchvision names its files by the beginning of their sha256
            "published": _sha256(path).startswith(Path(file_name).stem.rpartition("-")[2]),
        }

    @property
    def protocol(self) -> dict[str, Any]:
        """All that changes the score, as plain data.

        ``weights`` are 16 hexadecimal digits of a hash of all parameters; ``published`` says
        whether the trunk's file is, byte for byte, the one that torchvision publishes, as only then
        the score is the LPIPS of papers.
        """
        return {
            "metric": "lpips",
            "net": self.net,
            "version": "0.1",
            **self._identity,
            "mean_over": "images",
        }

    def score(self, restored: Tensor, target: Tensor) -> Tensor:
        """Return the score of each image, float64 ``(N,)``; the images were checked."""
        if target.shape[1] not in {1, 3}:
            raise ValueError(f"LPIPS takes RGB or gray images, got {target.shape[1]} channels.")
        self._network.to(self.device)
        with exact(self.device):
            # its first layer scales three channels, and makes them of one
            distances: Tensor = self._network(from_uint8(restored), from_uint8(target))
        return distances.flatten().double()


def _network(net: _Net, path: Path) -> _LPIPS:
    title, file_name, _ = _TRUNKS[net]
    trunk = read_weights(path, f"{file_name} of torchvision (nothing is downloaded)")
    with torch.device("meta"):  # random weights would cost seconds and random numbers
        network = _LPIPS(pretrained=False, net=net, pnet_rand=True)
    state = {}
    for name, wanted in network.net.state_dict().items():
        # "slice2.3.weight" or "slices.1.3.squeeze.weight" are torchvision's layer 3
        own = "features." + name.split(".", 2 if net == "squeeze" else 1)[-1]
        found = trunk.get(own)
        if found is None or found.shape != wanted.shape:
            got = "missing" if found is None else f"of shape {tuple(found.shape)}"
            raise ValueError(
                f"{str(path)!r} is no {title} of torchvision: {own} is {got}, expected "
                f"{tuple(wanted.shape)}. LPIPS({net!r}) takes the file {file_name}."
            )
        state[f"net.{name}"] = found.float()
    heads = resources.files("torchmetrics.functional.image") / "lpips_models" / f"{net}.pth"
    with resources.as_file(heads) as file:
        state |= torch.load(file, map_location="cpu", weights_only=True)
    network.load_state_dict(state, strict=False, assign=True)
    tensors = [*network.parameters(), *network.buffers()]
    assert not any(tensor.is_meta for tensor in tensors), "torchmetrics has other layers now"
    return network.eval().requires_grad_(False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
