"""The channel between keeper and worker: whole messages with descriptors, over a SOCK_SEQPACKET pair.

A message is a JSON object with a "type"; the descriptors that belong to it come with it.  A message that was sent has
arrived, even if its sender dies the next moment: that is what the keeper's promise to hold a descriptor rests on.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import socket
import struct
import termios
import time
from typing import TYPE_CHECKING

from virtserial.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_MESSAGE = 64 << 10
MAX_FDS = 16
IN_FLIGHT_TIMEOUT = 4.0
"""Seconds to wait until descriptors that are under way have been received."""

Message = dict[str, object]


class Channel:
    """One end.

    Args:
        sock: a SOCK_SEQPACKET socket; the channel owns it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return two joined ends."""
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (a, b):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        return cls(a), cls(b)

    def fileno(self) -> int:
        """The descriptor, to be watched."""
        return self._socket.fileno()

    def set_send_timeout(self, seconds: int) -> None:
        """Let `send` raise BlockingIOError when the other end has not read for so long."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, 0))

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message; the descriptors stay the caller's too.

        Raises:
            OSError: the other end is gone; BlockingIOError: it has not read for too long.
            StateError: the message is too large.
        """
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > MAX_MESSAGE or len(fds) > MAX_FDS:
            raise StateError(f"channel message of {len(data)} bytes and {len(fds)} descriptors is too large")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        deadline = time.monotonic() + IN_FLIGHT_TIMEOUT
        while True:
            try:
                self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
                return
            except OSError as error:
                # A user may have no more descriptors under way than a process may have open (unix(7)).
                if error.errno != errno.ETOOMANYREFS:
                    raise
                if time.monotonic() > deadline:
                    raise BlockingIOError(error.errno, error.strerror) from None
            time.sleep(0.001)

    def unread(self) -> int:
        """How much of what was sent the other end has not yet received: bytes, as the kernel counts them."""
        return int(struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))[0])

    def receive(self, wait: bool = False) -> tuple[Message, list[int]] | None:
        """Return the next message and its descriptors (the caller's now), or None if there is none yet.

        Raises:
            EOFError: the other end is gone and everything it sent has been received.
            StateError: the message makes no sense; its descriptors are closed.
        """
        flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
        try:
            data, ancillary, message_flags, _ = self._socket.recvmsg(
                MAX_MESSAGE + 1, socket.CMSG_SPACE(4 * MAX_FDS), flags
            )
        except BlockingIOError:
            return None
        except ConnectionResetError:
            raise EOFError from None
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % 4])
        if not data:
            raise EOFError
        try:
            message = json.loads(data)
            if not isinstance(message, dict) or message_flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError("no JSON object, or cut short")
        except (ValueError, RecursionError) as error:
            for fd in fds:
                os.close(fd)
            raise StateError(f"channel message of {len(data)} bytes: {error}") from None
        return message, list(fds)

    def detach(self) -> int:
        """Give up the socket and return its descriptor."""
        return self._socket.detach()

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
