"""The words of a command line: parsers whose errors name the option, say what was probably meant and where help is."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn, Sequence

from .hints import did_you_mean


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations; an error is two lines, and exit status 2.

    Args:
        prog: the program and the command, as they are typed.
        options: those of argparse.ArgumentParser.
    """

    def __init__(self, prog: str, **options: Any) -> None:  # noqa: ANN401  # argparse's own, passed on
        super().__init__(prog=prog, allow_abbrev=False, **options)
        self._words: list[str] = []

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """See argparse; keeps the words for error()."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._words, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message and a way out; exit with status 2."""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        words = (word.partition("=")[0] for word in self._words if word.startswith("-") and len(word) > 2)
        wrong = next((word for word in words if word not in self._option_string_actions), None)
        hint = ""
        if wrong is not None and message.startswith(("unrecognized", "the following")):
            message = f"{wrong}: invalid option"
            hint = did_you_mean(wrong, known)
        hint = hint or f"`{self.prog} --help` lists the options"
        self.exit(2, f"{self.prog}: {message}\n{self.prog}: {hint}\n")


def seconds(text: str) -> float:
    """A time in seconds, for an option's type.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write seconds, as 10 or 0.5")
    return value


def size(text: str) -> int:
    """A number of bytes, with a suffix k, M, G or T for powers of 1024, for an option's type.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    factors = {"": 1, "k": 10, "m": 20, "g": 30, "t": 40}
    digits = text.rstrip("kKmMgGtT")
    suffix = text[len(digits) :].lower()
    if not digits.isdigit() or suffix not in factors:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write a number, then k, M, G or T")
    return int(digits) * (1 << factors[suffix] if suffix else 1)
