"""One bar over the images of a run."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from imgsynth.callbacks.base import method_of
from imgsynth.methods.base import Method

_SECONDS_PER_REFRESH = 0.5
_SECONDS_PER_LINE = 30.0
_FORMAT = (
    "{l_bar}{bar}| {n_fmt}/{total_fmt} images [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
)


class Progress(ProgressBar):
    """Show losses, images seen, images a second and the time left; replaces Lightning's bar.

    In a terminal or notebook one bar, refreshed twice a second at most. Elsewhere (a file, a
    batch system) a plain line each tenth of the run, and each 30 seconds. Writes to stderr.
    Losses are those the method reported last, so showing them never waits for the device.

    Example:
        >>> progress = Progress()
        >>> # Trainer(callbacks=[progress]).fit(method, data)
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Any = None
        self._interactive = False
        self._began = self._shown = 0.0
        self._images_before = self._tenth = 0

    def disable(self) -> None:
        """Show nothing; Lightning calls it on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:  # noqa: ANN401
        """Write a line that does not break the bar."""
        if self._enabled:
            tqdm.write(sep.join(map(str, args)), file=sys.stderr)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the images seen before."""
        method = method_of(pl_module)
        self._interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
        self._began = self._shown = time.monotonic()
        self._images_before = method.images_seen
        self._tenth = _tenth(method)
        if self._enabled and self._interactive:
            self._bar = tqdm(
                initial=method.images_seen,
                total=method.total_images,
                unit=" images",
                unit_scale=True,
                dynamic_ncols=True,
                bar_format=_FORMAT,
                file=sys.stderr,
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Show what is new, if it is time to."""
        if not self._enabled:
            return
        method = method_of(pl_module)
        now = time.monotonic()
        if self._interactive:
            if now - self._shown >= _SECONDS_PER_REFRESH:
                self._shown = now
                self._refresh(method)
        elif _tenth(method) > self._tenth or now - self._shown >= _SECONDS_PER_LINE:
            self._shown = now
            self._tenth = _tenth(method)
            self._write_line(method, now)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show where it ended."""
        if self._bar is not None:
            self._refresh(method_of(pl_module))
            self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the bar where it was."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _refresh(self, method: Method) -> None:
        self._bar.total = method.total_images
        self._bar.set_postfix_str(_losses(method), refresh=False)
        self._bar.update(method.images_seen - self._bar.n)
        self._bar.refresh()

    def _write_line(self, method: Method, now: float) -> None:
        seen, total = method.images_seen, method.total_images
        rate = (seen - self._images_before) / max(now - self._began, 1e-9)
        parts = [f"{seen:,} images", f"{rate:,.0f} images/s"]
        if total:
            parts[0] = f"{100 * seen // total:3d}% {seen:,}/{total:,} images"
            parts.append(f"{tqdm.format_interval(max(0, total - seen) / rate)} left")
        sys.stderr.write(", ".join([*parts, _losses(method)]).removesuffix(", ") + "\n")
        sys.stderr.flush()


def _tenth(method: Method) -> int:
    return 10 * method.images_seen // method.total_images if method.total_images else 0


def _losses(method: Method) -> str:
    """Return the losses reported last: ``D real 0.69, G adversarial 0.71``."""
    terms = {key: value for key, value in method.latest.items() if key.startswith("train/")}
    return ", ".join(f"{_short(key)} {value:.3g}" for key, value in terms.items())


def _short(key: str) -> str:
    """Shorten ``train/discriminator/real`` to ``D real``."""
    player, _, term = key.removeprefix("train/").rpartition("/")
    return f"{player[:1].upper()} {term}".strip()
