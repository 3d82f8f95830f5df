"""Quantisers: maps of features become maps of whole numbers, and gradients pass nevertheless."""

from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from imgsynth.describe import Described
from imgsynth.ranks import summed_over_ranks

_EPS = 1e-5
_FEW = 0.2
_FAR = 3.0


class Quantizer(Described, nn.Module):
    """Base of the quantisers: what they share, and how one of your own is called.

    ``forward(features)`` takes ``(B, code_dim, h, w)`` and returns three things: the codes chosen,
    of the same shape, with the gradient passed straight through to the features; their indices
    ``(B, h, w)`` int64; and named scalars, ``perplexity`` and ``usage`` of :meth:`figures` and, if
    the features must be kept near the codes, ``commitment``. In training mode the scalars of usage
    are those of the joined batch of all devices, which must all call it.

    Attributes:
        num_codes: Codes to choose from.
        code_dim: Length of a code.
    """

    num_codes: int
    code_dim: int

    def codes(self, indices: Tensor) -> Tensor:
        """Return the codes ``(B, code_dim, h, w)`` of indices ``(B, h, w)``."""
        raise TypeError(f"{type(self).__name__} must define codes(indices).")

    def cause(self, features: Tensor, unused: Tensor) -> str:
        """Say why few codes are chosen and what to do about it, in a sentence or two.

        Args:
            features: ``(N, code_dim)`` that the encoder makes.
            unused: ``(num_codes,)`` bool: the codes that none of many images has.
        """
        raise TypeError(f"{type(self).__name__} must define cause(features, unused).")

    def count(self, indices: Tensor) -> Tensor:
        """Count how often each code is chosen: ``(num_codes,)`` float32."""
        flat = indices.flatten()
        counts = torch.zeros(self.num_codes, device=flat.device, dtype=torch.float32)
        return counts.index_add_(0, flat, torch.ones_like(flat, dtype=torch.float32))

    def figures(self, counts: Tensor) -> dict[str, Tensor]:
        """Return how evenly codes are used.

        Args:
            counts: ``(num_codes,)`` as of :meth:`count`, of one batch or of many.

        Returns:
            ``perplexity``, the exponential of the entropy in nats: 1 if one code is chosen always,
            ``num_codes`` if all are equally often. ``usage``, the share of codes chosen at all:
            at most the number of places counted divided by ``num_codes``.

        Example:
            >>> figures = VectorQuantizer(4, 2).figures(torch.tensor([5.0, 5.0, 0.0, 0.0]))
            >>> round(figures["perplexity"].item(), 4), figures["usage"].item()
            (2.0, 0.5)
        """
        p = counts / counts.sum().clamp(min=1)
        return {
            "perplexity": (-torch.xlogy(p, p).sum()).exp(),
            "usage": (counts > 0).float().mean(),
        }

    def collapse(self, features: Tensor, counts: Tensor) -> str | None:
        """Say if only few codes are in use, with the cause as measured and a remedy.

        Few are less than a fifth of those that could be, or so uneven that less than two count
        (a perplexity below 2, with fewer than 4 codes below their square root). A host sync.

        Args:
            features: ``(B, code_dim, h, w)`` that the encoder makes of some of the images.
            counts: ``(num_codes,)`` over all of the images.
        """
        figures = self.figures(counts)
        perplexity, used = figures["perplexity"].item(), int((counts > 0).sum())
        possible = min(self.num_codes, int(counts.sum()))
        if used >= _FEW * possible and perplexity >= min(2.0, self.num_codes**0.5):
            return None
        cause = self.cause(self._vectors(features).float(), counts == 0)
        return (
            f"Only {used} of {self.num_codes} codes are in use (perplexity {perplexity:.1f}): "
            f"{cause}"
        )

    def _vectors(self, features: Tensor) -> Tensor:
        """Return ``(B * h * w, code_dim)``, in the order of flattened indices."""
        if features.ndim != 4 or features.shape[1] != self.code_dim:
            raise ValueError(
                f"{type(self).__name__} takes features of shape (B, {self.code_dim}, h, w), got "
                f"{tuple(features.shape)}; build the encoder with code_dim={self.code_dim}."
            )
        return features.permute(0, 2, 3, 1).reshape(-1, self.code_dim)


def _map(vectors: Tensor, indices: Tensor) -> Tensor:
    """Arrange ``(B * h * w, D)`` as ``(B, D, h, w)``, where indices are ``(B, h, w)``."""
    return vectors.view(*indices.shape, -1).permute(0, 3, 1, 2).contiguous()


