"""The signals that end a device process or renew its code; none is lost when a new program takes its place."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

from virtserial.loop import EPOLLIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.loop import EventLoop, Timer

RETRY_SECONDS = 1.0
"""Until the next try of a renewal, if something else was being replaced; the signal may come again and again."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RENEWING = signal.SIGUSR2


def keep_children() -> None:
    """Let children wait to be reaped, whatever whoever started this process has set: where SIGCHLD is ignored, the
    kernel reaps them, and with them how they ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class Signals:
    """SIGTERM, SIGINT and SIGHUP stop the loop; those that a predecessor has passed on come first.

    Args:
        renew: does what SIGUSR2 asks for; False: it is to be tried later.  None leaves that signal alone.
    """

    def __init__(self, loop: EventLoop, renew: Callable[[], bool] | None = None) -> None:
        self._loop = loop
        self._retry: Timer | None = None
        self._renew = renew
        self._numbers = ENDING if renew is None else (*ENDING, RENEWING)
        self._waiting: set[int] = set()
        self._wakeup, writer = socket.socketpair()
        self._wakeup.setblocking(False)
        writer.setblocking(False)
        for number in self._numbers:
            signal.signal(number, lambda number, _: self._waiting.add(number))
        signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
        loop.watch(self._wakeup.fileno(), EPOLLIN, self._came)
        self.let_come()

    def _came(self, _: int) -> None:
        self._wakeup.recv(64)
        if self._waiting.intersection(ENDING):
            # It stays: what else is done before the loop stops may be that another program takes this one's place.
            self._loop.stop()
        elif RENEWING in self._waiting and self._retry is None:
            self._renew_now()

    def _renew_now(self) -> None:
        self._retry = None
        if self._renew is None or self._renew():
            self._waiting.discard(RENEWING)
        else:
            self._retry = self._loop.call_later(RETRY_SECONDS, self._renew_now)

    def pass_on(self) -> None:
        """Let signals wait for the program that is about to be executed, those that have come and changed nothing too.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        for number in self._waiting:
            os.kill(os.getpid(), number)

    def let_come(self) -> None:
        """Let signals wait no more."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)
