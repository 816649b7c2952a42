"""The channel between keeper and worker: whole messages with descriptors, over a SOCK_SEQPACKET pair.

A message is a record of channel/messages.py, as JSON; the descriptors that belong to it come with it.  A message that
was sent has arrived, even if its sender dies the next moment: that is what the keeper's promise to hold a descriptor
rests on.
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
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from virtserial.channel.codec import OneOf, decode, encode
from virtserial.channel.messages import (
    DESCRIPTORS,
    FROM_KEEPER,
    FROM_WORKER,
    MAX_FDS,
    NO_DESCRIPTOR,
    FromKeeper,
    FromWorker,
)
from virtserial.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_MESSAGE = 64 << 10
IN_FLIGHT_TIMEOUT = 4.0
"""Seconds to wait until descriptors that are under way have been received."""

Sent = TypeVar("Sent")
Sendable = TypeVar("Sendable", contravariant=True)
Received = TypeVar("Received")


class Send(Protocol[Sendable]):
    """Sends to the other process; the descriptors stay the caller's too."""

    def __call__(self, message: Sendable, fds: Sequence[int] = ()) -> None: ...


class Channel(Generic[Sent, Received]):
    """One end.

    Args:
        sock: a SOCK_SEQPACKET socket; the channel owns it.
        receives: the messages that may come.
    """

    def __init__(self, sock: socket.socket, receives: OneOf[Received]) -> None:
        self._socket = sock
        self._receives = receives

    def fileno(self) -> int:
        """The descriptor, to be watched."""
        return self._socket.fileno()

    def set_send_timeout(self, seconds: int) -> None:
        """Let `send` raise BlockingIOError when the other end has not read for so long."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, 0))

    def send(self, message: Sent, fds: Sequence[int] = ()) -> None:
        """Send a message; the descriptors stay the caller's too.

        Raises:
            OSError: the other end is gone; BlockingIOError: it has not read for too long.
            StateError: the message is too large.
        """
        data = json.dumps(encode(message), separators=(",", ":")).encode()
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

    def receive(self, wait: bool = False) -> tuple[Received, list[int]] | None:
        """Return the next message and its descriptors (the caller's now), or None if there is none yet.

        Raises:
            EOFError: the other end is gone and everything it sent has been received.
            StateError: it is no message, or not one with that many descriptors; they are closed.
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
        for level, rights, payload in ancillary:
            if level == socket.SOL_SOCKET and rights == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % 4])
        if not data:
            _close(fds)
            raise EOFError
        try:
            if message_flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise StateError("cut short")
            message = decode(self._receives, json.loads(data))
            if len(fds) not in DESCRIPTORS.get(type(message), NO_DESCRIPTOR):
                raise StateError(f"{type(message).__name__} with {len(fds)} descriptors")
        except (ValueError, RecursionError, StateError) as error:
            _close(fds)
            raise StateError(f"channel message of {len(data)} bytes: {error}") from None
        return message, list(fds)

    def detach(self) -> int:
        """Give up the socket and return its descriptor."""
        return self._socket.detach()

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


KeeperEnd = Channel[FromKeeper, FromWorker]
"""The keeper's."""
WorkerEnd = Channel[FromWorker, FromKeeper]
"""The worker's."""


def worker_end(sock: socket.socket) -> WorkerEnd:
    """Return the worker's end, over its socket."""
    return Channel(sock, FROM_KEEPER)


def channel_pair() -> tuple[KeeperEnd, WorkerEnd]:
    """Return two joined ends, the keeper's first."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    return Channel(ours, FROM_WORKER), worker_end(theirs)
