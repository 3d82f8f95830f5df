"""Weights & Biases beside the local record: never asks, never ends a run, works without network."""

import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from imgsynth.describe import describe
from imgsynth.images import to_uint8
from imgsynth.loggers.record import Record, git_state
from imgsynth.methods.base import Method

Mode = Literal["auto", "online", "offline", "disabled"]

_RUN_ID = "run-id"
_MODES = {k: k for k in ("auto", "online", "offline", "disabled", "shared")}
_MODES |= {"dryrun": "offline", "run": "online"}
"""What ``WANDB_MODE`` may say; the last two for older releases of W&B."""

_START_SECONDS = 20
_FINISH_SECONDS = 60
_SLOWEST_UPLOAD = 1_000_000
"""Bytes a second; a checkpoint that takes longer is given up."""


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
        mode: ``auto`` follows ``WANDB_MODE``, else is online if you are logged in and offline if
            not; or ``online``, ``offline``, ``disabled`` (no trace of W&B).
        project: ``WANDB_PROJECT`` by default, or imgsynth.
        entity: User or team; W&B's own default by default.
        group: ``WANDB_RUN_GROUP`` by default, or method and data.
        name: ``WANDB_NAME`` by default, or the folder's name.
        tags: Tags besides method and data.
        notes: A text about the run.
        id: The id of a run to continue or to begin; ``WANDB_RUN_ID`` by default, or a new one.
        config: The configuration to show; by default how method, data and trainer were built.

    Raises:
        ValueError: If the mode is none; when training starts, if the id given is that of another
            run beside this one.

    Example:
        >>> logger = WandB("runs/digits", mode="offline", tags=("first",))
        >>> # Trainer(logger=[Record("runs/digits"), logger]).fit(method, data)
    """

    def __init__(
        self,
        folder: str | Path,
        mode: Mode = "auto",
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        tags: tuple[str, ...] = (),
        notes: str | None = None,
        id: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if mode not in {"auto", "online", "offline", "disabled"}:
            raise ValueError(f"mode must be auto, online, offline or disabled, got {mode!r}.")
        project = project or os.environ.get("WANDB_PROJECT") or "imgsynth"
        super().__init__(save_dir=folder, project=project, id=id)
        self.folder = Path(folder)
        self.mode = mode
        self._config = config
        self._given = {"entity": entity, "group": group, "name": name, "notes": notes}
        self._tags = tuple(tags)
        self._method: Method | None = None
        self._watched: tuple[Any, ...] | None = None
        self._began = time.monotonic()
        self._warned = False

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
                if mode not in _MODES:
                    raise ValueError(f"WANDB_MODE is none of {', '.join(_MODES)}, but {mode!r}")
                self._start(model, _MODES[mode], run_id)

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
            "job_type": "train",
            "project": self._project,
            "id": run_id,
            "dir": root,
            "config": config,
        }
        with _environment():
            run, why = _open(mode, root, arguments)
        self._experiment, self._method = run, method
        self._began = time.monotonic()
        kept = self.folder / "wandb" / _RUN_ID
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(f"{run.id}\n{self.folder.resolve()}\n")
        _say(f"W&B: {_where(run, why)}")
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
            _say(f"W&B: {self.folder} is a copy of {home}, so it continues as a new run, {new}.")
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
            logged.wait(timeout=_FINISH_SECONDS + path.stat().st_size // _SLOWEST_UPLOAD)

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
        if run is None or method is None:
            return
        callbacks: list[Any] = method.trainer.callbacks  # type: ignore[attr-defined]
        number = next(filter(None, (getattr(c, "signal", None) for c in callbacks)), None)
        code = 128 + number if number is not None else int(status != "success")
        directory, self._warned = run.settings.sync_dir, False
        with self._forgiving(f"the end was not uploaded; later: wandb sync {directory}"):
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
                _say(f"W&B: {_reason(error)}: {consequence}.", sys.stderr)
            self._warned = True


def _open(mode: str, root: Path, arguments: dict[str, Any]) -> tuple[Any, str]:
    """Start a run, online if that is wanted and possible, else offline.

    Returns:
        The run, and why it is not online.
    """
    import wandb

    variables: dict[str, Any] = {
        "console": "off",
        "git_root": str(Path.cwd()),
        "init_timeout": _START_SECONDS,
        "finish_timeout": _FINISH_SECONDS,
        "finish_timeout_raises": True,
    }
    # What the user's environment says counts.
    chosen = {k: v for k, v in variables.items() if f"WANDB_{k.upper()}" not in os.environ}
    # create_new: another run that is open in this process is neither continued nor ended.
    arguments |= {
        "settings": wandb.Settings(silent=True, **chosen),
        "reinit": "create_new",
        "resume": "allow",
    }
    why = ""
    if mode != "offline":
        run, why = _open_online(mode, root, arguments)
        if run is not None:
            return run, ""
    # Its logs, too, belong to the run; the home folder is not to fill up.
    os.environ.setdefault("WANDB_CACHE_DIR", str(root.resolve() / "wandb" / "cache"))
    return wandb.init(mode="offline", **arguments), why


def _open_online(mode: str, root: Path, arguments: dict[str, Any]) -> tuple[Any, str]:
    import wandb

    try:
        # Not verified: that would wait for the network, which init does within its own limit.
        if not wandb.login(prompt=False, verify=False):
            return None, "not logged in"
    except Exception as error:  # such as a key that cannot be one
        return None, _reason(error)
    attempts = f"wandb/run-*-{arguments['id']}*"
    before = set(root.glob(attempts))
    try:
        return wandb.init(mode="shared" if mode == "shared" else "online", **arguments), ""
    except Exception as error:
        if wandb.run is None:
            wandb.teardown()  # the failed attempt holds the id
        for attempt in set(root.glob(attempts)) - before:
            shutil.rmtree(attempt, ignore_errors=True)
        return None, f"could not connect: {_reason(error)}"


@contextmanager
def _environment() -> Iterator[None]:
    """Hide from W&B what would make it fail or speak: empty variables, and the mode we decide."""
    before = {k: v for k, v in os.environ.items() if k.startswith("WANDB_")}
    for name, value in before.items():
        if not value or name == "WANDB_MODE":
            del os.environ[name]
    os.environ["WANDB_SILENT"] = "true"
    try:
        yield
    finally:
        for name in [k for k in os.environ if k.startswith("WANDB_") and k != "WANDB_SERVICE"]:
            del os.environ[name]
        os.environ.update(before)


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


def _where(run: Any, why: str) -> str:  # noqa: ANN401
    """Say where a run can be seen, or how it can be uploaded."""
    if not run.offline:
        return str(run.url)
    piece = Path(run.settings.sync_dir)
    pieces = list(piece.parent.glob(f"offline-run-*-{run.id}*"))
    reason = f" ({why})" if why else ""
    wanted = piece if len(pieces) < 2 else piece.parent / "offline-run-*"
    return f"offline{reason}; to upload it: wandb sync {wanted}"


def _reason(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    # W&B's errors of values have the value's name in their second line.
    words = lines[:3] if isinstance(error, ValueError) else lines[:1]
    return ": ".join(word.strip() for word in words).rstrip(".")


def _say(line: str, stream: TextIO | None = None) -> None:
    stream = stream or sys.stdout
    stream.write(f"{line}\n")
    stream.flush()
