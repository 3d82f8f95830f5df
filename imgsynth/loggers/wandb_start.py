"""How a run of Weights & Biases starts without asking or failing, and where it can be seen."""

import glob
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import Any, TextIO

FINISH_SECONDS = 60
_START_SECONDS = 20
_END_SECONDS = 1
"""How long a start that failed may go on."""

_MODES = {k: k for k in ("auto", "online", "offline", "disabled", "shared")}
_MODES |= {"dryrun": "offline", "run": "online"}
"""What ``WANDB_MODE`` may say; the last two for older releases of W&B."""


def open_run(mode: str, root: Path, arguments: dict[str, Any]) -> tuple[Any, str]:
    """Start a run, online if that is wanted and possible, else offline.

    Args:
        mode: What is wanted; ``auto`` follows W&B's own settings.
        root: The folder of its folder ``wandb``.
        arguments: Those of ``wandb.init``.

    Returns:
        The run, or None where ``wandb disabled`` was chosen; and why it is not online.

    Raises:
        ValueError: If the mode is none.
    """
    if mode not in _MODES:
        raise ValueError(f"WANDB_MODE is none of {', '.join(_MODES)}, but {mode!r}")
    with _environment():
        # The logs of its process, too, belong to the run; the home folder is not to fill up.
        os.environ.setdefault("WANDB_CACHE_DIR", str(root.resolve() / "wandb" / "cache"))
        return _open(_MODES[mode], root, arguments)


def where(run: Any, why: str) -> str:  # noqa: ANN401
    """Say where a run can be seen, or how it can be uploaded.

    Args:
        run: The run.
        why: Why it is not online.

    Returns:
        Part of a line.
    """
    if not run.offline:
        earlier = _sync(Path(run.settings.sync_dir).parent, run.id)
        return f"{run.url}; earlier part: {earlier}" if earlier else str(run.url)
    reason = f" ({why})" if why else ""
    return f"offline{reason}; to upload it: {upload(run)}"


def upload(run: Any) -> str:  # noqa: ANN401
    """Return the command that uploads what a run has written.

    Args:
        run: The run.

    Returns:
        A line for a shell.
    """
    piece = Path(run.settings.sync_dir)
    if not run.offline:
        return f"wandb sync --include-online {quote(str(piece))}"
    return _sync(piece.parent, run.id, piece)


def reason(error: Exception) -> str:
    """Return the words of an error that tell a user what is wrong.

    Args:
        error: What W&B raised.

    Returns:
        Part of a line, without a full stop.
    """
    lines = str(error).splitlines() or [type(error).__name__]
    # An error of settings has the setting's name in its second line, and notes for programmers.
    is_setting = re.match(r"\d+ validation error", lines[0])
    words = [re.sub(r"^Value error, | \[type=.*", "", line.strip()) for line in lines[:3]]
    return ": ".join(words[1:] if is_setting else words[:1]).rstrip(".")


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line at once.

    Args:
        line: The line.
        stream: Where; standard output by default.
    """
    stream = stream or sys.stdout
    stream.write(f"{line}\n")
    stream.flush()


def _open(mode: str, root: Path, arguments: dict[str, Any]) -> tuple[Any, str]:
    import wandb
    from wandb.sdk import wandb_setup

    variables: dict[str, Any] = {
        "console": "off",
        "git_root": str(Path.cwd()),
        "init_timeout": _START_SECONDS,
        "finish_timeout": FINISH_SECONDS,
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
    project, why = None, ""
    try:
        theirs = wandb_setup.singleton().settings
        project = theirs.project
        if mode == "auto":
            mode, why = _MODES[theirs.mode], "`wandb offline` chose it"
    except Exception as error:  # such as an environment that W&B cannot read
        mode, why = "offline", reason(error)
    if mode == "disabled":
        return None, ""
    arguments["project"] = arguments["project"] or project or "imgsynth"
    if mode != "offline":
        run, why = _open_online(mode, root, arguments)
        if run is not None:
            return run, ""
    return wandb.init(mode="offline", **arguments), why


def _open_online(mode: str, root: Path, arguments: dict[str, Any]) -> tuple[Any, str]:
    import wandb
    from wandb.sdk import wandb_setup

    theirs = wandb_setup.singleton().settings
    theirs_before = theirs.mode
    try:
        # Login refuses where `wandb offline` was chosen once.
        theirs.mode = "online"
        # Not verified: that would wait for the network, which init does within its own limit.
        if not wandb.login(prompt=False, verify=False):
            return None, "not logged in"
    except Exception as error:  # such as a key that cannot be one
        return None, reason(error)
    finally:
        theirs.mode = theirs_before
    if sys.stdout.isatty():
        say("W&B: connecting...")
    before = _pieces(root / "wandb", "run", arguments["id"])
    try:
        return wandb.init(mode="shared" if mode == "shared" else "online", **arguments), ""
    except BaseException as error:
        _end_service()
        for attempt in _pieces(root / "wandb", "run", arguments["id"]) - before:
            shutil.rmtree(attempt, ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        return None, f"could not connect: {reason(error)}"


def _end_service() -> None:
    """End the process of W&B, in which a failed attempt goes on and holds its id."""
    import wandb
    from wandb.sdk import wandb_setup

    service = wandb_setup.singleton()
    if service.most_recent_active_run is not None:  # another run needs it
        return
    # W&B would wait for an attempt that was interrupted as long as for one that was not.
    process = getattr(getattr(service._connection, "_proc", None), "_process", None)
    timer = threading.Timer(_END_SECONDS, process.kill if process is not None else int)
    timer.start()
    with suppress(Exception, SystemExit):  # it exits if its process did not end well
        wandb.teardown()
    timer.cancel()


def _pieces(folder: Path, kind: str, run_id: str) -> set[Path]:
    """Return the folders of a run; ``*`` for the time would find those of x-ID, too."""
    return set(folder.glob(f"{kind}-????????_??????-{glob.escape(run_id)}"))


def _sync(folder: Path, run_id: str, newest: Path | None = None) -> str:
    """Return the command that uploads a run's offline pieces; nothing if all are uploaded."""
    found = _pieces(folder, "offline-run", run_id)
    pieces = {piece for piece in found if not any(piece.glob("*.wandb.synced"))}
    pieces |= {newest} if newest is not None else set()
    words = sorted(quote(str(piece)) for piece in pieces)
    # W&B appends a number to a second piece of the same second.
    if len(words) > 1 and pieces <= found:
        words = [f"{quote(str(folder))}/offline-run-*-{quote(run_id)}"]
    return " ".join(["wandb sync", *words]) if words else ""


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
