"""What a keeper leaves to the program that takes its place: a document, and the descriptors that it speaks of.

All of it waits in one descriptor, the reading end of a SOCK_SEQPACKET pair: first the document, in a memory file, then
the descriptors, as many at a time as go with one message.  So it can stay open over an exec, or be left in a service
manager's store, and whoever closes it unread closes everything.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
from typing import TYPE_CHECKING

from virtserial.daemon.keeper.farewell import close_all
from virtserial.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VERSION = 2
"""Of the document.  What another version has left cannot be taken over."""
MAX_TOGETHER = 253
"""SCM_MAX_FD."""
MAX_DOCUMENT = 256 << 20
MAX_DESCRIPTORS = 1 << 18


class Handover:
    """A document in the making, or one that has come.

    Attributes:
        document: as JSON can carry it.
    """

    def __init__(self, document: dict[str, object] | None = None, descriptors: Sequence[int] = ()) -> None:
        self.document: dict[str, object] = {} if document is None else document
        self._descriptors: list[int | None] = list(descriptors)

    def put(self, fd: int) -> int:
        """Add a descriptor, which stays its owner's; return its number for `take`."""
        self._descriptors.append(fd)
        return len(self._descriptors) - 1

    def take(self, number: int) -> int:
        """Return a descriptor, the caller's from now on.

        Raises:
            StateError: there is none of that number, or it was taken.
        """
        fd = self._descriptors[number] if 0 <= number < len(self._descriptors) else None
        if fd is None:
            raise StateError(f"what was left has no descriptor {number}")
        self._descriptors[number] = None
        return fd

    def rest(self) -> list[int]:
        """Take all that nobody has taken."""
        left = [fd for fd in self._descriptors if fd is not None]
        self._descriptors = [None] * len(self._descriptors)
        return left

    def pack(self) -> int:
        """Return a descriptor that holds all of it, for `unpack`; the caller's.

        Raises:
            OSError: the kernel does not let so much be under way.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            ours.setblocking(False)
            document = write_document(self.document)
            try:
                _send(ours, len(self._descriptors).to_bytes(4, "little"), [document])
            finally:
                os.close(document)
            for start in range(0, len(self._descriptors), MAX_TOGETHER):
                together = [fd for fd in self._descriptors[start : start + MAX_TOGETHER] if fd is not None]
                _send(ours, b"+", together)
            return theirs.detach()

    @classmethod
    def unpack(cls, fd: int) -> Handover:
        """Return what `pack` was asked of; `fd` is closed.

        Raises:
            StateError: it is none, only a part of one, or of another version; the descriptors are closed, those of VMMs
                as they should be.
        """
        descriptors: list[int] = []
        try:
            queue = socket.socket(fileno=fd)
        except OSError as error:
            os.close(fd)
            raise StateError(f"what was left to take over makes no sense: {error.strerror}") from error
        try:
            with queue:
                queue.setblocking(False)
                count, document = _receive(queue)
                descriptors += document
                wanted = int.from_bytes(count, "little")
                while len(descriptors) - 1 < wanted <= MAX_DESCRIPTORS:
                    descriptors += _receive(queue)[1]
            if len(document) != 1 or len(descriptors) - 1 != wanted:
                raise StateError(f"{len(descriptors) - 1} descriptors of {wanted}")
            read = read_document(document[0])
        except (OSError, StateError) as error:
            close_all(descriptors)
            raise StateError(f"what was left to take over makes no sense: {error}") from error
        os.close(descriptors.pop(0))
        return cls(read, descriptors)


def _send(sender: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    sender.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def _receive(queue: socket.socket) -> tuple[bytes, list[int]]:
    data, ancillary, flags, _ = queue.recvmsg(16, socket.CMSG_SPACE(4 * MAX_TOGETHER), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) & ~3])
    if not fds or flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise StateError("a message without its descriptors")
    return data, list(fds)


def write_document(document: Mapping[str, object]) -> int:
    """Return a memory file with a document, of this version; the caller's."""
    fd = os.memfd_create("virtserial handover", os.MFD_CLOEXEC)
    try:
        text = memoryview(json.dumps({**document, "version": VERSION}).encode())
        while text:
            text = text[os.write(fd, text) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_document(fd: int) -> dict[str, object]:
    """Return what `write_document` has written; `fd` stays the caller's.

    Raises:
        StateError: it is of another version, or no document.
        OSError: it is no file.
    """
    size = os.fstat(fd).st_size
    if not 0 < size <= MAX_DOCUMENT:
        raise StateError(f"a document of {size} bytes")
    try:
        with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as memory:
            document = json.loads(memory[:])
    except (ValueError, RecursionError) as error:
        raise StateError(f"no document: {error}") from None
    version = document.pop("version", None) if isinstance(document, dict) else None
    if version != VERSION:
        raise StateError(f"it is of version {version}, and this program reads version {VERSION}")
    assert isinstance(document, dict)
    return document
