"""Notices a worker that hangs while a VMM or a host's client waits for it, at no cost while nobody does.

QEMU waits 5 s for an answer.  The keeper is told once that something has come for the worker; a second later it asks
the worker for a sign of life, and only then wants to be told again: at most one wake-up a second, and none without
traffic.
"""

from __future__ import annotations

import select
from functools import partial
from typing import TYPE_CHECKING

from virtserial.loop import EPOLLIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.loop import EventLoop, Timer

DELAY = 1.0
"""Seconds from a VMM's message to the question: a worker that is well has handled it long ago."""
_TELL_ONCE = EPOLLIN | select.EPOLLONESHOT


class Heartbeat:
    """
    Args:
        ask: asks the worker for a sign of life.
    """

    def __init__(self, loop: EventLoop, ask: Callable[[], None]) -> None:
        self._loop = loop
        self._ask = ask
        self._waiting: set[int] = set()
        self._timer: Timer | None = None

    def watch(self, fd: int) -> None:
        """Watch a VMM's socket, or one at which hosts come: the worker takes what comes there."""
        self._loop.watch(fd, _TELL_ONCE, partial(self._spoke, fd))

    def unwatch(self, fd: int) -> None:
        """The socket is about to be closed."""
        self._waiting.discard(fd)
        self._loop.unwatch(fd)

    def close(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _spoke(self, fd: int, _events: int) -> None:
        self._waiting.add(fd)
        if self._timer is None:
            self._timer = self._loop.call_later(DELAY, self._look)

    def _look(self) -> None:
        self._timer = None
        self._ask()
        waiting, self._waiting = self._waiting, set()
        for fd in waiting:
            self._loop.rewatch(fd, _TELL_ONCE)
