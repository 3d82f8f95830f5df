"""The Inception network that FID, KID and the Inception score are defined by."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import inception_v3

from imgsynth.describe import Described
from imgsynth.metrics.extractor import Extractor, hash_of
from imgsynth.metrics.resize import RESIZES, check_resize
from imgsynth.metrics.weights import check_layers, read_weights

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256 = "6726825d"
"""First digits of the file's SHA-256, which are also in its name."""

NORMALISATIONS: Mapping[str, tuple[float, float]] = {
    "(x-128)/128": (128.0, 128.0),
    "x/127.5-1": (127.5, 127.5),
}
"""What is subtracted from values of 0 to 255, and what the rest is divided by."""

_NAMES = (FILE, "weights-inception-2015-12-05-6726825d.pth")  # pytorch-fid's, torch-fidelity's
_SIZE = 299
_CHUNK = 16  # on a CPU, maps of more images than that fall out of its caches

_A = (
    ("branch1x1",),
    ("branch5x5_1", "branch5x5_2"),
    ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
)
_B = (("branch3x3",), _A[2])
_C = (
    ("branch1x1",),
    tuple(f"branch7x7_{i}" for i in (1, 2, 3)),
    tuple(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)),
)
_D = (("branch3x3_1", "branch3x3_2"), tuple(f"branch7x7x3_{i}" for i in (1, 2, 3, 4)))
_E = (
    ("branch1x1",),
    ("branch3x3_1", "branch3x3_2a|branch3x3_2b"),
    ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a|branch3x3dbl_3b"),
)
_BLOCKS = {
    "Mixed_5b": (_A, "average"),
    "Mixed_5c": (_A, "average"),
    "Mixed_5d": (_A, "average"),
    "Mixed_6a": (_B, "halve"),
    "Mixed_6b": (_C, "average"),
    "Mixed_6c": (_C, "average"),
    "Mixed_6d": (_C, "average"),
    "Mixed_6e": (_C, "average"),
    "Mixed_7a": (_D, "halve"),
    "Mixed_7b": (_E, "average"),
    "Mixed_7c": (_E, "max"),  # in the graph of 2015; the paper has an average here, too
}

State = Mapping[str, Tensor]


