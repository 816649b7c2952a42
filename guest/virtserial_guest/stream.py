"""A port as a blocking byte stream, the common part of all kinds of ends.

An end implements the calls that never block (receive, send, connected, wait); this file builds the blocking calls from
them, and aio.py the ones for asyncio.  A stream serves one thread.
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
"""The most bytes of a line in readline(); a longer line is the peer's error."""


class PortStream:
    """One end of a port.

    The other end connects and disconnects: `connected` is its state; while it is away read() returns b"" and write()
    raises PeerAway.
    """

    def __init__(self) -> None:
        self._received = bytearray()

    # Implemented by each kind of end

    @property
    def connected(self) -> bool:
        """Whether the other end is connected."""
        raise NotImplementedError

    def receive(self, limit: int = READ_SIZE) -> bytes | None:
        """Return received bytes without waiting: b"" if the other end is away, None if nothing has come yet.

        Raises:
            PortRemoved: the port is gone.
        """
        raise NotImplementedError

    def send(self, buffers: Sequence[Buffer]) -> int:
        """Send as many bytes as the port takes without waiting; return their number, 0 if the other end is away.

        Raises:
            PortRemoved: the port is gone.
        """
        raise NotImplementedError

    def all_taken(self) -> bool:
        """Whether the other end has taken all that was sent; True where nothing tells."""
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until something may have changed since the last wait(); False after `timeout` seconds.

        Each change is reported once (as by edge-triggered epoll): try receive(), send() and connected before waiting.
        """
        raise NotImplementedError

    def fileno(self) -> int:
        """A descriptor that is readable while wait(0) would return True; -1 if the system has none."""
        return -1

    def next_attempt(self) -> float | None:
        """Seconds until wait(0) has work of its own, such as to connect again; None for never."""
        return None

    news_interval: float | None = None
    """Seconds after which news() may have something; None: it never has."""

    def news(self) -> list[str]:
        """Return lines about what has happened to the port since the last call, as far as its bytes do not tell."""
        return []

    def set_terminal_size(self, rows: int, columns: int) -> None:
        """Tell the port how large the terminal at this end is, if there is a way."""

    def probe(self) -> None:
        """Check that the port still exists while the other end is away.

        Raises:
            PortRemoved: the port is gone.
        """

    def close(self) -> None:
        """Close it; a second call does nothing."""

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Taking from received bytes, for both kinds of waiting

    def take(self, limit: int) -> bytes | None:
        """As receive(), but return the rest of an earlier readline() first."""
        if self._received:
            data = bytes(self._received[:limit])
            del self._received[:limit]
            return data
        return self.receive(limit)

    def take_exactly(self, count: int) -> bytes | None:
        """Return `count` bytes if they have come; fewer if the other end disconnected before; else None."""
        ended = False
        while len(self._received) < count and not ended:
            data = self.receive(max(count - len(self._received), 1))
            if data is None:
                return None
            self._received += data
            ended = not data
        return self.take(count) if self._received and count else b""

    def take_line(self) -> bytes | None:
        """Return a line with its end if it has come; the rest if the other end disconnected; else None.

        Raises:
            ValueError: the line is longer than LINE_LIMIT.
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
        """Wait for `count` bytes; return fewer if the other end disconnects before.

        Raises:
            TimeoutError, PortRemoved: as read(); received bytes stay for the next call.
        """
        return self._until(lambda: self.take_exactly(count), timeout)

    def readline(self, timeout: float | None = None) -> bytes:
        r"""Wait for a line and return it with its b"\n"; return the rest, or b"", if the other end disconnects before.

        Raises:
            TimeoutError, PortRemoved: as read(); received bytes stay for the next call.
            ValueError: the line is longer than LINE_LIMIT.
        """
        return self._until(self.take_line, timeout)

    def write(self, data: Buffer, timeout: float | None = None) -> None:
        """Send all of `data`, waiting while the other end is slow.

        Raises:
            PeerAway: the other end is away or disconnects; `written` is the number of bytes taken.
            TimeoutError: the port did not take all bytes in `timeout` seconds.
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
        """Wait until the other end is connected; False after `timeout` seconds.

        Raises:
            PortRemoved: the port is gone.
        """
        return self._wait_for(self._arrived, timeout)

    def wait_disconnected(self, timeout: float | None = None) -> bool:
        """Wait until the other end is away; False after `timeout` seconds.

        On the host this reads ahead, and keeps the bytes for read().
        """
        return self._wait_for(self.departed, timeout)

    def _arrived(self) -> bool:
        if not self.connected:
            self.probe()
            return self.connected
        return True

    def departed(self) -> bool:
        """Whether the other end is away, also if only an end of file shows it."""
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
    """An end that waits for edges with Linux's epoll.

    Levels do not work: a port whose other end is away is always readable and hung up, so a wait would never sleep.
    """

    EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET if hasattr(select, "epoll") else 0

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll()

    def fileno(self) -> int:
        """The epoll's descriptor, which stays the same over reconnects."""
        return self._epoll.fileno()

    def wait(self, timeout: float | None = None) -> bool:
        """See PortStream.wait."""
        return bool(self._epoll.poll(timeout))

    def watch(self, fd: int, events: int = getattr(select, "EPOLLIN", 0)) -> bool:
        """Make wait() return while another descriptor is readable, or has `events`; False for a file, which always is.
        """
        try:
            self._epoll.register(fd, events)
        except PermissionError:
            return False
        return True

    def unwatch(self, fd: int) -> None:
        """Undo watch()."""
        self._epoll.unregister(fd)

    def close(self) -> None:
        """See PortStream.close."""
        self._epoll.close()


def advance(buffers: list[Buffer], count: int) -> tuple[list[Buffer], int]:
    """Drop the first `count` bytes of a list of buffers; return the rest and its size."""
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
