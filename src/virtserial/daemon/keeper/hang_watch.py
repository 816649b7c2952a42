"""Tells whether a worker hangs: asked for a Pong, it neither answers nor reads its channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.channel.messages import Ping
from virtserial.daemon.keeper.successor import START_TIMEOUT
from virtserial.daemon.keeper.worker_process import SEND_TIMEOUT
from virtserial.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.daemon.keeper.worker_process import WorkerProcess
    from virtserial.loop import EventLoop, Timer


class HangWatch:
    """
    Args:
        send: sends a Ping to the worker.
        hangs: called when it hangs.
    """

    def __init__(self, loop: EventLoop, send: Callable[[Ping], None], hangs: Callable[[], None]) -> None:
        self._loop = loop
        self._send = send
        self._hangs = hangs
        self._worker: WorkerProcess | None = None
        self._pings = self._pongs = 0
        self._unread = 0
        self._timer: Timer | None = None

    def begin(self, worker: WorkerProcess) -> None:
        """Watch a worker that has just started: it may take START_TIMEOUT."""
        self.end()
        self._worker = worker
        self._pings = self._pongs = 0
        self._ping(START_TIMEOUT)

    def end(self) -> None:
        """The worker is gone."""
        self._worker = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def ping(self) -> None:
        """Find out whether the worker hangs, unless that is being found out."""
        if self._timer is None:
            self._ping(SEND_TIMEOUT)

    def _ping(self, timeout: float) -> None:
        self._pings += 1
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
        if number == self._pings and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._worker is None or self._pongs == self._pings:
            return
        before, self._unread = self._unread, self._worker.channel.unread()
        if self._unread < before:
            # It reads: there is much to read where there are many devices.
            self._timer = self._loop.call_later(SEND_TIMEOUT, self._look)
        else:
            self._hangs()
