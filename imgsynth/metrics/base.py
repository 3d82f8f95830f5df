"""What the scores of sets of images share: what they take, and how ranks put theirs together."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

_DTYPES = (torch.float32, torch.float64, torch.int64)
_MAX_DIMS = 4


def check_features(features: Tensor, what: str = "features") -> Tensor:
    """Return features as they are kept: ``(N, d)`` float32 or float64, without a graph.

    Args:
        features: ``(N, d)``, of any floating type; half precision becomes float32.
        what: What they are, for the error.

    Raises:
        ValueError: If they are no floating tensor of two dimensions, or not finite.

    Example:
        >>> check_features(torch.ones(2, 3, dtype=torch.float16)).dtype
        torch.float32
    """
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(
            f"{what}: expected a float tensor (N, d), got {features.dtype} of shape "
            f"{tuple(features.shape)}; images need an extractor that turns them into features."
        )
    if not features.isfinite().all():
        bad = int((~features.isfinite().all(1)).sum())
        raise ValueError(
            f"{what}: {bad} of {len(features)} rows are not finite; look at the images, or the "
            "weights, that they come from."
        )
    return features.detach() if features.dtype.itemsize >= 4 else features.detach().float()


def check_sets(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Check two sets of features, which must be of one width; see :func:`check_features`.

    Raises:
        ValueError: If one is not as it should be, or their widths differ.

    Example:
        >>> real, fake = check_sets(torch.zeros(4, 2), torch.zeros(3, 2))
    """
    real, fake = check_features(real, "real features"), check_features(fake, "fake features")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"Real and fake features must come from one extractor, got {real.shape[1]} and "
            f"{fake.shape[1]} features an image."
        )
    return real, fake


def in_order(rows: Tensor) -> Tensor:
    """Sort rows by their values, the first column first.

    A score that draws rows at random draws from this order: then neither batch size, nor the
    number of ranks, nor the order of arrival changes it.

    Args:
        rows: ``(N, d)``.

    Returns:
        The same rows; equal ones stay as often as they occur.

    Example:
        >>> in_order(torch.tensor([[2, 1], [1, 3], [2, 1], [1, 2]])).tolist()
        [[1, 2], [1, 3], [2, 1], [2, 1]]
    """
    distinct, counts = torch.unique(rows, dim=0, return_counts=True)
    ordered: Tensor = distinct.repeat_interleave(counts, 0)
    return ordered


def gather(state: Tensor, group: Any = None) -> list[Tensor]:  # noqa: ANN401  # a process group
    """Return every rank's tensor, in the order of the ranks, each in its own size and type.

    Nothing is padded. Ranks without elements are left out, whatever shape their tensor has: a
    rank that saw no image does not know how wide features are.

    Args:
        state: This rank's tensor, of at most 4 dimensions; float32, float64 or int64.
        group: The ranks that take part; None: all.
    """
    group = group or torch.distributed.group.WORLD
    rank, world = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
    heads = torch.zeros(world, 2 + _MAX_DIMS, dtype=torch.int64, device=state.device)
    head = [_DTYPES.index(state.dtype), state.ndim, *state.shape]
    heads[rank, : len(head)] = torch.tensor(head, device=state.device)
    torch.distributed.all_reduce(heads, group=group)
    parts = []
    for source, (dtype, ndim, *shape) in enumerate(heads.tolist()):
        part = state.contiguous()
        if source != rank:
            part = torch.empty(shape[:ndim], dtype=_DTYPES[dtype], device=state.device)
        if part.numel():
            sender = torch.distributed.get_global_rank(group, source)
            torch.distributed.broadcast(part, sender, group=group)
            parts.append(part)
    return parts or [state]


