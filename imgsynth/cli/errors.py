"""What a user is told when something is wrong: at most three lines, and what to do about it."""

import contextlib
import difflib
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

EXIT_CODE = 2
_TRACEBACK = "IMGSYNTH_TRACEBACK"
_MOST_NAMES = 16
_PACKAGE = Path(__file__).parents[1]


class UsageError(ValueError):
    """A mistake on the command line or in a configuration.

    Args:
        wrong: What was wrong, as a sentence.
        expected: What was expected, as a sentence.
        hint: What was probably meant, or how to find out.
    """

    def __init__(self, wrong: str, expected: str = "", hint: str = "") -> None:
        super().__init__(wrong)
        self.lines = [line for line in (wrong, expected, hint) if line]


def nearest(word: str, names: Iterable[str], most: int = 1) -> list[str]:
    """Return the names that were probably meant, the likeliest first; none if nothing is close.

    Example:
        >>> nearest("HingGAN", ["GAN", "HingeGAN", "LSGAN"])
        ['HingeGAN']
    """
    by_lower = {name.lower(): name for name in names}
    lower = word.lower()
    starting = [name for name in by_lower if lower and name.startswith(lower)]
    close = difflib.get_close_matches(lower, by_lower, n=most, cutoff=0.6)
    found = list(dict.fromkeys([*(close if lower in by_lower else starting), *close]))
    return [by_lower[name] for name in found[:most]]


def did_you_mean(words: Iterable[str]) -> str:
    """Return ``Did you mean a or b?``, or nothing if there is nothing to propose."""
    words = list(words)
    return f"Did you mean {' or '.join(words)}?" if words else ""


def listing(names: Iterable[str], nothing: str = "none") -> str:
    """Return names with commas, cut short if they are many."""
    names = list(names)
    more = f", ... ({len(names) - _MOST_NAMES} more)" if len(names) > _MOST_NAMES else ""
    return (", ".join(names[:_MOST_NAMES]) or nothing) + more


def is_expected(error: BaseException) -> bool:
    """Say whether an exception is about what the user gave, rather than a fault of ours.

    Users' mistakes are :class:`ValueError`, those of their disk :class:`OSError`, those of their
    numbers :class:`FloatingPointError`. Lightning's own error has a name, but importing it would
    cost ten seconds.
    """
    if isinstance(error, ValueError | OSError | FloatingPointError):
        return True
    return any(cls.__name__ == "MisconfigurationException" for cls in type(error).__mro__)


def _is_ours(error: BaseException) -> bool:
    """Say whether the package raised it, so that its message says all."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(_PACKAGE)


def wants_traceback() -> bool:
    """Say whether the user asked to see where an error came from."""
    return os.environ.get(_TRACEBACK, "") not in {"", "0"}


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings of ours as errors are shown, without the line of code; others as ever."""
    usual = warnings.formatwarning

    def ours(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if category is UserWarning and Path(filename).is_relative_to(_PACKAGE):
            return f"imgsynth: warning: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = ours
    try:
        yield
    finally:
        warnings.formatwarning = usual


def message(error: BaseException) -> str:
    """Return the lines to show for an expected error, at most three."""
    if isinstance(error, UsageError):
        lines = error.lines
    elif isinstance(error, OSError) and error.strerror and error.filename is not None:
        lines = [f"{error.strerror}: {str(error.filename)!r}."]
    else:
        lines = [str(error) or type(error).__name__]
        if not _is_ours(error):
            lines.append(f"{_TRACEBACK}=1 shows where this comes from.")
    return "imgsynth: " + "\n".join(" ".join(line.split()) for line in lines[:3])
