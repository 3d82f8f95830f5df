"""Scores of generated images during training."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from imgsynth.callbacks.base import method_of, run_folder
from imgsynth.callbacks.cadence import Cadence
from imgsynth.callbacks.stop import stopped
from imgsynth.folders import default_folder
from imgsynth.methods.base import Method
from imgsynth.metrics import scores
from imgsynth.metrics.classifier import ClassifierExtractor
from imgsynth.metrics.evaluation import Evaluation, Result
from imgsynth.metrics.extractor import Extractor
from imgsynth.metrics.pixels import PixelExtractor
from imgsynth.metrics.presets import preset
from imgsynth.metrics.protocol import name_of
from imgsynth.types import Count, parse_count

JUDGE = "judge.pt"
"""The classifier that scored a run, in its folder."""

DEFAULT = ("fd", "cls_score", "precision", "recall")
_NUM = 5_000
_INCEPTION = "torch-fidelity"


class Evaluate(Callback):
    """Score generated images at a cadence, with averaged weights, and at the end.

    Scores are reported as ``val/fd`` and so on: to the record and other loggers with a hash of
    what they were measured by (:class:`~imgsynth.metrics.Protocol`), to the terminal beside what
    real images get, and to :class:`Checkpoint`, which keeps the best. Everything they need is
    made before training starts and kept for other runs. They do not touch training: neither its
    random numbers nor its weights.

    Without Inception weights, images are judged by a classifier of the data's own labels, trained
    once for each data set: ``fd``, ``cls_score``, ``kd`` are what ``fid``, ``is`` and ``kid``
    are in the feature space of the Inception network.

    Args:
        every: Images from one evaluation to the next; None makes four in a run.
        metrics: Names, as a list or with commas: fid, is, kid, fid_class with the Inception
            network; fd, cls_score, kd, fd_class with any other extractor; precision, recall,
            density, coverage, swd with both. None: fd, cls_score, precision and recall; with a
            protocol fid; with an extractor that tells no classes swd, precision and recall.
        num: Images to generate; None as many as the protocol says (50,000 with Inception,
            5,000 else). Scores of another number are called so: ``fid2k``.
        seeds: How many sets of images, of the seeds 0, 1...; a score is their mean.
        protocol: For Inception, which tool's numbers to reproduce: torch-fidelity, pytorch-fid,
            torchmetrics, clean-fid, stylegan2-ada or studiogan; None is torch-fidelity.
        weights: File of the Inception weights, for scores that need them; None looks in torch's
            cache, then downloads it. For the others the ``judge.pt`` of another run, so that both
            are judged by the same classifier.
        extractor: Another network to make features; see :mod:`imgsynth.metrics`.
        split: The real images to compare with.

    Raises:
        ValueError: If there is no such score or protocol, or a number is out of range; when
            training starts, if a score cannot be computed of this data.

    Example:
        >>> evaluate = Evaluate(every="50k", metrics="fd,recall", num="2k")
        >>> # Trainer(callbacks=[evaluate]).fit(method, data)
    """

    def __init__(
        self,
        every: Count | None = None,
        metrics: str | Sequence[str] | None = None,
        num: Count | None = None,
        seeds: int = 1,
        protocol: str | None = None,
        weights: str | None = None,
        extractor: Extractor | None = None,
        split: str = "train",
    ) -> None:
        self.settings = Settings(metrics, num, protocol, weights, extractor, split)
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}.")
        self.seeds = seeds
        self._cadence = Cadence(every, parts=4)
        self._evaluation: Evaluation | None = None
        self._evaluated = -1
        self._before: dict[str, float] | None = None
        self._protocol: str | None = None
        self._warned = ""

    @property
    def reports(self) -> list[str]:
        """The keys of the scores."""
        return [f"val/{self.settings.shown(name)}" for name in self.settings.names]

    @property
    def rising(self) -> list[str]:
        """Those of which more is better."""
        names = [name for name in self.settings.names if scores.SCORES[name].better == "high"]
        return [f"val/{self.settings.shown(name)}" for name in names]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the real images, and whether the scores can be had, before training starts."""
        if stage != "fit":
            return
        data: Any = getattr(trainer, "datamodule", None)
        judge = run_folder(trainer) / JUDGE
        device = trainer.strategy.root_device
        own = judge if self.settings.needs_judge and _fits(judge, data) else None
        self._evaluation = self.settings.prepare(data, pl_module, device, own)
        extractor = self._evaluation.extractor
        trainer.strategy.barrier("judge")  # all have read it
        if trainer.is_global_zero and isinstance(extractor, ClassifierExtractor):
            extractor.save(judge)
        if trainer.is_global_zero:  # not computed in the middle of a run
            self._evaluation.prepare()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        method = method_of(pl_module)
        self._cadence.start(method)
        self._evaluated = -1
        assert self._evaluation is not None
        if self._protocol not in {None, self._evaluation.protocol("precision").hash}:
            self._before = None  # of other images or features

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Evaluate if it is due, or if this update is the last."""
        method = method_of(pl_module)
        last = 0 <= trainer.max_steps <= trainer.global_step
        if self._cadence.due(method) or last:
            self._evaluate(trainer, method)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the last weights, unless the run is to go on."""
        method = method_of(pl_module)
        if self._evaluated != method.images_seen and not stopped(trainer):
            self._evaluate(trainer, method)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next scores are compared with."""
        if self._before is None or self._evaluation is None:
            return {}
        return {"before": self._before, "protocol": self._evaluation.protocol("precision").hash}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the next scores with those of the checkpoint."""
        self._before, self._protocol = state_dict.get("before"), state_dict.get("protocol")

    def _evaluate(self, trainer: Trainer, method: Method) -> None:
        assert self._evaluation is not None
        method.synchronise()
        method.check_finite()
        self._evaluated = method.images_seen
        result = self._evaluation.score(method, seeds=range(self.seeds), matched=True)
        means = result.means()
        reported = {f"val/{name}": value for name, value in means.items()}
        if self.seeds > 1:
            for name in result.protocols:
                low, high = result.range(name)
                reported |= {f"val/{name}_least": low, f"val/{name}_greatest": high}
        protocols = {
            f"val/{name}": {"hash": protocol.hash, **protocol.as_dict()}
            for name, protocol in result.protocols.items()
        }
        if trainer.is_global_zero:
            for protocol in protocols.values():
                protocol["real_images"] = self._evaluation.floor_of(protocol["score"])
        method.report_scores(reported, protocols)
        if trainer.is_global_zero:
            self._tell(method, result)

    def _tell(self, method: Method, result: Result) -> None:
        assert self._evaluation is not None
        means, num = result.means(), self._evaluation.num_held_out
        told = []
        for name, protocol in result.protocols.items():
            real, ours = (s.get(protocol.score) for s in (self._evaluation.floor, result.matched))
            beside = "" if real is None or ours is None else f" ({ours:.3g}, real {real:.3g})"
            told.append(f"{name} {means[name]:.4g}{beside}")
        line = f"{method.images_seen:,} images: {', '.join(told)}"
        tqdm.write(f"{line}; in brackets: {num:,} generated, {num:,} held-out real images")
        warning = self._evaluation.alarm(result, self._before)
        kind = re.sub(r"[\d.]+", "", warning or "")
        if warning is not None and kind != self._warned:  # not again and again
            tqdm.write(warning)
        self._warned = kind
        self._before = result.watched


