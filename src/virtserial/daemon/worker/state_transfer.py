"""The state of a device through a pipe of the front end's, while everything else goes on (SET_DEVICE_STATE_FD)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, TypeVar

from virtserial.errors import PeerError
from virtserial.foreign import calls
from virtserial.loop import EPOLLIN, EPOLLOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.loop import EventLoop

PIECE: Final = 64 << 10
_T = TypeVar("_T")


class StateTransfer:
    """One transfer.

    Args:
        fd: the pipe, owned from here on.
        state: what to write; None: read a state.
        limit: the most bytes to read.

    Raises:
        PeerError: the descriptor cannot be waited for.
    """

    def __init__(self, loop: EventLoop, fd: int, state: bytes | None, limit: int) -> None:
        self._loop = loop
        self._fd = fd
        self._unsent = state
        self._received = bytearray()
        self._limit = limit
        self._failure = ""
        try:
            os.set_blocking(fd, False)
            if state is None:
                loop.watch(fd, EPOLLIN, self._read)
            else:
                loop.watch(fd, EPOLLOUT, self._write)
        except OSError as error:
            os.close(fd)
            raise PeerError(f"the device's state: the descriptor cannot be used: {error.strerror}") from error

    def _write(self, _: int) -> None:
        assert self._unsent is not None
        piece = self._unsent[:PIECE]
        if (count := self._call("written", lambda: os.write(self._fd, piece))) is not None:
            self._unsent = self._unsent[count:]
            if not self._unsent:
                self._end("")

    def _read(self, _: int) -> None:
        if (piece := self._call("read", lambda: os.read(self._fd, PIECE))) is not None:
            self._received += piece
            if len(self._received) > self._limit:
                self._end(f"the device's state has more than {self._limit} bytes")
            elif not piece:
                self._end("")

    def _call(self, what: str, call: Callable[[], _T]) -> _T | None:
        """Make a call on the descriptor; None: it must be made again, or the transfer has failed."""
        result = None
        try:
            calls.count += 1
            if not calls.watched:
                calls.watch()
            result = call()
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(f"the device's state cannot be {what}: {error.strerror or 'its descriptor waits'}")
        calls.count += 1
        return result

    def _end(self, failure: str) -> None:
        self._failure = failure
        self.close()

    def close(self) -> None:
        """Close the pipe."""
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1

    def result(self) -> bytes | None:
        """End the transfer; return the state that was read, None if one was written.

        Raises:
            PeerError: it was not complete.
        """
        if self._fd >= 0:
            if self._unsent is None:
                # The end of the pipe may be there already: the front end has closed it before it asked.
                self._drain()
            if self._fd >= 0:
                self._end("the device's state was not transferred as a whole")
        if self._failure:
            raise PeerError(self._failure)
        return bytes(self._received) if self._unsent is None else None

    def _drain(self) -> None:
        before = -1
        while self._fd >= 0 and len(self._received) != before:
            before = len(self._received)
            self._read(0)
