"""A host end that ends by itself: its peer leaves, or breaks a protocol."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import TYPE_CHECKING

from virtserial.host_end.base import HostEnd

if TYPE_CHECKING:
    from virtserial.host_end.linger import Linger
    from virtserial.loop import EventLoop


class EndingStream(HostEnd):
    """Reports its end once, from the loop.

    Args:
        linger: limits how long it keeps what a host that left had sent; owned.  None: until it is read.
    """

    def __init__(self, loop: EventLoop, name: str, linger: Linger | None = None) -> None:
        super().__init__(name)
        self._loop = loop
        self._linger = linger
        self._finishing = False
        self._closed = False

    def _finish(self) -> None:
        """The connection is over: report it in a turn."""
        if self._finishing or self._closed:
            return
        self._finishing = True
        self.readable = False
        self._loop.add_turn(self._deliver_closed)

    def report_end(self) -> None:
        if self._finishing:
            self._deliver_closed()

    def _deliver_closed(self) -> None:
        if self._closed or self.ended:
            return
        self.input_discarded += self._unread_bytes()
        self.connected = False
        self.ended = True
        self._stop_watching()
        if self._linger is not None:
            self._linger.end()
        self.listener.host_closed()

    def _host_has_left(self) -> None:
        """The host has left, and not all that it sent is read."""
        if self._linger is not None:
            self._linger.begin(self._unread_bytes, self._finish)

    def _unread_bytes(self) -> int:
        """Bytes that the peer sent and that are not read."""
        raise NotImplementedError

    def _stop_watching(self) -> None:
        """Unwatch all descriptors."""
        raise NotImplementedError


def unread_bytes(fd: int) -> int:
    """Bytes that a descriptor holds to be read (FIONREAD)."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])
    except OSError:
        return 0


def has_ended(fd: int) -> bool:
    """Whether a socket's stream has ended and nothing of it is unread; FIONREAD is also 0 before urgent data."""
    peer = socket.socket(fileno=fd)
    try:
        return not peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        peer.detach()
