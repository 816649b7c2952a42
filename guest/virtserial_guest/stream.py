"""A port as a byte stream: what all kinds of ends have in common, blocking.

Whoever implements an end gives the calls that never block (receive, send, connected, wait); those that wait are made of
them here, and once more for asyncio in aio.py.  A stream serves one thread.
"""

from __future__ import annotations

import select
import time
from typing import Callable, Sequence, TypeVar, Union

from .errors import PeerAway

Buffer = Union[bytes, bytearray, memoryview]
T = TypeVar("T")
S = TypeVar("S", bound="PortStream")

READ_SIZE = 1 << 18
LINE_LIMIT = 1 << 20
"""What readline() takes into memory at most; a longer line is an error of the peer's."""


class PortStream:
    """One end of a port.

    The other end comes and goes: `connected` tells, read() gives b"" while it is away, write() raises PeerAway.
    """

    def __init__(self) -> None:
        self._received = bytearray()

    # What an end implements

    @property
    def connected(self) -> bool:
        """Whether the other end is there."""
        raise NotImplementedError

    def receive(self, limit: int = READ_SIZE) -> bytes | None:
        """Take what has come, without waiting: b"" if the other end is away, None if nothing has come yet.

        Raises:
            PortRemoved: the port is gone.
        """
        raise NotImplementedError

    def send(self, buffers: Sequence[Buffer]) -> int:
        """Give as many bytes as are taken without waiting; 0 where none are, or the other end is away.

        Raises:
            PortRemoved: the port is gone.
        """
        raise NotImplementedError

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until something may have changed since the last wait(); False after `timeout` seconds.

        Changes are told once each (as by edge-triggered epoll): try receive(), send() and connected before waiting.
        """
        raise NotImplementedError

    def fileno(self) -> int:
        """A descriptor that is readable while wait(0) would return True; -1 where the system has no such thing."""
        return -1

    def next_attempt(self) -> float | None:
        """Seconds until wait(0) has something to do by itself, such as to connect again; None for never."""
        return None

    def probe(self) -> None:
        """While the other end is away: look whether the port is still there.

        Raises:
            PortRemoved: it is not.
        """

    def close(self) -> None:
        """Close it; any number of calls."""

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Taking from what has come, for both kinds of waiting

    def take(self, limit: int) -> bytes | None:
        """As receive(), what an earlier readline() has left over first."""
        if self._received:
            data = bytes(self._received[:limit])
            del self._received[:limit]
            return data
        return self.receive(limit)

    def take_exactly(self, count: int) -> bytes | None:
        """`count` bytes if they have come; fewer if the other end went away before; else None."""
        ended = False
        while len(self._received) < count and not ended:
            data = self.receive(max(count - len(self._received), 1))
            if data is None:
                return None
            self._received += data
            ended = not data
        return self.take(count) if self._received and count else b""

    def take_line(self) -> bytes | None:
        """A line with its end if it has come; what there is if the other end went away; else None.

        Raises:
            ValueError: it is longer than LINE_LIMIT.
        """
        while b"\n" not in self._received:
            data = self.receive(READ_SIZE)
            if data is None:
                return None
            if not data:
                line = bytes(self._received)
                self._received.clear()
                return line
            if len(self._received) + len(data) > LINE_LIMIT and b"\n" not in data:
                self._received.clear()
                raise ValueError(f"the other end sent a line of more than {LINE_LIMIT} bytes")
            self._received += data
        return self.take(self._received.index(b"\n") + 1)

    # Waiting

    def read(self, limit: int = READ_SIZE, timeout: float | None = None) -> bytes:
        """Wait for bytes and return up to `limit` of them; b"" if the other end is away.

        Raises:
            TimeoutError: nothing came in `timeout` seconds.
            PortRemoved: the port is gone.
        """
        return self._until(lambda: self.take(limit), timeout)

    def readexactly(self, count: int, timeout: float | None = None) -> bytes:
        """Wait for `count` bytes; fewer if the other end goes away before.

        Raises:
            TimeoutError, PortRemoved: as read(); what has come stays for the next call.
        """
        return self._until(lambda: self.take_exactly(count), timeout)

    def readline(self, timeout: float | None = None) -> bytes:
        r"""Wait for a line and return it with its b"\n"; without, or b"", if the other end goes away before.

        Raises:
            TimeoutError, PortRemoved: as read(); what has come stays for the next call.
            ValueError: it is longer than LINE_LIMIT.
        """
        return self._until(self.take_line, timeout)

    def write(self, data: Buffer, timeout: float | None = None) -> None:
        """Give all of `data` to the port, waiting while the other end is slow.

        Raises:
            PeerAway: the other end is away or went away; its `written` tells how much was taken.
            TimeoutError: not all was taken in `timeout` seconds.
            PortRemoved: the port is gone.
        """
        view = memoryview(data).cast("B")
        done = 0

        def step() -> bool | None:
            nonlocal done
            while done < len(view):
                taken = self.send([view[done:]])
                done += taken
                if not taken:
                    if self.connected:
                        return None
                    raise PeerAway("the other end is not connected", done)
            return True

        self._until(step, timeout)

    def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait until the other end is there; False if it is not in `timeout` seconds.

        Raises:
            PortRemoved: the port is gone.
        """
        return self._wait_for(self._arrived, timeout)

    def wait_disconnected(self, timeout: float | None = None) -> bool:
        """Wait until the other end is away; False if it is not in `timeout` seconds.

        On the host this takes a look at what comes, and keeps it for read().
        """
        return self._wait_for(self.departed, timeout)

    def _arrived(self) -> bool:
        if not self.connected:
            self.probe()
            return self.connected
        return True

    def departed(self) -> bool:
        """Whether the other end is away, also where only an end of what comes tells it."""
        return not self.connected

    def _wait_for(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        try:
            return self._until(lambda: condition() or None, timeout)
        except TimeoutError:
            return False

    def _until(self, attempt: Callable[[], T | None], timeout: float | None) -> T:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            result = attempt()
            if result is not None:
                return result
            left = None if deadline is None else deadline - time.monotonic()
            if (left is not None and left <= 0) or not self.wait(left):
                result = attempt()
                if result is not None:
                    return result
                raise TimeoutError(f"nothing happened on the port in {timeout} s")


class EpollStream(PortStream):
    """An end whose changes Linux's epoll tells, edge by edge.

    Level by level it would not do: a port whose other end is away is readable and hung up all the time, and whoever
    waits for that would never sleep.
    """

    EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET if hasattr(select, "epoll") else 0

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll()

    def fileno(self) -> int:
        """The epoll's descriptor: it stays the same over reconnects."""
        return self._epoll.fileno()

    def wait(self, timeout: float | None = None) -> bool:
        """See PortStream.wait."""
        return bool(self._epoll.poll(timeout))

    def watch(self, fd: int) -> bool:
        """Let wait() return while another descriptor is readable; False for a file, which always is."""
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except PermissionError:
            return False
        return True

    def unwatch(self, fd: int) -> None:
        """The opposite of watch()."""
        self._epoll.unregister(fd)

    def close(self) -> None:
        """See PortStream.close."""
        self._epoll.close()


def advance(buffers: list[Buffer], count: int) -> tuple[list[Buffer], int]:
    """Drop the first `count` bytes of a list of buffers; returns what is left and how many bytes that is."""
    left: list[Buffer] = []
    size = 0
    for buffer in buffers:
        if count >= len(buffer):
            count -= len(buffer)
            continue
        rest = memoryview(buffer)[count:] if count else buffer
        count = 0
        left.append(rest)
        size += len(rest)
    return left, size
