"""Weights & Biases beside the local record: never asks, never ends a run, works without network."""

import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from imgsynth.describe import describe
from imgsynth.images import to_uint8
from imgsynth.loggers.record import Record, git_state
from imgsynth.loggers.wandb_start import FINISH_SECONDS, open_run, reason, say, upload, where
from imgsynth.methods.base import Method

Mode = Literal["auto", "online", "offline", "disabled"]

_RUN_ID = "run-id"
_SLOWEST_UPLOAD = 1_000_000
"""Bytes a second; a checkpoint that takes longer is given up."""

_LONGEST_NAME = 128
_LONGEST_TAG = 64
_NOT_IN_NAMES = {"project": "/\\#?%:", "id": "/\\#?%:;,'"}
"""What W&B refuses."""


class WandB(WandbLogger):
    """Logger that shows a run in Weights & Biases: rows, sheets of pictures, configuration.

    Stands beside :class:`Record`, which stays the source of truth. Rows have the record's terms
    and ``images_seen``, the axis of all plots, ``updates`` and ``seconds``. A run belongs to the
    group ``HingeGAN-Digits`` (its method and data), has the job type ``train``, and is tagged
    with both. Its files are in ``wandb`` in the run's folder (or in ``WANDB_DIR``).

    Nothing prompts, and no failure of W&B ends a run: what goes wrong is said once. Without a key
    or a connection the run is written offline, for ``wandb sync``. A run that resumes goes on as
    the same run of W&B. Only the first process imports or starts W&B, while ``fit`` runs; before
    and after it, ``experiment`` is a stand-in that does nothing.

    Args:
        folder: The run's folder.
        mode: ``auto`` follows ``WANDB_MODE``, or what ``wandb offline`` or ``wandb disabled``
            chose, else is online if you are logged in and offline if not; or ``online``,
            ``offline``, ``disabled`` (no trace of W&B).
        project: ``WANDB_PROJECT`` by default, or that of ``wandb init``, or imgsynth.
        entity: User or team; W&B's own default by default.
        group: ``WANDB_RUN_GROUP`` by default, or method and data.
        name: ``WANDB_NAME`` by default, or the folder's name.
        tags: Tags besides method and data, such as ``[first,try]``.
        notes: A text about the run.
        id: The id of a run to continue or to begin; ``WANDB_RUN_ID`` by default, or a new one.
        config: The configuration to show; by default how method, data and trainer were built.

    Raises:
        ValueError: If the mode is none, or W&B refuses the project, the id or a tag; when training
            starts, if the id given is that of another run beside this one.

    Example:
        >>> logger = WandB("runs/digits", mode="offline", tags=("first",))
        >>> # Trainer(logger=[logger, Record("runs/digits")]).fit(method, data)
    """

    def __init__(
        self,
        folder: str | Path,
        mode: Mode = "auto",
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        tags: tuple[str, ...] | str = (),
        notes: str | None = None,
        id: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if mode not in {"auto", "online", "offline", "disabled"}:
            raise ValueError(f"mode must be auto, online, offline or disabled, got {mode!r}.")
        _check_name("project", project)
        _check_name("id", id)
        tags = (tags,) if isinstance(tags, str) else tuple(tags)
        for tag in tags:
            if not 1 <= len(tag) <= _LONGEST_TAG:
                raise ValueError(f"A tag must have 1 to {_LONGEST_TAG} characters, got {tag!r}.")
        project = project or os.environ.get("WANDB_PROJECT")
        super().__init__(save_dir=folder, project=project or "imgsynth", id=id)
        self.folder = Path(folder)
        self.mode = mode
        self._config = config
        self._given = {"entity": entity, "group": group, "name": name, "notes": notes}
        self._given["project"] = project
        self._tags = tags
        self._method: Method | None = None
        self._watched: tuple[Any, ...] | None = None
        self._began = time.monotonic()
        self._warned = False
        self._protocols: dict[str, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the run behind: another process starts its own, if it is the first of its run."""
        return {**self.__dict__, "_experiment": None, "_method": None}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:  # noqa: ANN401
        """The ``wandb.Run``; something that does nothing before, after and without it."""
        return _DummyExperiment() if self._experiment is None else self._experiment

    # -- the start ----------------------------------------------------------------------------

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Start, or continue: the call Lightning makes before training."""
        mode = self.mode if self.mode != "auto" else os.environ.get("WANDB_MODE") or "auto"
        if mode == "disabled" or not isinstance(model, Method):
            return
        if model.trainer.state.fn == TrainerFn.FITTING:
            run_id = self._run_id(resumes=model.images_seen > 0)
            self._warned = False
            with self._forgiving("it did not start, and training goes on without it"):
                self._start(model, mode, run_id)

    def _start(self, method: Method, mode: str, run_id: str) -> None:
        config = dict(self._config or _describe(method))
        names = [config[part]["class_path"] for part in ("model", "data") if config[part]]
        names = [name.rpartition(".")[2] for name in names]
        variables = os.environ.get
        root = Path(variables("WANDB_DIR") or self.folder)
        arguments = {
            **self._given,
            "name": self._given["name"] or variables("WANDB_NAME") or self.folder.resolve().name,
            "group": self._given["group"] or variables("WANDB_RUN_GROUP") or "-".join(names),
            "tags": (*names, *self._tags, *filter(None, variables("WANDB_TAGS", "").split(","))),
            "job_type": variables("WANDB_JOB_TYPE") or "train",
            "id": run_id,
            "dir": root,
            "config": config,
        }
        run, why = open_run(mode, root, arguments)
        if run is None:
            return
        self._experiment, self._method = run, method
        self._began = time.monotonic()
        kept = self.folder / "wandb" / _RUN_ID
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(f"{run.id}\n{self.folder.resolve()}\n")
        say(f"W&B: {where(run, why)}")
        run.define_metric("*", step_metric="images_seen")
        if not run.settings.disable_git:
            _save_code_state(run)
        if self._watched is not None:
            super().watch(*self._watched)

    def _run_id(self, resumes: bool) -> str:
        """Return the id of this folder's run; a new one if it has none, or is a copy."""
        kept, home = _kept(self.folder)
        # A folder that a failed start left behind does not decide over a new run.
        given = self._id or (os.environ.get("WANDB_RUN_ID") if not (resumes and kept) else None)
        if given and given != kept:
            for other in sorted(self.folder.resolve().parent.glob(f"*/wandb/{_RUN_ID}")):
                if _kept(other.parents[1])[0] == given:
                    raise ValueError(
                        f"The W&B run {given!r} is that of {other.parents[1]} already. Continue "
                        f"it with `imgsynth resume {other.parents[1]}`, or choose another id "
                        "(--wandb.id or WANDB_RUN_ID; without them a run gets a new one)."
                    )
            return given
        new = secrets.token_hex(5)
        if not kept or not (resumes or given):
            return new
        if home != self.folder.resolve() and _kept(home)[0] == kept:
            say(f"W&B: {self.folder} is a copy of {home}, so it continues as a new run, {new}.")
            return new
        return kept

    # -- rows, pictures and checkpoints -------------------------------------------------------

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row.

        Args:
            metrics: Terms by key. ``progress/images`` and ``progress/updates`` become
                ``images_seen`` and ``updates``; without them the method's own counts are taken.
            step: Not used: the counts tell it.
        """
        method = self._method
        if self._experiment is None or method is None:
            return
        with self._forgiving("a row is missing"):
            row = dict(metrics)
            images = int(row.pop("progress/images", method.images_seen))
            updates = int(row.pop("progress/updates", method.updates))
            records = [logger for logger in method.loggers if isinstance(logger, Record)]
            seconds = records[0].seconds if records else time.monotonic() - self._began
            row |= {"images_seen": images, "updates": updates, "seconds": round(seconds, 3)}
            if method.total_images is not None and "total_images" not in self.experiment.config:
                self.experiment.config["total_images"] = method.total_images
            self.experiment.log(row)

    @rank_zero_only
    def log_protocols(self, protocols: Mapping[str, Mapping[str, Any]]) -> None:
        """Put into the configuration what scores are measured by, as ``protocols.val/fid``.

        Args:
            protocols: By the scores' keys; plain data with its ``hash``.
        """
        if self._experiment is not None and self._protocols != protocols:
            with self._forgiving("the scores' protocols are missing"):
                self._protocols = {key: dict(protocol) for key, protocol in protocols.items()}
                config = {"protocols": self._protocols}
                self.experiment.config.update(config, allow_val_change=True)

    def log_images(
        self, name: str, picture: Tensor, images: int, text: Mapping[str, str] | None = None
    ) -> None:
        """Log one sheet of pictures, as ``pictures/NAME``.

        Args:
            name: What it shows, a key of :meth:`Method.pictures`.
            picture: ``(C, H, W)`` in [-1, 1], of 1 (gray), 3 (RGB) or 4 (RGB, alpha) channels.
            images: Images seen so far.
            text: Not shown; the record's file has it.
        """
        if self._experiment is not None:
            with self._forgiving("a sheet of pictures is missing"):
                import wandb

                shown = wandb.Image(_pixels(picture))
                self.log_metrics({f"pictures/{name}": shown, "progress/images": images})

    @rank_zero_only
    def log_image(
        self,
        key: str,
        images: list[Any],
        step: int | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Log images as Lightning's logger does.

        Args:
            key: Their key.
            images: Float tensors ``(C, H, W)`` in [-1, 1], or anything ``wandb.Image`` takes.
            step: Not used.
            kwargs: Lists of what ``wandb.Image`` takes besides, such as ``caption``.
        """
        floats = [isinstance(image, Tensor) and image.is_floating_point() for image in images]
        shown = [_pixels(i) if is_float else i for i, is_float in zip(images, floats, strict=True)]
        super().log_image(key, shown, step, **kwargs)

    @rank_zero_only
    def log_checkpoint(self, path: str | Path, aliases: Sequence[str] = ("best", "latest")) -> None:
        """Upload a checkpoint as the artifact ``model-ID``; offline, do nothing.

        Args:
            path: The checkpoint; it must stay as it is while training ends.
            aliases: Names under which the artifact is found.
        """
        run, path = self.experiment, Path(path)
        if self._experiment is None or run.offline:
            return
        with self._forgiving(f"{path} was not uploaded"):
            import wandb

            artifact = wandb.Artifact(
                f"model-{run.id}", type="model", metadata={"original_filename": path.name}
            )
            # Immutable: no copy of it in the home folder.
            artifact.add_file(str(path), "model.ckpt", policy="immutable", skip_cache=True)
            logged = run.log_artifact(artifact, aliases=list(aliases))
            logged.wait(timeout=FINISH_SECONDS + path.stat().st_size // _SLOWEST_UPLOAD)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Do nothing: the configuration holds how method and data were built."""

    def watch(
        self,
        model: nn.Module,
        log: str | None = "gradients",
        log_freq: int = 100,
        log_graph: bool = True,
    ) -> None:
        """Log gradients as Lightning's logger does; before training, wait for its start."""
        self._watched = (model, log, log_freq, log_graph)
        if self._experiment is not None:
            with self._forgiving("nothing is watched"):
                super().watch(*self._watched)

    # -- the end ------------------------------------------------------------------------------

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run in W&B: finished, failed, or stopped by a signal.

        Args:
            status: Lightning's: ``success`` or another.
        """
        run, method, watched = self._experiment, self._method, self._watched
        self._experiment = self._method = self._watched = None
        self._protocols = {}
        if run is None or method is None:
            return
        callbacks: list[Any] = method.trainer.callbacks  # type: ignore[attr-defined]
        number = next(filter(None, (getattr(c, "signal", None) for c in callbacks)), None)
        code = 128 + number if number is not None else int(status != "success")
        self._warned = False
        with self._forgiving(f"the end was not uploaded; later: {upload(run)}"):
            if watched is not None:
                run.unwatch(watched[0])
            run.finish(exit_code=code)

    @contextmanager
    def _forgiving(self, consequence: str) -> Iterator[None]:
        """Say the first failure of W&B, and go on: none is worth a run."""
        try:
            yield
        except Exception as error:  # whatever W&B raises
            if not self._warned:
                say(f"W&B: {reason(error)}: {consequence}", sys.stderr)
            self._warned = True


def _check_name(option: str, value: str | None) -> None:
    forbidden = _NOT_IN_NAMES[option]
    wrong = [c for c in value or "" if c in forbidden or not c.isprintable()]
    if value and (wrong or len(value) > _LONGEST_NAME or value != value.strip()):
        raise ValueError(
            f"{option} must have at most {_LONGEST_NAME} characters, none of {forbidden} and no "
            f"space at an end, got {value!r}."
        )


def _describe(method: Method) -> dict[str, Any]:
    trainer = method.trainer
    data = getattr(trainer, "datamodule", None)
    return {
        "model": method.describe(),
        "data": None if data is None else describe(data),
        "trainer": {"precision": str(trainer.precision), "devices": trainer.world_size},
        "seed": method.seed,
    }


def _save_code_state(run: Any) -> None:  # noqa: ANN401
    """Note the commit; what differs from it is a file of the run."""
    diff = Path(run.dir, "code.diff").resolve()
    state = git_state(diff)
    if state is not None:
        dirty = state["diff"] is not None
        run.config.update(
            {"git": {"commit": state["commit"], "dirty": dirty}}, allow_val_change=True
        )
        if dirty:
            run.save(diff, base_path=diff.parent, policy="now", glob=False)


def _kept(folder: Path) -> tuple[str | None, Path]:
    """Return the id of the run in a folder, None if there is none, and where that folder was."""
    path = folder / "wandb" / _RUN_ID
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return (lines[0], Path(lines[-1])) if len(lines) == 2 else (None, folder)


def _pixels(picture: Tensor) -> Any:  # noqa: ANN401
    """Return ``(H, W, C)`` in whole numbers: W&B turns floats black."""
    return to_uint8(picture).permute(1, 2, 0).cpu().numpy()