class Settings:
    """What to score and by what; the callback and the command line make evaluations of it."""

    def __init__(
        self,
        metrics: str | Sequence[str] | None,
        num: Count | None,
        protocol: str | None,
        weights: str | None,
        extractor: Extractor | None,
        split: str,
    ) -> None:
        if metrics is None:
            metrics = DEFAULT if protocol is None else ("fid",)
            if extractor is not None and not extractor.num_logits:
                metrics = ("swd", "precision", "recall")
        self.names = scores.parse(metrics)
        self.num = None if num is None else parse_count(num, "num")
        if self.num is not None and self.num < 2:
            raise ValueError(f"num must be at least 2, got {num}.")
        self.extractor = extractor
        self.split = split
        inception = scores.asks_for_inception(self.names) or protocol is not None
        given = {"protocol": protocol, "weights": weights}
        if extractor is not None and any(given.values()):
            name = next(name for name, value in given.items() if value is not None)
            raise ValueError(f"extractor and {name} both say what makes features; give one.")
        self.preset = preset(protocol or _INCEPTION) if inception and extractor is None else None
        if self.preset is not None:
            scores.check_space(self.names, True, "the Inception network, which a protocol means")
        self.weights = weights

    @property
    def needs_judge(self) -> bool:
        """Whether nothing says what makes features: then a classifier of the data does."""
        return self.extractor is None and self.preset is None and self.weights is None

    @property
    def num_protocol(self) -> int:
        """As many generated images as the protocol asks for."""
        if getattr(self.extractor, "genuine", False):
            return preset(_INCEPTION).num_generated
        return _NUM if self.preset is None else self.preset.num_generated

    def shown(self, name: str) -> str:
        """Return a score's name, with the number of images if it is not the protocol's."""
        return name_of(name, self.num or self.num_protocol, self.num_protocol)

    def monitored(self) -> dict[str, str]:
        """Return ``monitor`` and ``mode`` of the first score, for :class:`Checkpoint`."""
        first = self.names[0]
        return {
            "monitor": f"val/{self.shown(first)}",
            "mode": "min" if scores.SCORES[first].better == "low" else "max",
        }

    def prepare(
        self,
        data: Any,  # noqa: ANN401
        method: LightningModule,
        device: torch.device,
        judge: Path | None = None,
    ) -> Evaluation:
        """Find or make the extractor and look at the real images.

        Args:
            data: The datamodule.
            method: What will be scored.
            device: Where features are made.
            judge: A classifier to use, if one is needed.

        Raises:
            ValueError: If it cannot be done; the message says what else can.
        """
        if not hasattr(data, "reference"):
            raise ValueError(
                "Scores compare with real images: give the Trainer a datamodule of imgsynth, such "
                "as ImageFolder or Arrays, instead of a loader."
            )
        if not hasattr(method, "sample_chunks"):
            raise ValueError(
                f"{type(method).__name__} does not make images from nothing, so there is nothing "
                "to compare with real ones."
            )
        if reason := getattr(method, "why_no_samples", lambda: None)():
            raise ValueError(reason)
        if self.split not in data.splits:
            raise ValueError(f"split must be one of {', '.join(data.splits)}, got {self.split!r}.")
        extractor = self._extractor(data, device, judge)
        if isinstance(extractor, ClassifierExtractor):
            _check_reading(extractor, data)
        return Evaluation(
            data,
            extractor.to(device),
            self.names,
            folder=default_folder(),
            num=self.num,
            num_protocol=self.num_protocol,
            split=self.split,
            conditional=bool(getattr(method, "num_classes", 0)),
        )

    def _extractor(self, data: Any, device: torch.device, judge: Path | None) -> Extractor:  # noqa: ANN401
        if self.extractor is not None:
            return self.extractor
        if self.preset is not None:
            return self.preset.extractor(self.weights)
        if self.names == ["swd"] and self.weights is None:
            return PixelExtractor()
        if judge is not None and judge.exists():
            return ClassifierExtractor.load(judge)
        if self.weights is not None:
            return ClassifierExtractor.load(self.weights)
        from imgsynth.judging import judge as trained

        return trained(data, device=device)


def _fits(judge: Path, data: Any) -> bool:  # noqa: ANN401
    """Say whether a run's folder holds a judge of these very images: a resumed run keeps it."""
    if not judge.exists() or not hasattr(data, "fingerprint_of"):
        return False
    try:
        kept: bool = ClassifierExtractor.load(judge).fingerprint == data.fingerprint_of("train")
    except ValueError as error:
        warnings.warn(f"The run's own classifier is not used: {error}", stacklevel=2)
        return False
    return kept


def _check_reading(judge: ClassifierExtractor, data: Any) -> None:  # noqa: ANN401
    """Warn of a classifier that hardly reads the data: its features say little about images."""
    counts = data.class_counts
    guessing = max(counts) / sum(counts) if counts else 0.0
    if judge.accuracy < (1 + guessing) / 2:
        warnings.warn(
            f"The classifier of {judge.data} that scores are computed with reads "
            f"{judge.accuracy:.0%} of {judge.num_heldout:,} held-out images rightly (always the "
            f"largest class: {guessing:.0%}): its scores say less than those of a better one, "
            "which `weights` or `extractor` can name.",
            stacklevel=2,
        )
