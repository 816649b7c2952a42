"""Log lines that a guest or a VMM can cause as often as it likes: one a second of each kind, the others are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

    from virtserial.loop import EventLoop

INTERVAL = 1.0
"""Seconds between two lines of one kind."""


class LimitedLog:
    """Writes errors to a log, but none of a kind twice within INTERVAL; lines with the same format are of one kind.

    Args:
        log: where the lines go.
        loop: times them: the number of lines that were left out is told when the interval is over.
        name: whom the lines are about.
    """

    def __init__(self, log: logging.Logger, loop: EventLoop, name: str) -> None:
        self._log = log
        self._loop = loop
        self._name = name
        self._left_out: dict[str, int] = {}

    def error(self, line: str, *words: object, with_traceback: bool = False) -> None:
        """Log a line, as Logger.error does, behind the name; or count it."""
        if line in self._left_out:
            self._left_out[line] += 1
            return
        self._log.error(f"%s: {line}", self._name, *words, exc_info=with_traceback)
        self._begin_interval(line)

    def _begin_interval(self, line: str) -> None:
        self._left_out[line] = 0
        self._loop.call_later(INTERVAL, lambda: self._end_interval(line))

    def _end_interval(self, line: str) -> None:
        count = self._left_out.pop(line)
        if count:
            self._log.error("%s: %d more within %g s: %s", self._name, count, INTERVAL, _kind(line))
            # That was a line too.
            self._begin_interval(line)


def _kind(line: str) -> str:
    """The words of a format that do not change."""
    return line.replace("%s", "...").replace("%d", "...")
