"""The deliberate close of a VMM's socket: shutdown(SHUT_WR), drain, close.

QEMU aborts its VM when the socket closes with bytes in it that nobody has read.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from typing import TYPE_CHECKING

from virtserial.closing import MAX_RIGHTS, close_foreign, drain, received_descriptors

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from virtserial.loop import EventLoop

DRAIN_TIME = 0.2
"""Seconds a closing socket is still read, so that nothing is unread in it when it closes."""
_LOOK_AGAIN = 0.005
_LAST_READS = 4096
_READS = 16
"""At most so many reads at a time: a peer that never stops sending must not hold us."""


class Farewell:
    """Closes VMMs' sockets, and knows those that it has not yet closed."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._closing: set[int] = set()

    def close(self, fd: int) -> None:
        """Close a socket; returns at once, the loop does the waiting."""
        _shut_down(fd)
        self._closing.add(fd)
        self._close_when_drained(fd, self._loop.now() + DRAIN_TIME)

    def _close_when_drained(self, fd: int, deadline: float) -> None:
        if fd not in self._closing:
            return
        if _drain(fd) or self._loop.now() >= deadline:
            self._closing.remove(fd)
            _close(fd)
        else:
            self._loop.call_later(_LOOK_AGAIN, lambda: self._close_when_drained(fd, deadline))

    def finish(self, fds: Iterable[int] = ()) -> None:
        """Close these and all others that are not yet closed, and wait for that."""
        closing, self._closing = self._closing.union(fds), set()
        _close_now(closing)


def _close_now(fds: Collection[int]) -> None:
    for fd in fds:
        _shut_down(fd)
    remaining = list(fds)
    deadline = time.monotonic() + DRAIN_TIME
    while (remaining := [fd for fd in remaining if not _drain(fd)]) and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN)
    for fd in fds:
        _close(fd)


def _close(fd: int) -> None:
    with socket.socket(fileno=fd) as sock:
        drain(sock, _LAST_READS)


def close_all(fds: Collection[int]) -> None:
    """Close descriptors of any kind that nobody else will, those of connected UNIX sockets as a VMM's."""
    sockets = [fd for fd in fds if _is_connected_stream(fd)]
    for fd in set(fds).difference(sockets):
        os.close(fd)
    _close_now(sockets)


def _is_connected_stream(fd: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as sock:
        return (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM) and not sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        )


def _shut_down(fd: int) -> None:
    """Announce the end to the peer: QEMU then stops sending."""
    with socket.socket(fileno=os.dup(fd)) as sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.shutdown(socket.SHUT_WR)


def _drain(fd: int) -> bool:
    """Read what is there; True when the peer has closed its end."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            for _ in range(_READS):
                data, ancillary, _flags, _address = sock.recvmsg(65536, socket.CMSG_SPACE(4 * MAX_RIGHTS))
                for passed in received_descriptors(ancillary):
                    close_foreign(passed)
                if not data:
                    return True
        except BlockingIOError:
            pass
        except OSError:
            return True
    return False
