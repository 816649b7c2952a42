"""`logfile=`: a copy of what the guest writes; the moving half."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from virtserial.host_end.base import HostEnd
from virtserial.host_end.buffers import IOV_MAX, front_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.accounting import Account
    from virtserial.console.seams import HostListener

logger = logging.getLogger("virtserial.chardev.log")


class LogFile:
    """The file.  What it cannot take (full disk, slow reader of a FIFO) is lost and counted: the guest does not wait
    for its log."""

    def __init__(self, name: str, fd: int, account: Account) -> None:
        self._name = name
        self._account = account
        self._fd = fd
        self.lost = 0

    def writev(self, buffers: Sequence[memoryview], size: int) -> None:
        """Write the first `size` bytes."""
        while size:
            batch = front_of(buffers[:IOV_MAX], size)
            self._account.stray = True
            try:
                written = os.writev(self._fd, batch)
            except OSError as error:
                if not self.lost:
                    logger.warning("%s: cannot write to the logfile: %s", self._name, error.strerror)
                self.lost += size
                return
            size -= written
            while buffers and written >= buffers[0].nbytes:
                written -= buffers[0].nbytes
                buffers = buffers[1:]
            if written:
                buffers = [buffers[0][written:], *buffers[1:]]

    def close(self) -> None:
        os.close(self._fd)


class LoggedHostEnd(HostEnd):
    """Wraps a host end, and logs what that takes."""

    def __init__(self, end: HostEnd, log: LogFile) -> None:
        # HostEnd's attributes are properties here, so its __init__ has nothing to set.
        self.name = end.name
        self._end = end
        self._log = log
        self._closed = False

    def writev(self, buffers: Sequence[memoryview]) -> int:
        taken = self._end.writev(buffers)
        self._log.writev(buffers, taken)
        return taken

    def log_unconnected(self, buffers: Sequence[memoryview]) -> None:
        self._log.writev(buffers, sum(buffer.nbytes for buffer in buffers))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._end.close()
            self._log.close()

    # All else is delegated.

    def start(self) -> None:
        self._end.start()

    def readv(self, buffers: Sequence[memoryview]) -> int:
        return self._end.readv(buffers)

    def report_end(self) -> None:
        self._end.report_end()

    def wait_readable(self) -> bool:
        return self._end.wait_readable()

    def hold_input(self) -> bool:
        return self._end.hold_input()

    def wait_writable(self) -> bool:
        return self._end.wait_writable()

    @property
    def backlog_size(self) -> int:
        return self._end.backlog_size

    def read_backlog(self, most: int) -> bytes:
        return self._end.read_backlog(most)

    def restore_backlog(self, backlog: bytes) -> None:
        self._end.restore_backlog(backlog)

    def guest_opened(self) -> None:
        self._end.guest_opened()

    def guest_closed(self) -> None:
        self._end.guest_closed()

    def guest_ready(self) -> None:
        self._end.guest_ready()

    @property
    def connected(self) -> bool:  # type: ignore[override]
        return self._end.connected

    @property
    def ended(self) -> bool:  # type: ignore[override]
        return self._end.ended

    @property
    def readable(self) -> bool:  # type: ignore[override]
        return self._end.readable

    @property
    def input_discarded(self) -> int:
        return self._end.input_discarded

    @input_discarded.setter
    def input_discarded(self, count: int) -> None:
        self._end.input_discarded = count

    @property
    def output_discarded(self) -> int:
        return self._end.output_discarded

    @output_discarded.setter
    def output_discarded(self, count: int) -> None:
        self._end.output_discarded = count

    @property
    def listener(self) -> HostListener:
        return self._end.listener

    @listener.setter
    def listener(self, listener: HostListener) -> None:
        self._end.listener = listener

    @property
    def wants_input(self) -> bool:
        return self._end.wants_input

    @wants_input.setter
    def wants_input(self, wanted: bool) -> None:
        self._end.wants_input = wanted
