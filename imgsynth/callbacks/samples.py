"""Sheets of pictures on fixed latents, and the film they make."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw
from torch import Tensor

from imgsynth.callbacks.base import method_of, run_folder
from imgsynth.callbacks.cadence import Cadence
from imgsynth.callbacks.stop import stopped
from imgsynth.describe import class_path
from imgsynth.images import from_uint8, save_gif, save_png
from imgsynth.loggers.record import Record, sheet_path
from imgsynth.methods.base import Method
from imgsynth.types import Batch, Count

_SHEET = re.compile(r"(?:(?P<name>.+)-)?(?P<images>\d{12,})\.png")
_BATCH = 64
_MOST_FRAMES = 200
_CAPTION = 14


class Samples(Callback):
    """Write what the method shows: a sheet per stage, at the end ``final.png`` and a GIF.

    Sheets are the method's ``pictures``, with averaged weights: ``samples/000000012800.png`` in
    the run's folder, by images seen. The first is drawn before training. A resumed run removes
    those beyond its point and draws the same ones again.

    Args:
        every: Images from one sheet to the next; None draws about 20 in a run.
        gif: Whether to make ``training.gif`` of the sheets, a frame a stage (200 at most).

    Raises:
        ValueError: If ``every`` is no positive count.
        NonFiniteError: If a loss or parameter is not finite when a sheet is due.

    Example:
        >>> samples = Samples(every="10k")
        >>> # Trainer(logger=Record("runs/digits"), callbacks=[samples]).fit(method, data)
    """

    def __init__(self, every: Count | None = None, gif: bool = True) -> None:
        self.gif = gif
        self._cadence = Cadence(every, parts=20)
        self._drawn = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear what an earlier attempt drew beyond this point; draw the first sheet."""
        method = method_of(pl_module)
        self._cadence.start(method)
        self._drawn = method.images_seen
        if trainer.is_global_zero:
            for sheets in _sheets(run_folder(trainer)).values():
                for images, path in sheets.items():
                    if images > method.images_seen:
                        path.unlink()
        if not method.images_seen:
            self._draw(trainer, method)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Draw a sheet if one is due."""
        method = method_of(pl_module)
        if self._cadence.due(method):
            self._draw(trainer, method)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last sheet, unless the run is to go on; write what sums it up."""
        method = method_of(pl_module)
        if self._drawn != method.images_seen and not stopped(trainer):
            self._draw(trainer, method)
        if trainer.is_global_zero:
            self._sum_up(run_folder(trainer))

    def _draw(self, trainer: Trainer, method: Method) -> None:
        method.synchronise()
        method.check_finite()
        self._drawn = method.images_seen
        if not trainer.is_global_zero:
            return
        with method.evaluating():
            pictures = method.pictures(_real_images(trainer, method))
        text = _provenance(method)
        loggers = [logger for logger in trainer.loggers if hasattr(logger, "log_images")]
        for name, picture in pictures.items():
            for logger in loggers:
                logger.log_images(name, picture, method.images_seen, text)
            if not any(isinstance(logger, Record) for logger in loggers):
                save_png(sheet_path(run_folder(trainer), name, method.images_seen), picture, text)

    def _sum_up(self, folder: Path) -> None:
        for name, sheets in _sheets(folder).items():
            suffix = "" if name == "samples" else f"-{name}"
            shutil.copyfile(sheets[max(sheets)], folder / f"final{suffix}.png")
            if self.gif:
                save_gif(folder / f"training{suffix}.gif", _frames(sheets))


def _real_images(trainer: Trainer, method: Method) -> Batch | None:
    """Return the same real images each time, held out from training if there are such."""
    data: Any = getattr(trainer, "datamodule", None)
    if not (hasattr(data, "reference") and hasattr(data, "splits")):
        return None
    split = next(split for split in ("val", "test", "train") if split in data.splits)
    images, labels = next(data.reference(split, _BATCH))
    batch = {"image": from_uint8(images.to(method.device))}
    return batch if labels is None else {**batch, "label": labels.to(method.device)}


def _provenance(method: Method) -> dict[str, str]:
    return {
        "Software": "imgsynth",
        "Method": class_path(type(method)),
        "Images seen": str(method.images_seen),
        "Updates": str(method.updates),
        "Seed": str(method.seed),
        "Weights": "averaged" if method.ema is not None else "live",
    }


def _sheets(folder: Path) -> dict[str, dict[int, Path]]:
    """Return the sheets there are by name and images seen, in order."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted((folder / "samples").glob("*.png")):
        match = _SHEET.fullmatch(path.name)
        if match:
            found.setdefault(match["name"] or "samples", {})[int(match["images"])] = path
    return {name: dict(sorted(sheets.items())) for name, sheets in found.items()}


def _frames(sheets: dict[int, Path]) -> Iterator[Tensor]:
    """Yield sheets with their count of images written below; always the last."""
    step = -(-len(sheets) // _MOST_FRAMES)
    for images, path in list(sheets.items())[::-step][::-1]:
        with Image.open(path) as opened:
            picture = opened.convert("L" if opened.mode in {"L", "LA"} else "RGB")
        caption = f"{images:,} images"
        canvas = Image.new(picture.mode, (picture.width, picture.height + _CAPTION))
        canvas.paste(picture)
        ImageDraw.Draw(canvas).text((3, picture.height + 1), caption, fill="white")
        pixels = torch.from_numpy(np.array(canvas))
        yield pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
