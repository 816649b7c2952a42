"""Log lines over a port; a spool keeps them while the other end is away (docs/file-protocol.md)."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections import deque
from typing import TYPE_CHECKING, BinaryIO, Callable

from .conversation import Party
from .errors import ProtocolError

if TYPE_CHECKING:
    from .link import Link
    from .stream import EpollStream

SENDER, COLLECTOR = b"virtserial/log", b"virtserial/log-collector"
LINES, TAKEN, END = 1, 2, 3
_LINES = struct.Struct("<8sQQQ")
"""The sender's id, the first line's number, lines dropped so far, and how many of these the collector knows of."""
_NUMBER = struct.Struct("<Q")
BATCH = 1 << 16
LINE_LIMIT = 1 << 14
"""The most bytes of a line; longer lines are split."""
SPOOL = 1 << 20
"""The default size of the spool in bytes."""


class LogInput:
    """A source of lines: a pipe, a terminal, /dev/kmsg, or a file that is read to its end or followed."""

    def __init__(self, fd: int, stream: EpollStream, follow: bool = False) -> None:
        """Take over a descriptor; the program waits for it together with the port."""
        self._fd = fd
        self._stream = stream
        self._follow = follow
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        if not self._is_file:
            os.set_blocking(fd, False)
        self._watched = not self._is_file and stream.watch(fd)
        self._rest = b""
        self.ended = False

    @property
    def keeps(self) -> bool:
        """Whether unread lines stay readable later, so that none need be dropped."""
        return self._is_file

    def read(self) -> list[bytes]:
        """Return the available lines, each with its end."""
        if self.ended:
            return []
        try:
            data = os.read(self._fd, BATCH)
        except BlockingIOError:
            return []
        except OSError as error:
            # /dev/kmsg: the kernel overwrote unread records; the next read continues after them.
            if error.errno == errno.EPIPE:
                return [b"virtserial: kernel messages were overwritten\n"]
            if error.errno != errno.EIO:
                raise
            data = b""
        if not data:
            if self._follow:
                return []
            self.ended = True
            if self._watched:
                self._stream.unwatch(self._fd)
            rest, self._rest = self._rest, b""
            return [rest + b"\n"] if rest else []
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) >= LINE_LIMIT:
            lines.append(self._rest[:LINE_LIMIT])
            self._rest = self._rest[LINE_LIMIT:]
        return [line + b"\n" for line in lines]


class LogSender(Party):
    """Sends lines, and keeps each until the collector has taken it.

    Attributes:
        dropped: lines dropped from the full spool, the oldest first.
    """

    purpose, partner = SENDER, COLLECTOR

    def __init__(self, source: LogInput, link: Link, spool: int = SPOOL) -> None:
        """A sender of `source`'s lines that keeps up to `spool` bytes of them."""
        self._source = source
        self._link = link
        self._limit = spool
        self._identity = os.urandom(8)
        self._lines: deque[bytes] = deque()
        self._first = self._next = 0
        self._size = 0
        self._said_end = False
        self._announced = self._told = 0
        self.dropped = 0
        self.finished = False

    def established(self) -> None:
        """See Party: send lines again that the collector has not confirmed; it skips those that it has."""
        self._next = self._first
        self._said_end = False

    def lost(self) -> None:
        """See Party."""

    def message(self, kind: int, payload: bytes) -> None:
        """See Party."""
        if kind == END:
            self.finished = self._source.ended and not self._lines
            return
        if kind != TAKEN or len(payload) != _NUMBER.size:
            raise ProtocolError(f"the collector sent a message of kind {kind}")
        (taken,) = _NUMBER.unpack(payload)
        while self._lines and self._first < min(taken, self._next):
            self._drop_first()
        self._told = self._announced

    def pump(self) -> bool:
        """See Party."""
        read = self._read()
        sent = False
        while self._link.established and self._link.room and self._next < self._first + len(self._lines):
            batch: list[bytes] = []
            size = 0
            for number in range(self._next - self._first, len(self._lines)):
                if size >= BATCH:
                    break
                batch.append(self._lines[number])
                size += len(batch[-1])
            head = _LINES.pack(self._identity, self._next, self.dropped, self._told)
            self._link.send(LINES, head, *batch)
            self._announced = self.dropped
            self._next += len(batch)
            sent = True
        if self._source.ended and not self._lines and self._link.established and not self._said_end:
            self._link.send(END)
            self._said_end = True
        return read or sent

    def _read(self) -> bool:
        if self._source.keeps and self._size >= self._limit:
            return False
        lines = self._source.read()
        for line in lines:
            self._lines.append(line)
            self._size += len(line)
        if not self._source.keeps:
            while self._size > self._limit:
                self._drop_first()
                self.dropped += 1
        return bool(lines)

    def _drop_first(self) -> None:
        self._size -= len(self._lines.popleft())
        self._first += 1
        self._next = max(self._next, self._first)


class LogCollector(Party):
    """Takes each line once, and reports missing ones."""

    purpose, partner = COLLECTOR, SENDER

    def __init__(self, output: BinaryIO, link: Link, once: bool, say: Callable[[str], None]) -> None:
        """A collector.

        Args:
            output: gets the lines.
            link: to the sender.
            once: finish when the sender does.
            say: takes a text about missing lines.
        """
        self._output = output
        self._link = link
        self._once = once
        self._say = say
        self._identity: bytes | None = None
        self._expected = self._known = 0
        self.finished = False

    def established(self) -> None:
        """See Party."""

    def lost(self) -> None:
        """See Party."""

    def message(self, kind: int, payload: bytes) -> None:
        """See Party.

        Raises:
            OSError: the output failed; the sender keeps the line.
        """
        if kind == END:
            self._link.send(END)
            self.finished = self._once
            return
        if kind != LINES or len(payload) < _LINES.size:
            raise ProtocolError(f"the sender sent a message of kind {kind}")
        identity, number, dropped, told = _LINES.unpack_from(payload)
        lines = [line + b"\n" for line in payload[_LINES.size :].split(b"\n")[:-1]]
        if identity != self._identity:
            self._identity, self._expected, self._known = identity, number, told
        if dropped > self._known:
            self._say(f"{dropped - self._known} lines are missing: the spool was full")
            self._known = dropped
        self._expected = max(self._expected, number)
        new = lines[self._expected - number :]
        if new:
            self._output.write(b"".join(new))
            self._output.flush()
            self._expected += len(new)
        self._link.send(TAKEN, _NUMBER.pack(self._expected))

    def pump(self) -> bool:
        """See Party."""
        return False
