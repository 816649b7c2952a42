"""Bytes through descriptors: sockets, FIFOs, files and standard input and output as a host end.

A short read does not prove that a stream is drained: a terminal returns a piece at a time, and a socket ends a read
where a client passed descriptors (SCM_RIGHTS) or urgent data.  Another read to find out would be a system call that
mostly returns EAGAIN.  So epoll is left to tell:

| input is watched | while | after a short read |
|---|---|---|
| level-triggered | the host is there, and the port reads what it is told of | epoll tells of what is left: no call |
| silently: EPOLLET, no EPOLLIN | the port did not read what it was told of; `hold_input` | watch again |
| edge-triggered | the host has hung up, which epoll would tell at each look; a pty: always | arm epoll again |

Output is watched after a write that was cut short (`wait_writable`).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from virtserial.accounting import Account
from virtserial.errors import BackendError
from virtserial.host_end.buffers import IOV_MAX
from virtserial.host_end.ending import EndingStream, has_ended, unread_bytes
from virtserial.loop import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.host_end.linger import Linger
    from virtserial.loop import EventLoop

INPUT_EVENTS = EPOLLIN | EPOLLRDHUP | EPOLLET
_LEVEL_EVENTS = EPOLLIN | EPOLLRDHUP
_SILENT_EVENTS = EPOLLRDHUP | EPOLLET
HANG_UP = EPOLLHUP | EPOLLERR
_HUNG_UP = EPOLLRDHUP | HANG_UP

PEER_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EIO)
"""Errors of a socket, FIFO or pty whose other side has left.  EIO of a regular file is a failure instead."""


class DescriptorStream(EndingStream):
    """Reads from one descriptor and writes to another or the same; either may be None.

    When the peer of a descriptor used both ways hangs up, the port still reads what it sent before `host_closed`.  What
    the guest writes meanwhile is discarded and counted: a guest that writes before it reads must not wait for ever.

    Args:
        read_fd, write_fd: owned.
        account: gets what is read and written; None: nobody counts.
        linger: see EndingStream.
    """

    exact = True

    def __init__(
        self,
        loop: EventLoop,
        name: str,
        read_fd: int | None,
        write_fd: int | None,
        account: Account | None = None,
        linger: Linger | None = None,
    ) -> None:
        super().__init__(loop, name, linger)
        self._account = account or Account()
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._both_ways = read_fd is not None and read_fd == write_fd
        self._watched: set[int] = set()
        self._blocked = False
        self._held = False
        self._by_edges = False
        self._hung_up = False
        self._input_ended = False

    # Starting and ending

    def start(self) -> None:
        self.connected = True
        self.listener.host_opened()
        if self._closed:
            return
        self._watch_descriptors()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.connected = False
        self.readable = False
        self._stop_watching()
        if self._linger is not None:
            self._linger.close()
        for fd in {self._read_fd, self._write_fd} - {None}:
            os.close(fd)  # type: ignore[arg-type]

    def _wants_input_changed(self) -> None:
        if self._wants_input:
            self._input_wanted()
            return
        self._let_go()
        if self._hung_up:
            self._finish()
        else:
            self._leave_if_drained()

    def _input_wanted(self) -> None:
        """The guest has opened the port."""

    def _unread_bytes(self) -> int:
        return unread_bytes(self._read_fd) if self._both_ways and self._read_fd is not None else 0

    def _fail(self, what: str, error: OSError) -> BackendError:
        self.connected = False
        self.ended = True
        self.readable = False
        self._finishing = True
        self._stop_watching()
        return BackendError(f"{self.name}: {what}: {error.strerror}")

    # Watching

    def _watch_descriptors(self) -> None:
        if self._read_fd is not None and not self._watch(self._read_fd, self._input_events(), self._input_event):
            self.readable = True
            self._loop.add_turn(self._announce_readable)
        if self._write_fd is not None and not self._both_ways:
            self._watch(self._write_fd, EPOLLET, self._output_event)

    def _watch(self, fd: int, events: int, callback: Callable[[int], None]) -> bool:
        """Watch a descriptor; return False for a regular file or /dev/null, which is always ready."""
        try:
            self._loop.watch(fd, events, callback)
        except PermissionError:
            return False
        self._watched.add(fd)
        return True

    def _stop_watching(self) -> None:
        for fd in self._watched:
            self._loop.unwatch(fd)
        self._watched.clear()

    def _announce_readable(self) -> None:
        if self.readable:
            self.listener.host_readable()

    def _input_event(self, events: int) -> None:
        if events == EPOLLIN and not self._by_edges and not self._finishing:
            if self.readable:
                # The port was told and does not read now; when it does, it need not be told.
                self.hold_input()
            else:
                self.readable = True
                self.listener.host_readable()
            return
        if events & _HUNG_UP and not self._by_edges:
            self._by_edges = True
            self._rewatch_input()
        if self._both_ways:
            if events & HANG_UP:
                self._hang_up()
            elif events & EPOLLOUT:
                self._unblock()
        if events & EPOLLRDHUP:
            self._input_ended = True
            if self._wants_input:
                self._host_has_left()
            else:
                self._leave_if_drained()
        if events & (EPOLLIN | EPOLLRDHUP | HANG_UP) and not self._finishing and not self._closed:
            self.readable = True
            self.listener.host_readable()
        elif self._finishing:
            self._deliver_closed()

    def _output_event(self, events: int) -> None:
        if events & HANG_UP:
            self._finish()
            self._deliver_closed()
        elif events & EPOLLOUT:
            self._unblock()

    def _hang_up(self) -> None:
        self._hung_up = True
        if self._wants_input:
            self._host_has_left()
            self._unblock()
        else:
            self._finish()

    def _leave_if_drained(self) -> None:
        """End the connection of a peer that sends nothing more, if all is read.

        A TCP peer that has left looks so.  An open port reads to the end of the stream; a closed one does not read."""
        if self._both_ways and self._input_ended:
            if self._unread_bytes():
                self._host_has_left()
            else:
                self._finish()

    def _block(self) -> None:
        if self._write_fd in self._watched:
            self._blocked = True
            self._rewatch_output()

    def _unblock(self) -> None:
        if self._blocked:
            self._blocked = False
            if self._write_fd in self._watched:
                self._rewatch_output()
            self.listener.host_writable()

    def wait_readable(self) -> bool:
        """Let epoll tell of what is left, too."""
        if self._read_fd not in self._watched or self._finishing or self._input_ended:
            return False
        self.readable = False
        if self._held or self._by_edges:
            self._held = False
            self._rewatch_input()
        return True

    def report_end(self) -> None:
        if self._input_ended and self._read_fd is not None and not self._closed and has_ended(self._read_fd):
            self._finish()
        super().report_end()

    def hold_input(self) -> bool:
        """Suppress events until the port reads: each would wake this process for a piece of what comes."""
        if not self._held and self._read_fd in self._watched and not self._hung_up and not self._finishing:
            self._held = True
            self._rewatch_input()
        return self._held

    def _all_is_read(self) -> None:
        """A read has found nothing."""
        self.readable = False
        self._let_go()

    def _let_go(self) -> None:
        if self._held:
            self._held = False
            if self._read_fd in self._watched:
                self._rewatch_input()

    def wait_writable(self) -> bool:
        """Let epoll report when there is room."""
        if not self._blocked and not self._hung_up and not self._finishing:
            self._block()
        return self._blocked

    def _input_events(self) -> int:
        if self._held:
            return _SILENT_EVENTS
        return INPUT_EVENTS if self._by_edges else _LEVEL_EVENTS

    def _rewatch_input(self) -> None:
        events = self._input_events()
        assert self._read_fd is not None
        self._loop.rewatch(self._read_fd, events | EPOLLOUT if self._both_ways and self._blocked else events)

    def _rewatch_output(self) -> None:
        if self._both_ways:
            self._rewatch_input()
        else:
            assert self._write_fd is not None
            self._loop.rewatch(self._write_fd, EPOLLET | EPOLLOUT if self._blocked else EPOLLET)

    # Moving

    def readv(self, buffers: Sequence[memoryview]) -> int:
        if not self.readable or self._read_fd is None or not buffers:
            return 0
        if len(buffers) > IOV_MAX:
            buffers = buffers[:IOV_MAX]
        try:
            count = os.readv(self._read_fd, buffers)
        except BlockingIOError:
            self._all_is_read()
            return 0
        except OSError as error:
            if error.errno not in PEER_GONE or self._read_fd not in self._watched:
                raise self._fail("cannot read", error) from error
            count = 0
        self._account.read += count
        if count == 0 and any(buffer.nbytes for buffer in buffers):
            self._finish()
        return count

    def writev(self, buffers: Sequence[memoryview]) -> int:
        if self._blocked or not buffers:
            return 0
        if self._hung_up or self._finishing or self._write_fd is None:
            return self._discard(buffers)
        if len(buffers) > IOV_MAX:
            buffers = buffers[:IOV_MAX]
        try:
            count = os.writev(self._write_fd, buffers)
            self._account.written += count
            return count
        except BlockingIOError:
            self._block()
            return 0
        except OSError as error:
            if error.errno not in PEER_GONE or self._write_fd not in self._watched:
                raise self._fail("cannot write", error) from error
        self._hung_up = self._both_ways
        if self._both_ways and self._wants_input:
            self.readable = True
            self._loop.add_turn(self._announce_readable)
        else:
            self._finish()
        return self._discard(buffers)

    def _discard(self, buffers: Sequence[memoryview]) -> int:
        count = sum(buffer.nbytes for buffer in buffers)
        self.output_discarded += count
        return count
