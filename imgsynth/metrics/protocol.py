"""What a score was measured by: two scores may be compared if their protocols are equal."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from imgsynth.describe import hash_of


@dataclass(frozen=True)
class Protocol:
    """Everything that changes a score, apart from the model.

    Its :attr:`hash` travels with every score. Who made the images is not part of it: checkpoint,
    seeds, device and versions are written beside (provenance).

    Args:
        score: The score's name, such as ``fid``.
        extractor: What turns images into features, with a hash of its weights and with how images
            are resized and normalised; ``Extractor.identity()``.
        real: The real images: ``split``, ``fingerprint`` (a hash of all pixels, labels and their
            order), ``num`` and ``resolution``.
        num_generated: Generated images.
        labels: How their labels are chosen.
        weights: ``averaged`` or ``live``.
        quantisation: How floats become whole numbers.
        truncation: The truncation of latents; None for none.
        parameters: The score's own, such as the neighbours of a precision.

    Example:
        >>> protocol = Protocol("fid", {"name": "inception-2015"}, {"num": 50_000}, 2_000)
        >>> name_of("fid", 2_000, 50_000)
        'fid2k'
        >>> protocol.differences(Protocol("fid", {"name": "other"}, {"num": 50_000}, 2_000))
        ['extractor.name: inception-2015, other']
    """

    score: str
    extractor: Mapping[str, Any]
    real: Mapping[str, Any]
    num_generated: int
    labels: str = "none"
    weights: str = "averaged"
    quantisation: str = "clamped to [-1, 1], rounded to 8 bits"
    truncation: float | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self)

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits, equal exactly if two scores may be compared."""
        return hash_of(self.as_dict())

    def differences(self, other: "Protocol") -> list[str]:
        """Say in what another protocol differs: ``name: here, there``."""
        here, there = _flat(self.as_dict()), _flat(other.as_dict())
        names = list(dict.fromkeys([*here, *there]))
        return [
            f"{name}: {here.get(name)}, {there.get(name)}"
            for name in names
            if here.get(name) != there.get(name)
        ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else None
        flat |= {f"{prefix}{name}": value} if inner is None else inner
    return flat


def name_of(score: str, num_generated: int, num_protocol: int) -> str:
    """Return a score's name: with the number of images if it is not the protocol's.

    Args:
        score: The score, such as ``fid``.
        num_generated: Generated images.
        num_protocol: As many as the protocol asks for.

    Example:
        >>> name_of("fid", 50_000, 50_000), name_of("fid", 2_500, 50_000)
        ('fid', 'fid2500')
    """
    if num_generated == num_protocol:
        return score
    thousands, rest = divmod(num_generated, 1000)
    return f"{score}{num_generated if rest or not thousands else f'{thousands}k'}"
