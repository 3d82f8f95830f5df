"""Protocols by the name of the tool whose scores they stand for: one choice instead of eight."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from imgsynth.metrics.inception import SHA256, InceptionExtractor

_USUAL = "the tool sets no counts, these are the usual ones"
_PIXELS = "pixels agree with the tool's, no published score was reproduced yet"
_PROGRAM = "the tool's own weights, a TorchScript file of the same graph, were not compared"
_SHUFFLED = "labels here are the real ones, shuffled"


@dataclass(frozen=True)
class Preset:
    """What a tool does to images and how many it takes.

    Args:
        name: The tool.
        stands_for: Whose published scores these are.
        resize: How images become 299x299; a name in :data:`~imgsynth.metrics.resize.RESIZES`.
        normalisation: How values of 0 to 255 become the network's.
        logits_bias: Whether the last layer's bias is added for the Inception score.
        num_generated: Generated images.
        real_split: Real images, all of the split.
        labels: How labels of generated images are chosen, where a generator takes them.
        splits: Parts of the Inception score.
        quantisation: How the tool makes whole numbers of a generator's images.
        limits: What is not the tool's here, or not known.

    Example:
        >>> PRESETS["pytorch-fid"].resize
        'torch-bilinear'
    """

    name: str
    stands_for: str
    resize: str = "tf1-bilinear"
    normalisation: str = "(x-128)/128"
    logits_bias: bool = False
    num_generated: int = 50_000
    real_split: str = "train"
    labels: str = "as in the data"
    splits: int | None = 10
    quantisation: str = "8-bit images, made by the user"
    limits: str = f"{_USUAL}; {_PIXELS}"

    def text(self) -> str:
        """Say in four lines what it stands for, what it does, on which images, and its limits."""
        score = "no Inception score"
        if self.splits is not None:
            parts = "one part" if self.splits == 1 else f"{self.splits} parts"
            score = f"Inception score: {parts}, {'with' if self.logits_bias else 'without'} bias"
        return (
            f"{self.name}: {self.stands_for}.\n"
            f"  Pixels: {self.resize} to 299x299, {self.normalisation}; {score}.\n"
            f"  Images: {self.num_generated:,} generated (labels {self.labels}) against all of "
            f"{self.real_split}; {self.quantisation}.\n"
            f"  Limits: {self.limits}."
        )

    def extractor(
        self, weights: str | Path | None = None, expected: str | None = SHA256
    ) -> InceptionExtractor:
        """Return the Inception network with this tool's preprocessing.

        Args:
            weights: Its file; None looks for it or downloads it.
            expected: What the file's SHA-256 must begin with; None accepts any.

        Raises:
            FileNotFoundError: If there is no such file, or none here and no network.
            ValueError: If the file holds something else.
        """
        return InceptionExtractor(
            weights, self.resize, self.normalisation, self.logits_bias, expected
        )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                "torch-fidelity",
                "torch-fidelity, and the TensorFlow code of FID's authors",
            ),
            Preset(
                "pytorch-fid",
                "pytorch-fid, and clean-fid's legacy_pytorch",
                resize="torch-bilinear",
                normalisation="x/127.5-1",
                splits=None,
            ),
            Preset(
                "torchmetrics",
                "torchmetrics with its default antialias=True",
                resize="torch-antialias",
                limits=f"with normalize=True the tool cuts instead of rounding; {_PIXELS}",
            ),
            Preset(
                "clean-fid",
                "clean-fid in its mode clean",
                resize="pil-bicubic",
                splits=None,
                limits=f"{_PROGRAM}; {_PIXELS}",
            ),
            Preset(
                "stylegan2-ada",
                "fid50k_full, kid50k_full and is50k of StyleGAN2-ADA and its successors",
                labels="drawn from the data, with replacement",
                quantisation="clamped to 8 bits, halves rounded up",
                limits=f"{_PROGRAM}; it divides covariances by n, here it is n - 1; {_SHUFFLED}; "
                "read in its source, not run",
            ),
            Preset(
                "studiogan",
                "StudioGAN by default: InceptionV3_tf, post_resizer legacy, ref train",
                resize="torch-bilinear",
                normalisation="x/127.5-1",
                logits_bias=True,
                labels="uniform over the classes",
                splits=1,
                quantisation="clamped to 8 bits, halves rounded up",
                limits="it generates as many images as the split has, 50,000 for ImageNet; "
                f"{_SHUFFLED}, and parts are 10; read in its source, not run",
            ),
        )
    }
)
"""The presets by name."""


def preset(name: str) -> Preset:
    """Return the preset of a name.

    Args:
        name: One of :data:`PRESETS`.

    Raises:
        ValueError: If there is none.

    Example:
        >>> preset("clean-fid").num_generated
        50000
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"There is no protocol {name!r}. {hint}There are {', '.join(PRESETS)}; "
            "`imgsynth evaluate --protocols` says what they stand for."
        )
    return PRESETS[name]