def _folded(state: State, names: Sequence[str], stride: int, padded: bool) -> nn.Conv2d:
    """Make one convolution of several of the same input, batch normalisation included."""
    weights, biases = [], []
    for name in names:
        kernel, scale, shift, mean, variance = (
            state[f"{name}.{part}"].double()
            for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        )
        scale = scale / (variance + 0.001).sqrt()
        weights.append(kernel * scale[:, None, None, None])
        biases.append(shift - mean * scale)
    dtype = state[f"{names[0]}.conv.weight"].dtype
    weight = torch.cat(weights).to(dtype, memory_format=torch.channels_last)
    num, channels, height, width = weight.shape
    padding = (height // 2, width // 2) if padded else (0, 0)
    with torch.device("meta"):  # nothing is drawn
        layer = nn.Conv2d(channels, num, (height, width), stride, padding)
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(torch.cat(biases).to(dtype))
    return layer


class _Chain(nn.Module):
    """Convolutions in a row, a ReLU after each; the last place may hold two side by side."""

    def __init__(self, state: State, names: Sequence[str], stride: int = 1) -> None:
        super().__init__()
        self.places = nn.ModuleList()
        for i, name in enumerate(names, 1):
            # The last one of a block that halves the map does it, without padding.
            step = stride if i == len(names) else 1
            block, _, layers = name.rpartition(".")
            beside = [f"{block}.{layer}" for layer in layers.split("|")]
            self.places.append(
                nn.ModuleList(_folded(state, [b], step, padded=step == 1) for b in beside)
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = [x]
        for beside in self.places:
            assert isinstance(beside, nn.ModuleList)
            outputs = [layer(outputs[0]).relu_() for layer in beside]
        return outputs


class _Mixed(nn.Module):
    """A block of parallel branches; the 1x1 convolutions they begin with are done at once.

    A 3x3 average and a 1x1 convolution commute, as the average leaves out what lies outside, so
    that it is taken of the few channels that come out.
    """

    def __init__(
        self, state: State, name: str, branches: Sequence[Sequence[str]], pool: str
    ) -> None:
        super().__init__()
        self.pool = pool
        stride = 2 if pool == "halve" else 1
        full = [[f"{name}.{layer}" for layer in branch] for branch in branches]
        headed = [b for b in full if state[f"{b[0]}.conv.weight"].shape[2:] == (1, 1)]
        self.direct = nn.ModuleList(_Chain(state, b, stride) for b in full if b not in headed)
        self.tails = nn.ModuleList(_Chain(state, b[1:], stride) for b in headed)
        heads = [b[0] for b in headed]
        if pool == "average":
            heads.append(f"{name}.branch_pool")
        self.sizes = [len(state[f"{head}.conv.weight"]) for head in heads]
        self.heads = _folded(state, heads, stride=1, padded=False)
        self.after_pool = _Chain(state, [f"{name}.branch_pool"] if pool == "max" else [])

    def forward(self, x: Tensor) -> Tensor:
        parts = self.heads(x).split(self.sizes, 1)
        outputs = [y for branch in self.direct for y in branch(x)]
        for tail, part in zip(self.tails, parts, strict=False):
            outputs += tail(part.relu())
        if self.pool == "average":
            outputs.append(F.avg_pool2d(parts[-1], 3, 1, 1, count_include_pad=False).relu_())
        elif self.pool == "max":
            outputs += self.after_pool(F.max_pool2d(x, 3, 1, 1))
        else:
            outputs.append(F.max_pool2d(x, 3, 2))
        return torch.cat(outputs, 1)


class _Inception(nn.Sequential):
    """From 299x299 pixels to ``(N, 2048)``: the graph of 2015-12-05, in fewer steps."""

    def __init__(self, state: State) -> None:
        def conv(name: str, stride: int = 1, padded: bool = False) -> nn.Module:
            return nn.Sequential(_folded(state, [name], stride, padded), nn.ReLU(inplace=True))

        super().__init__(
            conv("Conv2d_1a_3x3", stride=2),
            conv("Conv2d_2a_3x3"),
            conv("Conv2d_2b_3x3", padded=True),
            nn.MaxPool2d(3, 2),
            conv("Conv2d_3b_1x1"),
            conv("Conv2d_4a_3x3"),
            nn.MaxPool2d(3, 2),
            *(_Mixed(state, name, *block) for name, block in _BLOCKS.items()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


class InceptionExtractor(Described, Extractor):
    """Inception-v3 as in the TensorFlow graph of 2015-12-05: 2048 features, 1008 logits.

    It differs from torchvision's Inception in its weights, in its averages, which leave out what
    lies outside the image, and in a maximum instead of the last average. Features are those after
    the global average. Batch normalisation is part of the convolutions here, and what commutes is
    done in the cheaper order, so features differ from other implementations' in the last digits.

    Args:
        weights: The weights' file, as of pytorch-fid or torch-fidelity. None looks for it in
            torch.hub's folder and downloads it (96 MB) if it is not there.
        resize: How images become 299x299; a name in :data:`~imgsynth.metrics.resize.RESIZES`.
        normalisation: How values of 0 to 255 become the network's; ``(x-128)/128`` as in the
            graph, or ``x/127.5-1`` as in pytorch-fid.
        logits_bias: Add the last layer's bias to the logits. The Inception score of its authors,
            torch-fidelity and StyleGAN2-ADA leave it out.
        expected: What the SHA-256 of the file must begin with. None accepts any weights.

    Attributes:
        genuine: Whether these are the weights that FID is defined by. Of others, no score may be
            called FID.

    Raises:
        FileNotFoundError: If there is no such file, or none here and no network.
        ValueError: If the file holds something else, or an argument is unknown.

    Source:
        Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision"; Heusel et
        al. 2017, "GANs Trained by a Two Time-Scale Update Rule", section 4 and its code.

    Example:
        >>> # extractor = InceptionExtractor("pt_inception-2015-12-05-6726825d.pth")
        >>> # features, logits = extractor(images)
    """

    name = "inception-2015"
    num_features = 2048
    num_logits = 1008

    def __init__(
        self,
        weights: str | Path | None = None,
        resize: str = "tf1-bilinear",
        normalisation: str = "(x-128)/128",
        logits_bias: bool = False,
        expected: str | None = SHA256,
    ) -> None:
        super().__init__()
        check_resize(resize)
        if normalisation not in NORMALISATIONS:
            raise ValueError(
                f"There is no normalisation {normalisation!r}; choose one of "
                f"{', '.join(NORMALISATIONS)}."
            )
        self.resize = resize
        self.normalisation = normalisation
        self.logits_bias = logits_bias
        path = _found_or_downloaded() if weights is None else Path(weights).expanduser()
        state = _read(path)
        sha256 = _sha256(path)
        if expected is not None and not sha256.startswith(expected):
            raise ValueError(
                f"{path} has the layers of FID's Inception, but its SHA-256 begins with "
                f"{sha256[:8]}, expected {expected}: the file is damaged or has other weights. "
                "With expected=None it is used, but scores will not be called FID."
            )
        self.genuine = sha256.startswith(SHA256)
        self._hash = hash_of(state)
        self.layers = _Inception(state)
        self.fc = nn.Linear(1, 1, device="meta")
        self.fc.weight = nn.Parameter(state["fc.weight"])
        self.fc.bias = nn.Parameter(state["fc.bias"])
        self.freeze()

    def weights_hash(self) -> str:
        """Return 16 hexadecimal digits of the weights in the file, before they are folded."""
        return self._hash

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Resize, normalise, run the network, a part of the images at a time."""
        chunk = _CHUNK if images.device.type == "cpu" else len(images)
        parts = torch.split(images, chunk)
        features = torch.cat([self.layers(self._prepared(part)) for part in parts])
        return features, F.linear(
            features, self.fc.weight, self.fc.bias if self.logits_bias else None
        )

    def _prepared(self, images: Tensor) -> Tensor:
        shift, scale = NORMALISATIONS[self.normalisation]
        pixels = RESIZES[self.resize](images, _SIZE).sub_(shift).div_(scale)
        return pixels.contiguous(memory_format=torch.channels_last)

    def preprocessing(self) -> dict[str, Any]:
        """Return resize, normalisation and whether logits have a bias."""
        return {
            "size": _SIZE,
            "resize": self.resize,
            "normalisation": self.normalisation,
            "logits_bias": self.logits_bias,
        }


def _found_or_downloaded() -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{FILE}.lock"):  # of several processes one downloads
            for name in _NAMES:
                if (folder / name).is_file():
                    return folder / name
            # writes under another name and renames at the end
            torch.hub.download_url_to_file(URL, str(folder / FILE), hash_prefix=SHA256)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"FID needs the weights of its Inception network, which are not in {folder} and could "
            f"not be downloaded ({error}).\nFetch {URL} where there is a network and pass "
            "--evaluate.weights PATH (in Python weights=PATH),\nor choose the score fd instead, "
            "which looks through a classifier of the data's own labels and needs no download."
        ) from error
    return folder / FILE


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, Tensor]:
    """Return the weights of a file, if they are those of this network, as float32."""
    state = read_weights(path, FILE)
    if getattr(state.get("fc.weight"), "shape", None) == (1000, 2048):
        raise ValueError(
            f"{path} holds torchvision's own Inception (1000 classes), which is another network: "
            f"distances between its features are no FID. Expected {FILE} (1008 classes)."
        )
    with torch.device("meta"):  # torchvision's has the same layers
        network = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    check_layers(path, state, shapes, f"FID's Inception; expected {FILE}")
    return {name: t.float() for name, t in state.items() if t.is_floating_point()}
