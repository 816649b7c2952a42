"""The rest of a host that has left: what it sent and the guest has not read.

| who could come next | the rest is kept until |
|---|---|
| nobody (a client that does not reconnect, a pair of sockets) | the guest reads it or closes the port |
| a client, at a listening socket | one waits there, and the guest has not read for LINGER_SECONDS since |
| the server again (`reconnect-ms`) | the guest has not read for LINGER_SECONDS |

QEMU's socket chardev drops what it had not read as soon as it sees the hang-up.  Kept for ever, it would keep the next
host out.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from virtserial.loop import EPOLLIN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.channel.connections import LayeredConnection, SocketConnection
    from virtserial.loop import EventLoop, Timer

LINGER_SECONDS = 1.0


def make_linger(
    loop: EventLoop, connection: SocketConnection | LayeredConnection, listeners: Sequence[int]
) -> Linger | None:
    """Return the Linger of a connection, None if no other host can come."""
    return Linger(loop, listeners) if listeners or connection.reconnects else None


class Linger:
    """
    Args:
        listeners: the listening sockets, owned; without one, another host counts as waiting.
    """

    __slots__ = ("_begun", "_count", "_give_up", "_listeners", "_loop", "_timer", "_unread")

    def __init__(self, loop: EventLoop, listeners: Sequence[int] = ()) -> None:
        self._loop = loop
        self._listeners = listeners
        self._begun = False
        self._timer: Timer | None = None
        self._unread = 0
        self._count: Callable[[], int] | None = None
        self._give_up: Callable[[], None] | None = None

    def begin(self, count: Callable[[], int], give_up: Callable[[], None]) -> None:
        """The host has left.  Only the first call counts.

        Args:
            count: tells how many bytes of the rest there are.
            give_up: ends the connection.
        """
        if self._begun:
            return
        self._begun = True
        self._count, self._give_up = count, give_up
        self._watch()
        if not self._listeners:
            self._start_timer()

    def _watch(self) -> None:
        for fd in self._listeners:
            self._loop.watch(fd, EPOLLIN, self._somebody_waits)

    def _somebody_waits(self, _events: int) -> None:
        self._unwatch()
        if self._timer is None:
            self._start_timer()

    def _start_timer(self) -> None:
        assert self._count is not None
        self._unread = self._count()
        self._timer = self._loop.call_later(LINGER_SECONDS, self._look)

    def _look(self) -> None:
        assert self._count is not None
        assert self._give_up is not None
        if self._listeners and not self._is_waited_for():
            # Who came was served beside this one (host_end/clients.py).
            self._timer = None
            self._watch()
        elif self._count() == self._unread:
            self._give_up()
        else:
            self._start_timer()

    def _is_waited_for(self) -> bool:
        poll = select.poll()
        for fd in self._listeners:
            poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

    def _unwatch(self) -> None:
        for fd in self._listeners:
            self._loop.unwatch(fd)

    def end(self) -> None:
        """The connection is over."""
        if self._timer is not None:
            self._timer.cancel()
        if self._begun:
            self._unwatch()

    def close(self) -> None:
        """Close the listening sockets, in this process."""
        self.end()
        for fd in self._listeners:
            os.close(fd)
        self._listeners = ()
