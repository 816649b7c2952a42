"""A share of a multiplexed host end for another process: a monitor in the keeper, a serial line of QEMU.

The far side is a stream.  In each direction at most one piece waits, and while it waits nothing more is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.errors import BackendError
from virtserial.host_end.stream import DescriptorStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.accounting import Account
    from virtserial.channel.messages import FrontState
    from virtserial.host_end.base import HostEnd
    from virtserial.host_end.mux import Multiplexer, MuxHostEnd
    from virtserial.loop import EventLoop

PIECE: Final = 4096
PIECES: Final = 16
"""Moved in one turn and direction."""


class StreamFront:
    """
    Args:
        name: for messages.
        fd: the stream; owned.
        tell: called with "opened" and "closed" (of the host end), "in" and "out" (the focus comes and goes), always
            before bytes that came later are written to the stream.
        account: gets what is read from and written to the stream.
    """

    def __init__(
        self, loop: EventLoop, name: str, fd: int, tell: Callable[[FrontState], None], account: Account | None = None
    ) -> None:
        self._loop = loop
        self._tell = tell
        self._front: MuxHostEnd | None = None
        self._over: Callable[[], None] | None = None
        self._stream = DescriptorStream(loop, name, fd, fd, account)
        self._buffer = bytearray(PIECE)
        self._to_user = b""
        self._to_host = b""
        self._stream.listener = _UserSide(self)
        self._stream.wants_input = True
        self._stream.start()

    def join(self, mux: Multiplexer, over: Callable[[], None]) -> None:
        """Take a share of a host end, and the focus, unless it has one; `over` is called when the host end has ended.
        """
        if self._front is not None or self._stream.ended:
            return
        self._over = over
        self._front = mux.add_front()
        self._front.focus_changed = lambda has_it: self._tell("in" if has_it else "out")
        self._front.listener = self
        self._front.wants_input = True
        self._tell("in")
        self._front.start()

    def leave(self) -> None:
        """Give the share back."""
        front, self._front = self._front, None
        self._to_user = self._to_host = b""
        if front is not None:
            front.close()
            self._tell("closed")

    def close(self) -> None:
        """Give the share back, and close the stream."""
        self.leave()
        self._stream.close()

    # HostListener of the share

    def host_opened(self) -> None:
        self._tell("opened")

    def host_closed(self) -> None:
        front = self._front
        if front is None:
            return
        if not front.ended:
            self._to_user = self._to_host = b""
            self._tell("closed")
        else:
            self.leave()
            if self._over is not None:
                self._over()

    def host_readable(self) -> None:
        for _ in range(PIECES):
            if self._front is None or not self._move_to_user(self._front):
                return
        self._loop.add_turn(self.host_readable)

    def host_writable(self) -> None:
        for _ in range(PIECES):
            if not self._move_to_host():
                return
        self._loop.add_turn(self.host_writable)

    def _move_to_user(self, front: MuxHostEnd) -> bool:
        """Move a piece; return False if it has to wait, or there is none."""
        if not self._to_user:
            self._to_user = self._read(front)
        if not self._to_user:
            return False
        self._to_user = self._to_user[self._write(self._stream, self._to_user) :]
        return not self._to_user

    def _move_to_host(self) -> bool:
        """Move a piece, or drop it while no host is connected, as QEMU's back ends do."""
        if not self._to_host:
            self._to_host = self._read(self._stream)
        if not self._to_host:
            return False
        if self._front is None or not self._front.connected:
            self._to_host = b""
            return True
        self._to_host = self._to_host[self._write(self._front, self._to_host) :]
        return not self._to_host

    def _read(self, end: HostEnd) -> bytes:
        with memoryview(self._buffer) as buffer:
            try:
                return bytes(buffer[: end.readv([buffer])])
            except BackendError:
                return b""

    def _write(self, end: HostEnd, data: bytes) -> int:
        """Return how many bytes are done with: all, if the end has failed."""
        with memoryview(data) as piece:
            try:
                return end.writev([piece])
            except BackendError:
                return len(data)

    # The user's side

    def user_readable(self) -> None:
        """The user has sent bytes."""
        self.host_writable()

    def user_writable(self) -> None:
        """The user takes bytes again."""
        self.host_readable()

    def user_gone(self) -> None:
        """The user has closed its end."""
        self.close()


class _UserSide:
    """HostListener of the stream."""

    def __init__(self, front: StreamFront) -> None:
        self._front = front

    def host_opened(self) -> None:
        pass

    def host_closed(self) -> None:
        self._front.user_gone()

    def host_readable(self) -> None:
        self._front.user_readable()

    def host_writable(self) -> None:
        self._front.user_writable()
