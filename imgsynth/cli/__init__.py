"""The command line: a thin front that answers at once, and loads torch only to work."""

import os
import sys
from collections.abc import Callable

import imgsynth
from imgsynth.cli import helping
from imgsynth.cli.errors import (
    EXIT_CODE,
    UsageError,
    did_you_mean,
    is_expected,
    message,
    nearest,
    plain_warnings,
    wants_traceback,
)


def _quieten_torch() -> None:
    # It reports a process that is gone by a page of machine addresses; the watchdog says it in two
    # lines. Torch reads this when it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _fit(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(helping.FIT, end="")
        return 0
    _quieten_torch()
    from imgsynth.cli.fit import fit

    return fit(argv)


def _resume(argv: list[str]) -> int:
    _quieten_torch()
    from imgsynth.cli.fit import resume

    return resume(argv)


def _sample(argv: list[str]) -> int:
    from imgsynth.cli.sample import sample

    return sample(argv)


def _evaluate(argv: list[str]) -> int:
    from imgsynth.cli.evaluate import evaluate

    return evaluate(argv)


def _reconstruct(argv: list[str]) -> int:
    from imgsynth.cli.reconstruct import reconstruct

    return reconstruct(argv)


def _likelihood(argv: list[str]) -> int:
    from imgsynth.cli.likelihood import likelihood

    return likelihood(argv)


def _check_data(argv: list[str]) -> int:
    from imgsynth.cli.check_data import check_data

    return check_data(argv)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "fit": _fit,
    "resume": _resume,
    "sample": _sample,
    "evaluate": _evaluate,
    "reconstruct": _reconstruct,
    "likelihood": _likelihood,
    "check-data": _check_data,
    "list": helping.list_command,
    "help": helping.help_command,
}


_OPTIONS = ("--help", "--version")


def main(argv: list[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The exit code: 0; 2 for a mistake of the user, told in at most three lines; 128 + signal
        for a run that a signal stopped. Faults of ours are raised.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        with plain_warnings():
            return _dispatch(argv)
    except KeyboardInterrupt:
        print("imgsynth: Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader had enough, as in `imgsynth list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as exit_:
        if isinstance(exit_.__context__, KeyboardInterrupt):  # what Lightning makes of one
            return 130
        if type(exit_).__name__ == "SIGTERMException":  # Lightning's, outside of our own training
            print("imgsynth: Terminated before training.", file=sys.stderr)
            return 143
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except Exception as error:
        if wants_traceback() or not is_expected(error):
            raise
        sys.stdout.flush()
        print(message(error), file=sys.stderr)
        return EXIT_CODE


def _dispatch(argv: list[str]) -> int:
    command, *rest = argv or ["help"]
    if command == "--version":
        print(f"imgsynth {imgsynth.__version__}")
        return 0
    if command in {"-h", "--help"}:
        return helping.help_command([])
    if command not in COMMANDS:
        kind = "option" if command.startswith("-") else "command"
        raise UsageError(
            f"There is no {kind} {command!r}.",
            f"Expected imgsynth {' | '.join(COMMANDS)}; --help says more.",
            did_you_mean(f"imgsynth {n}" for n in nearest(command, [*COMMANDS, *_OPTIONS])),
        )
    return COMMANDS[command](rest)
