"""Command lines taken apart, strictly: no abbreviations, and errors that name what was meant."""

import argparse
from typing import NoReturn

from imgsynth.cli.errors import UsageError, did_you_mean, listing, nearest

Options = list[tuple[str, str]]
"""Pairs of an option's name without dashes and its value, in order."""


def split(argv: list[str], flags: set[str]) -> tuple[Options, set[str]]:
    """Take ``--name value`` and ``--name=value`` apart.

    Args:
        argv: Arguments after the command.
        flags: Names of options that take no value.

    Returns:
        The options with values, and the flags that were given.

    Raises:
        UsageError: If a value has no option, an option no value or several.
    """
    options: Options = []
    given: set[str] = set()
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not _is_option(word):
            raise UsageError(
                f"Unexpected {word!r}: it belongs to no option.",
                "Expected --name value, --name=value or -c RECIPE.",
            )
        name, equals, value = word.lstrip("-").partition("=")
        name = "config" if word.partition("=")[0] == "-c" else name
        if name in flags:
            given.add(name)
            continue
        values = [value] if equals else []
        while rest and not equals and not _is_option(rest[0]):
            values.append(rest.pop(0))
        if len(values) != 1:
            raise _not_one_value(word.partition("=")[0], values)
        options.append((name, values[0]))
    return options, given


def _is_option(word: str) -> bool:
    """Say whether a word is an option, not a value such as ``-1``, ``-.5`` or ``-``."""
    return len(word) > 1 and word[0] == "-" and not (word[1].isdigit() or word[1] == ".")


def _not_one_value(option: str, values: list[str]) -> UsageError:
    if not values:
        return UsageError(
            f"{option} expects a value.", f"Expected {option} VALUE; switches take true or false."
        )
    return UsageError(
        f"{option} expects one value, but {values[0]!r} is followed by {values[1]!r}.",
        f"Values with spaces need quotes, and lists brackets: {option} '[0,1]'.",
    )


class Parser(argparse.ArgumentParser):
    """argparse for the small commands, with our errors.

    Args:
        command: Its name.
        description: What it does.
        epilog: Shown below the options.
    """

    def __init__(self, command: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"imgsynth {command}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """Parse arguments.

        Raises:
            UsageError: If they are wrong.
        """
        parsed, unknown = self.parse_known_args(argv)
        if unknown:
            word = unknown[0]
            known = [s for s in self._option_string_actions if s.startswith("--")]
            if not word.startswith("-"):
                raise UsageError(f"Unexpected {word!r}.", self._usage())
            option = word.partition("=")[0]
            raise UsageError(
                f"{self.prog} has no option {option}.",
                f"Its options are {listing(known)}.",
                did_you_mean(nearest(option, known)),
            )
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        option, colon, text = message.removeprefix("argument ").partition(": ")
        if "invalid int value" in text:
            raise UsageError(f"{option} expects a whole number, got {text.partition(': ')[2]}.")
        if "expected one argument" in text:
            raise UsageError(f"{option} expects a value.", self._usage())
        raise UsageError(f"{option[:1].upper()}{option[1:]}{colon}{text}.", self._usage())

    def _usage(self) -> str:
        return f"Expected {' '.join(self.format_usage().split()[1:])}; --help says more."
