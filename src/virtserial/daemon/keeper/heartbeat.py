"""Notices a worker that hangs while a VMM waits for it, at no cost while nobody does.

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
        self._spoken: set[int] = set()
        self._timer: Timer | None = None

    def watch(self, fd: int) -> None:
        """Watch for messages on a VMM's socket, which the worker reads."""
        self._loop.watch(fd, _TELL_ONCE, partial(self._vmm_spoke, fd))

    def unwatch(self, fd: int) -> None:
        """The socket is about to be closed."""
        self._spoken.discard(fd)
        self._loop.unwatch(fd)

    def close(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _vmm_spoke(self, fd: int, _events: int) -> None:
        self._spoken.add(fd)
        if self._timer is None:
            self._timer = self._loop.call_later(DELAY, self._look)

    def _look(self) -> None:
        self._timer = None
        self._ask()
        spoken, self._spoken = self._spoken, set()
        for fd in spoken:
            self._loop.rewatch(fd, _TELL_ONCE)
