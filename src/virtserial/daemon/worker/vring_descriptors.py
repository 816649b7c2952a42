"""The descriptors that a vhost-user front end has given for its queues: kicks come in, interrupts and errors go out."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from virtserial.errors import PeerError
from virtserial.foreign import EventfdSignals
from virtserial.loop import EPOLLET, EPOLLIN
from virtserial.vhost_user.backend import CALL, ERR, KICK

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.accounting import Account
    from virtserial.loop import EventLoop


class VringDescriptors:
    """
    Args:
        loop: watches for kicks.
        count: how many queues there are.
        kicked: called with the queue's number, and what epoll tells.
        account: gets what is written.
        lost: called once when a descriptor made us wait: nothing is written any more, until `close`.
    """

    def __init__(
        self,
        loop: EventLoop,
        count: int,
        kicked: Callable[[int, int], None],
        account: Account,
        lost: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._kicked = kicked
        self._signals = EventfdSignals(account)
        self._signals.lost = lost
        self._fds = {purpose: [-1] * count for purpose in (KICK, CALL, ERR)}
        self._uncalled: set[int] = set()

    def take(self, purpose: int, index: int, fd: int) -> None:
        """Take a descriptor in the place of the last one; -1: there is none.

        Raises:
            PeerError: it cannot be used, and is closed.
        """
        fds = self._fds[purpose]
        if fd >= 0:
            try:
                if purpose == KICK:
                    # Edges: a counter that nobody reads raises one for each write, which saves the read.
                    self._loop.watch(fd, EPOLLIN | EPOLLET, partial(self._kicked, index))
                else:
                    # A hostile VMM may give a full pipe: writing to it must never wait.
                    os.set_blocking(fd, False)
            except OSError as error:
                os.close(fd)
                raise PeerError(f"queue {index}: a descriptor that cannot be used: {error.strerror}") from error
        if fds[index] >= 0:
            self._loop.unwatch(fds[index])
            os.close(fds[index])
        fds[index] = fd
        if purpose == CALL and fd >= 0 and index in self._uncalled:
            self._uncalled.discard(index)
            self.call(index)

    def call(self, index: int, purpose: int = CALL) -> None:
        """Interrupt for a queue; without a descriptor, when it gets one."""
        fd = self._fds[purpose][index]
        if fd < 0:
            self._uncalled.add(index)
            return
        self._signals.send(fd)

    def signal_errors(self) -> None:
        """Tell of an error by every queue that has a descriptor for it."""
        for index, fd in enumerate(self._fds[ERR]):
            if fd >= 0:
                self.call(index, ERR)

    def forget_interrupts(self) -> None:
        """Those that waited for a descriptor are of the past."""
        self._uncalled.clear()

    def close(self) -> None:
        """Close all."""
        for purpose, fds in self._fds.items():
            for index in range(len(fds)):
                self.take(purpose, index, -1)
        self._signals.begin()