class FeatureMetric(Metric):
    """Base of scores that compare sets of images by their features.

    ``update`` takes uint8 images where there is an extractor, else its features. Ranks hand over
    what each has seen, unpadded, so that any split over them, also one that leaves a rank without
    images, gives the score of a single process. No image may be seen by two ranks.

    The extractor is no submodule: it is in no checkpoint and among no parameters. It follows when
    the metric is moved to another device; otherwise it stays where it is.

    Args:
        extractor: Maps uint8 images ``(N, C, H, W)`` to features ``(N, d)`` and logits
            ``(N, k)`` or None. None: ``update`` takes float features ``(N, d)``.
        reset_real: Whether ``reset`` forgets the real images too.
        **kwargs: Those of :class:`torchmetrics.Metric`.
    """

    full_state_update = True  # forward() may not add kept real images to themselves
    is_differentiable = False

    def __init__(
        self,
        extractor: nn.Module | None = None,
        *,
        reset_real: bool = True,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**{"dist_sync_fn": gather, **kwargs})
        self._extractor = (extractor,)  # in a tuple modules are not registered
        self.reset_real = reset_real

    @property
    def extractor(self) -> nn.Module | None:
        """What turns images into features."""
        return self._extractor[0]

    @property
    def update_called(self) -> bool:
        """True also before an update: a rank without images takes part like the others."""
        return True

    def update(self, inputs: Tensor, real: bool) -> None:
        """Add images, or features.

        Args:
            inputs: uint8 ``(N, C, H, W)`` with an extractor, else float ``(N, d)``.
            real: Whether they are real, not generated.

        Raises:
            ValueError: If they have another form, are not finite, or are of another width than
                those before.
        """
        if len(inputs):
            self._add(self._features(inputs), real)

    def compute(self) -> Any:  # noqa: ANN401
        """Return the score of all images of all ranks; the same on every rank.

        Raises:
            ValueError: If there are too few images.
        """
        try:
            return self._score()
        except BaseException:
            # torchmetrics would leave all ranks' images on each rank, to be counted again
            self.unsync(self._is_synced)
            raise

    def reset(self) -> None:
        """Forget the images; the real ones only with ``reset_real``."""
        states = [] if self.reset_real else [k for k in self._defaults if k.startswith("real_")]
        kept = {name: [*getattr(self, name)] for name in states}
        super().reset()
        for name, value in kept.items():
            setattr(self, name, value)

    @abstractmethod
    def _add(self, features: Tensor, real: bool) -> None:
        """Keep what the score needs of some features (with ``_of_logits``, of some logits)."""

    @abstractmethod
    def _score(self) -> Any:  # noqa: ANN401
        """Compute the score from the states, which are those of all ranks."""

    def _features(self, inputs: Tensor) -> Tensor:
        if self.extractor is None:
            return check_features(inputs.to(self.device))
        features, _ = self.extractor(inputs)
        return check_features(features.to(self.device))

    def _apply(self, *args: Any, **kwargs: Any) -> "FeatureMetric":  # noqa: ANN401
        before = self.device
        super()._apply(*args, **kwargs)
        if self.extractor is not None and self.device != before:
            self.extractor.to(self.device)
        return self


class SetMetric(FeatureMetric):
    """Base of scores that need every feature of both sets.

    Args:
        extractor: See :class:`FeatureMetric`.
        real: Features of the real images ``(M, d)``, if they are known beforehand: the same on
            every rank, never reset, and ``update`` takes no others.
        reset_real: See :class:`FeatureMetric`.
        **kwargs: Those of :class:`torchmetrics.Metric`.
    """

    real_rows: list[Tensor]
    fake_rows: list[Tensor]

    def __init__(
        self,
        extractor: nn.Module | None = None,
        *,
        real: Tensor | None = None,
        reset_real: bool = True,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(extractor, reset_real=reset_real, **kwargs)
        self.given = None if real is None else check_features(real, "real features")
        self.add_state("real_rows", [], "cat")
        self.add_state("fake_rows", [], "cat")

    def _add(self, features: Tensor, real: bool) -> None:
        if real and self.given is not None:
            raise ValueError("The real features were given to the metric; update() takes no more.")
        append(self.real_rows if real else self.fake_rows, features)

    def _sets(self) -> tuple[Tensor, Tensor]:
        """Return real and fake features of all ranks."""
        real = all_rows(self.real_rows, "real") if self.given is None else self.given
        return real.to(self.device), all_rows(self.fake_rows, "fake")


def append(state: list[Tensor], rows: Tensor) -> None:
    """Add a batch to a state.

    Raises:
        ValueError: If its rows are of another width than those before.

    Example:
        >>> state = [torch.zeros(2, 3)]
        >>> append(state, torch.zeros(1, 3))
        >>> len(state)
        2
    """
    if state and state[0].shape[1] != rows.shape[1]:
        raise ValueError(
            f"features: expected {state[0].shape[1]} an image as before, got {rows.shape[1]}; all "
            "must come from one extractor."
        )
    state.append(rows)


def all_rows(state: list[Tensor] | Tensor, what: str) -> Tensor:
    """Join the rows of a state: a list of batches, or after the ranks met one tensor.

    Raises:
        ValueError: If there are none.

    Example:
        >>> all_rows([torch.zeros(2, 3), torch.zeros(1, 3)], "real").shape
        torch.Size([3, 3])
    """
    if not len(state) or (isinstance(state, Tensor) and not state.numel()):
        raise ValueError(
            f"No {what} images were seen; call update(images, real={what == 'real'}) before "
            "compute()."
        )
    return state if isinstance(state, Tensor) else torch.cat(state)
