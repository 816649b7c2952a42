"""The deliberate close of a VMM's socket: shutdown(SHUT_WR), drain, close.

QEMU aborts its VM when the socket closes with bytes in it that nobody has read.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.loop import EventLoop

DRAIN_TIME = 0.2
"""Seconds a closing socket is still read, so that nothing is unread in it when it closes."""
_LOOK_AGAIN = 0.005
_READS = 16
"""At most so many reads at a time: a peer that never stops sending must not hold us."""


def close_vmm(loop: EventLoop, fd: int) -> None:
    """Close a VMM's socket; returns at once, the loop does the waiting."""
    _shut_down(fd)
    _close_when_drained(loop, fd, loop.now() + DRAIN_TIME)


def close_vmms_now(fds: Sequence[int]) -> None:
    """Close VMMs' sockets, and wait for that."""
    for fd in fds:
        _shut_down(fd)
    remaining = list(fds)
    deadline = time.monotonic() + DRAIN_TIME
    while (remaining := [fd for fd in remaining if not _drain(fd)]) and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN)
    for fd in fds:
        os.close(fd)


def _close_when_drained(loop: EventLoop, fd: int, deadline: float) -> None:
    if _drain(fd) or loop.now() >= deadline:
        os.close(fd)
    else:
        loop.call_later(_LOOK_AGAIN, lambda: _close_when_drained(loop, fd, deadline))


def _shut_down(fd: int) -> None:
    """Announce the end to the peer: QEMU then stops sending."""
    with socket.socket(fileno=os.dup(fd)) as sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.shutdown(socket.SHUT_WR)


def _drain(fd: int) -> bool:
    """Read what is there; True when the peer has closed its end."""
    try:
        for _ in range(_READS):
            if not os.read(fd, 65536):
                return True
    except BlockingIOError:
        pass
    except OSError:
        return True
    return False
