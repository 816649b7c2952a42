"""The behaviour of /dev/vportNpM, by the rules of Linux's console driver (drivers/char/virtio_console.c, port_fops_*).

Requests come in and replies go out through a RequestChannel.  This file does no I/O and copies no byte that can move at
once.  Memory is bounded: a waiting write is kept whole, and at most MAX_WAITING calls wait.
"""

from __future__ import annotations

import errno
import os
import select
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from virtserial.driver.cuse_wire import (
    FOPEN_DIRECT_IO,
    FOPEN_NONSEEKABLE,
    FUSE_INTERRUPT,
    FUSE_IOCTL,
    FUSE_OPEN,
    FUSE_POLL,
    FUSE_POLL_SCHEDULE_NOTIFY,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_WRITE,
    INTERRUPT_IN,
    MAX_TRANSFER,
    OPEN_OUT,
    POLL_IN,
    POLL_OUT,
    READ_IN,
    WITHOUT_REPLY,
    WRITE_OUT,
)
from virtserial.driver.ports import PortListener
from virtserial.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.driver.cuse_wire import Request
    from virtserial.driver.ports import Port

MAX_WAITING: Final = 64
"""The most reads and writes of one node that wait at a time, each in a thread of its program; more get EAGAIN."""

OPEN_SECONDS: Final = 1.0
"""Linux's driver spins in open(2) until the device has taken the message; we wait at most this long."""
SOON: Final = 0.0005
"""Seconds in which most devices have taken it."""

_READABLE: Final = select.POLLIN | select.POLLRDNORM
_WRITABLE: Final = select.POLLOUT


class RequestChannel(Protocol):
    """Where replies go."""

    def reply(self, unique: int, *payload: bytes | memoryview) -> bool:
        """Answer a request; False if its caller no longer waits."""
        ...

    def refuse(self, unique: int, error: int) -> None:
        """Answer a request by an errno."""
        ...

    def wake(self, handle: int) -> None:
        """Make the kernel poll the open file `handle` again."""
        ...


class _Waiting(NamedTuple):
    """A waiting read (of `size` bytes) or write (of `data`)."""

    unique: int
    size: int
    data: memoryview | None


