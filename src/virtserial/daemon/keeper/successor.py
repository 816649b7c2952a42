"""A worker of the code that is installed now, started while another one serves, until it can take that one's place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.daemon.keeper.worker_process import WorkerProcess
from virtserial.errors import StateError
from virtserial.loop import EPOLLIN
from virtserial.memory.state import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.loop import EventLoop

START_TIMEOUT = 20.0
"""Seconds for a worker to read its code and that of handlers."""


class Successor:
    """
    Args:
        ready: called when it can take over.
        refuse: called with the reason when it cannot; it is to be dismissed.

    Attributes:
        is_ready: it can take over.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, loop: EventLoop, ready: Callable[[], None], refuse: Callable[[str], None]) -> None:
        self._loop = loop
        self._ready = ready
        self._refuse = refuse
        self.is_ready = False
        worker = self._worker = WorkerProcess.spawn()
        loop.watch(worker.channel.fileno(), EPOLLIN, self._spoke)
        loop.watch(worker.pidfd, EPOLLIN, lambda _: refuse("it ended before it was ready"))
        self._timer = loop.call_later(
            START_TIMEOUT, lambda: refuse(f"it was not ready within {START_TIMEOUT:g} s")
        )

    def _spoke(self, _: int) -> None:
        if self.is_ready:
            return
        try:
            received = self._worker.channel.receive()
        except (EOFError, StateError):
            self._refuse("it ended before it was ready")
            return
        if received is None:
            return
        message, _fds = received
        if message.get("type") != "ready" or message.get("state_version") != VERSION:
            self._refuse(
                f"it keeps its state in another form (version {message.get('state_version')}, not {VERSION}): "
                "it can serve only after a stop and a start"
            )
            return
        self.is_ready = True
        self._timer.cancel()
        self._ready()

    def take(self) -> WorkerProcess:
        """Return the process, the caller's from now on."""
        self._timer.cancel()
        self._loop.unwatch(self._worker.channel.fileno())
        self._loop.unwatch(self._worker.pidfd)
        return self._worker

    def dismiss(self) -> None:
        """End it."""
        worker = self.take()
        worker.kill()
        worker.bury()
