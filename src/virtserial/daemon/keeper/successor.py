"""A worker of the code that is installed now, started while another one serves, until it can take that one's place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.channel.messages import Ready
from virtserial.daemon.keeper.worker_process import WorkerProcess
from virtserial.errors import StateError
from virtserial.loop import EPOLLIN
from virtserial.memory.state import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.daemon.keeper.worker_process import WorkerCode
    from virtserial.loop import EventLoop

START_TIMEOUT = 20.0
"""Seconds for a worker to read its code and that of handlers."""


class Successor:
    """
    Args:
        code: what it runs.
        ready: called when it can take over.
        refuse: called with the reason when it cannot; it is to be dismissed.

    Attributes:
        is_ready: it can take over.

    Raises:
        OSError: no process can be started.
    """

    def __init__(
        self, loop: EventLoop, code: WorkerCode, ready: Callable[[], None], refuse: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._ready = ready
        self._refuse = refuse
        self.is_ready = False
        worker = self._worker = WorkerProcess.spawn(code)
        loop.watch(worker.channel.fileno(), EPOLLIN, self._spoke)
        loop.watch(worker.pidfd, EPOLLIN, lambda _: refuse("it ended before it was ready"))
        self._timer = loop.call_later(
            START_TIMEOUT, lambda: refuse(f"it was not ready within {START_TIMEOUT:g} s")
        )

    def _spoke(self, _: int) -> None:
        if self.is_ready:
            return
        try:
            received = self._worker.receive()
        except EOFError:
            self._refuse("it ended before it was ready")
            return
        except StateError as error:
            self._refuse(f"it does not speak this process's language: {error}")
            return
        if received is None:
            return
        message, fds = received
        for fd in fds:
            os.close(fd)
        if not isinstance(message, Ready) or message.state_version != VERSION:
            version = message.state_version if isinstance(message, Ready) else None
            self._refuse(
                f"it keeps its state in another form (version {version}, not {VERSION}): "
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
        worker.reap()