class CuseNode(PortListener):
    """One port as a character device with one opener at a time.

    Args:
        port: opens and closes with the node.
        channel: takes the replies.
        released: called when the last user of an unplugged port has closed it.
    """

    def __init__(self, port: Port, channel: RequestChannel, released: Callable[[], None] = lambda: None) -> None:
        self._port = port
        self._channel = channel
        self._released = released
        self._in_use = False
        self._unplugged = False
        self._opens = 0
        self._reads: list[_Waiting] = []
        self._writes: list[_Waiting] = []
        self._poll_handle: int | None = None

    @property
    def in_use(self) -> bool:
        """Whether an application has the node open, also after an unplug."""
        return self._in_use

    # Requests

    def lend(self) -> list[memoryview]:
        """Views that the data of the next WRITE may be read into, MAX_TRANSFER bytes at most; [] for none.

        `handle` then receives None as data: the bytes are already in place.
        """
        if not self._in_use or self._unplugged or self._writes:
            return []
        return self._port.writable_views(MAX_TRANSFER)

    def handle(self, request: Request, data: memoryview | None, lent: int = 0) -> None:
        """Serve one request.

        Args:
            data: a WRITE's bytes, to be copied if they are kept; None if they are in the lent views.
            lent: how many bytes were lent.
        """
        opcode, unique, body = request
        if opcode in (FUSE_READ, FUSE_WRITE, FUSE_POLL) and not self._in_use:
            self._channel.refuse(unique, errno.EBADF)
        elif opcode == FUSE_READ and len(body) >= READ_IN.size:
            _, _, size, _, _, flags, _ = READ_IN.unpack_from(body)
            self._read(_Waiting(unique, size, None), bool(flags & os.O_NONBLOCK))
        elif opcode == FUSE_WRITE and len(body) >= READ_IN.size:
            _, _, size, _, _, flags, _ = READ_IN.unpack_from(body)
            if data is None:
                self._commit(unique, min(size, lent))
            else:
                self._write(_Waiting(unique, size, data[:size]), bool(flags & os.O_NONBLOCK))
        elif opcode == FUSE_POLL and len(body) >= POLL_IN.size:
            _, handle, flags, _ = POLL_IN.unpack_from(body)
            self._poll(unique, handle if flags & FUSE_POLL_SCHEDULE_NOTIFY else None)
        elif opcode == FUSE_OPEN:
            self._open(unique)
        elif opcode == FUSE_RELEASE:
            self._release(unique)
        elif opcode == FUSE_INTERRUPT and len(body) >= INTERRUPT_IN.size:
            self._interrupt(INTERRUPT_IN.unpack_from(body)[0])
        elif opcode not in WITHOUT_REPLY:
            self._channel.refuse(unique, errno.ENOTTY if opcode == FUSE_IOCTL else errno.ENOSYS)

    def _open(self, unique: int) -> None:
        if self._unplugged:
            self._channel.refuse(unique, errno.ENODEV)
        elif self._port.is_console:
            self._channel.refuse(unique, errno.ENXIO)
        elif self._in_use:
            self._channel.refuse(unique, errno.EBUSY)
        else:
            try:
                self._port.open(self)
            except StateError:
                self._channel.refuse(unique, errno.ENODEV if self._unplugged else errno.EBUSY)
                return
            self._in_use = True
            self._opens += 1
            self._wait_until_known()
            if not self._channel.reply(unique, OPEN_OUT.pack(self._opens, FOPEN_DIRECT_IO | FOPEN_NONSEEKABLE, 0)):
                self._close()

    def _wait_until_known(self) -> None:
        """After open(2) returns, a host that sends and leaves must find the port open."""
        started = time.monotonic()
        while not self._unplugged and not self._port.open_is_known:
            waited = time.monotonic() - started
            if waited > OPEN_SECONDS:
                return
            # At first only others' turn: most devices need microseconds.
            time.sleep(0 if waited < SOON else SOON)

    def _release(self, unique: int) -> None:
        self._close()
        self._channel.reply(unique)
        if self._unplugged:
            self._released()

    def _close(self) -> None:
        if not self._in_use:
            return
        self._in_use = False
        self._poll_handle = None
        self._refuse_waiting(errno.ENODEV)
        if not self._unplugged:
            self._port.close()

    def _interrupt(self, unique: int) -> None:
        for queue in (self._reads, self._writes):
            for waiting in queue:
                if waiting.unique == unique:
                    queue.remove(waiting)
                    self._channel.refuse(unique, errno.EINTR)
                    return

    # Reading

    def _read(self, read: _Waiting, nonblocking: bool) -> None:
        # Readers are served in order.
        if self._reads or not self._serve_read(read):
            self._wait(self._reads, read, nonblocking)

    def _serve_read(self, read: _Waiting) -> bool:
        """Answer a read; False if it has to wait."""
        if self._unplugged:
            self._channel.refuse(read.unique, errno.ENODEV)
            return True
        views = self._port.readable_views()
        if self._unplugged:  # The device broke a rule in this call.
            self._channel.refuse(read.unique, errno.ENODEV)
        elif views:
            piece = _front(views, min(read.size, MAX_TRANSFER))
            if self._channel.reply(read.unique, *piece):
                count = sum(map(len, piece))
                self._port.consume(count)
                self._watch_on(sum(map(len, views)) - count)
        elif self._port.host_connected:
            return False
        else:
            self._channel.reply(read.unique)
        return True

    def _watch_on(self, left: int) -> None:
        """Wake pollers after a read that left bytes: an application may wait for an edge without having read all."""
        if self._poll_handle is not None and sum(map(len, self._port.readable_views())) > left:
            self._wake()

    # Writing

    def _write(self, write: _Waiting, nonblocking: bool) -> None:
        if self._writes or not self._serve_write(write):
            self._wait(self._writes, write, nonblocking)

    def _serve_write(self, write: _Waiting) -> bool:
        if self._unplugged:
            self._channel.refuse(write.unique, errno.ENODEV)
            return True
        if not write.size:
            self._channel.reply(write.unique, WRITE_OUT.pack(0, 0))
            return True
        assert write.data is not None
        done = 0
        for view in self._port.writable_views(min(write.size, MAX_TRANSFER)):
            piece = write.data[done : done + len(view)]
            view[: len(piece)] = piece
            done += len(piece)
        if self._unplugged:
            self._channel.refuse(write.unique, errno.ENODEV)
        elif not done:
            return False
        else:
            self._commit(write.unique, done)
        return True

    def _commit(self, unique: int, count: int) -> None:
        self._port.commit(count)
        if self._unplugged:
            self._channel.refuse(unique, errno.ENODEV)
        else:
            self._channel.reply(unique, WRITE_OUT.pack(count, 0))

    # Waiting

    def _wait(self, queue: list[_Waiting], waiting: _Waiting, nonblocking: bool) -> None:
        if nonblocking or len(self._reads) + len(self._writes) >= MAX_WAITING:
            self._channel.refuse(waiting.unique, errno.EAGAIN)
        elif waiting.data is None:
            queue.append(waiting)
        else:
            kept = memoryview(bytes(waiting.data[:MAX_TRANSFER]))
            queue.append(_Waiting(waiting.unique, len(kept), kept))

    def _refuse_waiting(self, error: int) -> None:
        waiting = [*self._reads, *self._writes]
        self._reads.clear()
        self._writes.clear()
        for each in waiting:
            self._channel.refuse(each.unique, error)

    def _poll(self, unique: int, handle: int | None) -> None:
        self._poll_handle = handle
        self._channel.reply(unique, POLL_OUT.pack(self._events(), 0))

    def _events(self) -> int:
        """The node's poll mask; the port calls back when it changes."""
        if self._unplugged:
            return select.POLLHUP
        port = self._port
        away = not port.host_connected
        readable = bool(port.readable_views())
        writable = not self._unplugged and bool(port.writable_views(MAX_TRANSFER))
        if self._unplugged:
            return select.POLLHUP
        return (_READABLE if readable or away else 0) | (_WRITABLE if writable else 0) | (select.POLLHUP if away else 0)

    def _wake(self) -> None:
        handle, self._poll_handle = self._poll_handle, None
        if handle is not None:
            self._channel.wake(handle)

    # The port

    def port_readable(self) -> None:
        """Serve waiting reads: the port has bytes, or their end."""
        while self._reads:
            read = self._reads.pop(0)
            if not self._serve_read(read):
                self._reads.insert(0, read)
                break
        self._wake()

    def port_writable(self) -> None:
        """Serve waiting writes: the port has room."""
        while self._writes:
            write = self._writes.pop(0)
            if not self._serve_write(write):
                self._writes.insert(0, write)
                break
        self._wake()

    def port_unplugged(self) -> None:
        """The port was unplugged; every call of its user fails until the last close."""
        self.unplug()

    def unplug(self) -> None:
        """As port_unplugged, also if nobody has the port open."""
        if not self._unplugged:
            self._unplugged = True
            self._refuse_waiting(errno.ENODEV)
            self._wake()


def _front(views: Sequence[memoryview], size: int) -> list[memoryview]:
    """The first `size` bytes."""
    front = []
    for view in views:
        if size <= 0:
            break
        front.append(view[:size])
        size -= len(view)
    return front