def _passed(codes: Tensor, vectors: Tensor) -> Tensor:
    """Return the codes to the bit, with the gradient of the vectors."""
    return codes + (vectors - vectors.detach())


def _hardly_vary(vectors: Tensor) -> str | None:
    """Say if the vectors are nearly the same everywhere."""
    spread, size = _spread(vectors), vectors.square().sum(1).mean().sqrt().item()
    if spread > 0.01 * size:
        return None
    return (
        f"the encoder's outputs hardly vary, by {spread:.2g} around vectors of length {size:.2g}, "
        "so one code serves all. Lower the learning rate, or make reconstruction weigh more "
        "(a smaller sigma or commitment_weight)."
    )


def _spread(vectors: Tensor) -> float:
    """Return the root mean square distance from the mean."""
    return (vectors - vectors.mean(0)).square().sum(1).mean().sqrt().item()


class VectorQuantizer(Quantizer):
    """A codebook: each feature vector becomes the nearest of its codes.

    The codes follow the features that choose them as moving averages and get no gradient; they
    are float32 at any precision. Each forward pass in training mode is one update of
    the averages, so with gradient accumulation there are several to an optimiser step. On several
    devices counts and sums are those of all, and the codebook is the same on each.

    A code is dead when its average count is below ``restart_below`` times the mean of all. It
    starts again at a feature vector of the batch at hand, drawn at random, with an average count.
    At the first batch all codes do, which fits them to the scale of the features. On several
    devices they take turns in giving the vectors: device r those of the codes r, r + world size...

    Deviations: dead codes are told relative to the mean count, where Jukebox compares with a
    fixed count that depends on the batch; and a restarted code gets time to find its vectors,
    about ``log(restart_below) / log(decay)`` updates, where Jukebox may move it at each.

    Args:
        num_codes: The paper's K.
        code_dim: The paper's D: channels of the features.
        decay: The paper's gamma, for one update.
        restart_below: Share of the mean count below which a code starts again; 0 never restarts
            codes, and leaves their start at random unit vectors.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Van den Oord et al. 2017, "Neural Discrete Representation Learning", eqs. 1 to 3 and
        appendix A.1 (counts smoothed as in its official implementation, by 1e-5); Dhariwal et al.
        2020, "Jukebox: A Generative Model for Music", section 3.1 (random restarts).

    Example:
        >>> quantizer = VectorQuantizer(num_codes=16, code_dim=4)
        >>> codes, indices, figures = quantizer(torch.randn(2, 4, 3, 3))
        >>> codes.shape, indices.shape, sorted(figures)
        (torch.Size([2, 4, 3, 3]), torch.Size([2, 3, 3]), ['commitment', 'perplexity', 'usage'])
        >>> quantizer.codes(indices).shape
        torch.Size([2, 4, 3, 3])
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(
        self,
        num_codes: int = 512,
        code_dim: int = 64,
        decay: float = 0.99,
        restart_below: float = 0.05,
    ) -> None:
        super().__init__()
        if num_codes < 2 or code_dim < 1:
            raise ValueError(
                "VectorQuantizer: num_codes must be at least 2 and code_dim at least 1, got "
                f"{num_codes} and {code_dim}."
            )
        if not 0 <= decay < 1 or not 0 <= restart_below < 1:
            raise ValueError(
                "VectorQuantizer: decay and restart_below must be at least 0 and below 1, got "
                f"{decay} and {restart_below}."
            )
        self.num_codes = num_codes
        self.code_dim = code_dim
        self.decay = decay
        self.restart_below = restart_below
        codebook = F.normalize(torch.randn(num_codes, code_dim), dim=1)
        self.register_buffer("codebook", codebook)
        self.register_buffer("counts", torch.ones(num_codes))  # each code has chosen itself once
        self.register_buffer("sums", codebook.clone())
        self.register_buffer("started", torch.tensor(False))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Choose codes; in training mode, let the codebook follow.

        Args:
            features: ``(B, code_dim, h, w)``.

        Returns:
            Codes, indices and figures, see :class:`Quantizer`. ``commitment`` is the squared
            distance of the features from their codes, averaged over places and over the
            ``code_dim`` coordinates: eq. 3 without beta.

        Raises:
            ValueError: If the features have another shape.
        """
        vectors = self._vectors(features)
        with torch.autocast(features.device.type, enabled=False):
            vectors = vectors.float()
            if self.training and self.restart_below:
                self._restart(vectors.detach())
            chosen = self._nearest(vectors.detach())
            codes = F.embedding(chosen, self.codebook)
            counts = self.count(chosen)
            if self.training:
                counts = self._follow(vectors.detach(), chosen)
            commitment = F.mse_loss(vectors, codes)
            codes = _passed(codes, vectors)
        indices = chosen.view(len(features), *features.shape[2:])
        figures = {"commitment": commitment, **self.figures(counts)}
        return _map(codes, indices).to(features.dtype), indices, figures

    def codes(self, indices: Tensor) -> Tensor:
        """Return the codes ``(B, code_dim, h, w)`` of indices ``(B, h, w)``."""
        return _map(F.embedding(indices, self.codebook).flatten(0, -2), indices)

    def cause(self, features: Tensor, unused: Tensor) -> str:
        """Say why few codes are chosen: the features are alike, the codes far off, or neither."""
        alike = _hardly_vary(features)
        if alike is not None:
            return alike
        spread = _spread(features)
        idle = self.codebook[unused] - features.mean(0)
        away = idle.square().sum(1).mean().sqrt().item() if len(idle) else 0.0
        if away > _FAR * spread:
            remedy = (
                "Raise restart_below or lower decay, so that restarts keep up with the encoder"
                if self.restart_below
                else "Let codes that nobody chooses start again: restart_below=0.05"
            )
            return (
                f"the others are far from the encoder's outputs, {away:.2g} from their mean, where "
                f"the outputs themselves are {spread:.2g} away. {remedy}, or lower the learning "
                "rate."
            )
        if not self.restart_below:
            return (
                "codes that nobody chooses stay where they are, as restarts are off. Set "
                "restart_below=0.05."
            )
        return (
            f"the encoder's outputs vary (by {spread:.2g}), and the other codes are as near "
            f"({away:.2g} from the mean), but the outputs form few groups. Take fewer codes, a "
            "lower learning rate or a smaller commitment_weight."
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "VectorQuantizer":
        """Stay float32 where the rest becomes half: steps of 1 % are lost in bfloat16."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in ("codebook", "counts", "sums"):
            setattr(self, name, getattr(self, name).float())
        return self

    def _nearest(self, vectors: Tensor) -> Tensor:
        """Return the index of the nearest code; the first of equals."""
        squares = self.codebook.square().sum(1)  # the vectors' own squares decide nothing
        distances: Tensor = squares - 2 * vectors @ self.codebook.T
        return distances.argmin(1)

    @torch.no_grad()
    def _restart(self, vectors: Tensor) -> None:
        """Let dead codes start again at vectors of this batch; at the first batch, all."""
        even = self.counts.mean()
        dead = (self.counts < self.restart_below * even) | ~self.started
        # As many draws and sums as there are codes, however many are dead: nobody waits to know.
        drawn = torch.randint(0, len(vectors), (self.num_codes,), device=vectors.device)
        candidates = summed_over_ranks(vectors[drawn] * self._turns(vectors))
        dead = dead[:, None]
        self.codebook.copy_(torch.where(dead, candidates, self.codebook))
        self.sums.copy_(torch.where(dead, candidates * even, self.sums))
        self.counts.copy_(torch.where(dead[:, 0], even, self.counts))
        self.started.fill_(True)

    def _turns(self, vectors: Tensor) -> Tensor:
        """Return ``(num_codes, 1)``: 1 where this device gives the vector, 0 where another does."""
        rank, world = 0, 1
        if distributed.is_available() and distributed.is_initialized():
            rank, world = distributed.get_rank(), distributed.get_world_size()
        turns = torch.arange(self.num_codes, device=vectors.device) % world == rank
        return turns.to(vectors.dtype)[:, None]

    @torch.no_grad()
    def _follow(self, vectors: Tensor, chosen: Tensor) -> Tensor:
        """Move the averages towards this batch; return its counts, of all devices."""
        # A product, as sums by index are not the same twice on a GPU.
        choices = vectors.new_zeros(len(vectors), self.num_codes)
        choices.scatter_(1, chosen[:, None], 1.0)
        batch = torch.cat([choices.T @ vectors, choices.sum(0)[:, None]], 1)
        batch = summed_over_ranks(batch)
        sums, counts = batch[:, :-1], batch[:, -1]
        self.sums.lerp_(sums, 1 - self.decay)
        self.counts.lerp_(counts, 1 - self.decay)
        total = self.counts.sum()
        smooth = (self.counts + _EPS) / (total + self.num_codes * _EPS) * total
        self.codebook.copy_(self.sums / smooth[:, None])
        return counts


class FiniteScalarQuantizer(Quantizer):
    """No codebook: each of a few coordinates is bounded and rounded to one of its levels.

    Nothing to commit to, to restart or to collapse. The codes are the points of a grid in
    [-1, 1]; their number is the product of the levels.

    Args:
        levels: Values of each coordinate; their number is ``code_dim``. The paper advises at
            least 5 a coordinate: ``(8, 6, 5)`` for about 256 codes, ``(8, 5, 5, 5)`` for about
            1,000, ``(7, 5, 5, 5, 5)`` for about 4,000.

    Raises:
        ValueError: If there is no coordinate, or one with fewer than 2 levels.

    Source:
        Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", section 3 and
        appendix A.1.

    Example:
        >>> quantizer = FiniteScalarQuantizer((3, 3))
        >>> codes, indices, _ = quantizer(torch.tensor([9.0, 0.1]).view(1, 2, 1, 1))
        >>> codes.flatten().tolist(), indices.item()
        ([1.0, 0.0], 5)
    """

    levels: Tensor
    _places: Tensor

    def __init__(self, levels: tuple[int, ...] = (8, 5, 5, 5)) -> None:
        super().__init__()
        if not levels or any(level < 2 for level in levels):
            raise ValueError(
                "FiniteScalarQuantizer: levels must be whole numbers of at least 2, one a "
                f"coordinate, such as (8, 5, 5, 5), got {levels!r}."
            )
        values = torch.tensor(list(levels))
        self.code_dim = len(levels)
        self.num_codes = int(values.prod())
        self.register_buffer("levels", values, persistent=False)
        places = torch.cat([torch.ones(1, dtype=torch.int64), values.cumprod(0)[:-1]])
        self.register_buffer("_places", places, persistent=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Bound and round.

        Args:
            features: ``(B, code_dim, h, w)``, any real numbers; rounding happens in float32.

        Returns:
            Codes, indices and figures, see :class:`Quantizer`. The gradient is that of the
            bounded features, as if they were not rounded. There is no ``commitment``.

        Raises:
            ValueError: If the features have another shape.
        """
        vectors = self._vectors(features)
        with torch.autocast(features.device.type, enabled=False):
            bounded = self._bounded(vectors.float())
            whole = bounded.detach().round()
            codes = _passed(whole, bounded) / self._half
            digits = whole.long() + self.levels // 2
            indices = (digits * self._places).sum(1).view(len(features), *features.shape[2:])
            counts = self.count(indices)
            figures = self.figures(summed_over_ranks(counts) if self.training else counts)
        return _map(codes, indices).to(features.dtype), indices, figures

    def codes(self, indices: Tensor) -> Tensor:
        """Return the codes ``(B, code_dim, h, w)`` of indices ``(B, h, w)``, in [-1, 1]."""
        digits = indices.reshape(-1, 1) // self._places % self.levels
        return _map((digits - self.levels // 2) / self._half, indices)

    def cause(self, features: Tensor, unused: Tensor) -> str:
        """Say why few codes are chosen: the features are alike or saturated, or neither."""
        alike = _hardly_vary(features)
        if alike is not None:
            return alike
        ends = (features.abs() > 3).float().mean().item()  # tanh is beyond 0.995
        if ends > 0.5:
            return (
                f"{ends:.0%} of the encoder's outputs are beyond 3, where the bound is flat, so "
                "only the outermost levels are met. Lower the learning rate."
            )
        return (
            f"the encoder's outputs vary (by {_spread(features):.2g}), but form few groups. Take "
            "fewer levels or a lower learning rate."
        )

    @property
    def _half(self) -> Tensor:
        return (self.levels // 2).float()

    def _bounded(self, vectors: Tensor) -> Tensor:
        """Bound each coordinate so that rounding gives exactly its number of levels.

        An even number of levels has none in the middle: the bound is shifted by half a level, and
        the argument such that 0 stays about there.
        """
        half = (self.levels - 1) * (1 - 1e-3) / 2
        offset = torch.where(self.levels % 2 == 1, 0.0, 0.5)
        shift = torch.tan(offset / half)
        return torch.tanh(vectors + shift) * half - offset
