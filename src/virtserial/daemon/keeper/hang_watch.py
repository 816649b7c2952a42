"""Tells whether a worker hangs: asked for a Pong, it neither answers nor reads its channel."""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from virtserial.channel.messages import Ping
from virtserial.daemon.keeper.successor import START_TIMEOUT
from virtserial.daemon.keeper.worker_process import SEND_TIMEOUT
from virtserial.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.daemon.keeper.worker_process import WorkerProcess
    from virtserial.loop import EventLoop, Timer

LATENCY_BOUNDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Seconds."""


class Latency:
    """How long workers took to answer, one after the other: what waits in their loop waits as long.

    Attributes:
        counts: answers up to each of LATENCY_BOUNDS, and later ones.
        seconds: the sum of all.
    """

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BOUNDS) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self.seconds += seconds


class HangWatch:
    """
    Args:
        send: sends a Ping to the worker.
        hangs: called when it hangs.

    Attributes:
        latency: of every answer to `ping`.
    """

    def __init__(self, loop: EventLoop, send: Callable[[Ping], None], hangs: Callable[[], None]) -> None:
        self._loop = loop
        self._send = send
        self._hangs = hangs
        self._worker: WorkerProcess | None = None
        self._pings = self._pongs = self._awaited = 0
        self._unread = 0
        self._timer: Timer | None = None
        self._asked: float | None = None
        self.latency = Latency()

    @property
    def unanswered(self) -> float:
        """Seconds since a `ping` that the worker has not answered yet; 0 if there is none."""
        return 0.0 if self._asked is None else time.monotonic() - self._asked

    def begin(self, worker: WorkerProcess) -> None:
        """Watch a worker that has just started: it may take START_TIMEOUT."""
        self.end()
        self._worker = worker
        self._pings = self._pongs = self._awaited = 0
        self._ping(START_TIMEOUT)

    def end(self) -> None:
        """The worker is gone."""
        self._worker = None
        self._answered()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def ping(self) -> None:
        """Find out whether the worker hangs, unless that is being found out."""
        if self._timer is None and self._worker is not None:
            if self._asked is None:
                self._asked = time.monotonic()
            self._ping(SEND_TIMEOUT)

    def measure(self) -> None:
        """Learn how long the worker takes to answer.  One that is late is not ended for this: nobody waits for it, and
        on a machine that is too busy all would be."""
        worker = self._worker
        if worker is None or self._asked is not None or self._timer is not None or worker.channel.unread():
            return
        self._asked = time.monotonic()
        self._pings += 1
        try:
            worker.send(Ping(self._pings))
        except OSError:
            self._asked = None  # Its end is on its way to us.

    def _ping(self, timeout: float) -> None:
        self._pings += 1
        self._awaited = self._pings
        self._timer = self._loop.call_later(timeout, self._look)
        self._send(Ping(self._pings))
        self._unread = self._worker.channel.unread() if self._worker is not None else 0

    def pong(self, number: int) -> None:
        """The worker has answered.

        Raises:
            StateError: it was not asked that.
        """
        if not self._pongs <= number <= self._pings:
            raise StateError(f"Pong {number} to Ping {self._pings}")
        self._pongs = number
        if number == self._pings:
            self._answered()
        if number >= self._awaited and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _answered(self) -> None:
        if self._asked is not None:
            self.latency.add(self.unanswered)
            self._asked = None

    def _look(self) -> None:
        self._timer = None
        if self._worker is None or self._pongs >= self._awaited:
            return
        before, self._unread = self._unread, self._worker.channel.unread()
        if self._unread < before:
            # It reads: there is much to read where there are many devices.
            self._timer = self._loop.call_later(SEND_TIMEOUT, self._look)
        else:
            self._hangs()
