"""A host end that comes to an end of itself: its peer leaves, or breaks a protocol."""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import TYPE_CHECKING

from virtserial.host_end.base import HostEnd

if TYPE_CHECKING:
    from virtserial.host_end.linger import Linger
    from virtserial.loop import EventLoop


class EndingStream(HostEnd):
    """Tells of its end once, from the loop and not from inside a call.

    Args:
        linger: how long what a host has left is kept, and closed with this; None: until it is read.
    """

    def __init__(self, loop: EventLoop, name: str, linger: Linger | None = None) -> None:
        super().__init__(name)
        self._loop = loop
        self._linger = linger
        self._finishing = False
        self._closed = False

    def _finish(self) -> None:
        """Nothing more will come: let the loop say so."""
        if self._finishing or self._closed:
            return
        self._finishing = True
        self.readable = False
        self._loop.add_turn(self._deliver_closed)

    def _deliver_closed(self) -> None:
        if self._closed:
            return
        self.input_discarded += self._unread_bytes()
        self.connected = False
        self.ended = True
        self._stop_watching()
        if self._linger is not None:
            self._linger.end()
        self.listener.host_closed()

    def _host_has_left(self) -> None:
        """What it sent is still to be read: not for ever, if another host could come."""
        if self._linger is not None:
            self._linger.begin(self._unread_bytes, self._finish)

    def _unread_bytes(self) -> int:
        """How much the peer sent that nobody will read."""
        raise NotImplementedError

    def _stop_watching(self) -> None:
        """Let go of what the loop does for it."""
        raise NotImplementedError


def unread_bytes(fd: int) -> int:
    """What waits in a descriptor to be read (FIONREAD)."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])
    except OSError:
        return 0
