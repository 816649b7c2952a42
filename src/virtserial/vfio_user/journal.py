"""The journal: what became of the request at the head of the socket, kept where it outlives the process.

A request is peeked at, applied, answered, and only then taken off the socket.  A successor of a process that was
killed on that way finds the same request again; the journal tells it whether to apply it, or only to send the reply
or the rest of it.  (A posted message is not recorded: applying one twice does no harm.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.memory.state import U8, U32, Record
from virtserial.vfio_user.wire import HEADER_SIZE, MAX_MESSAGE_SIZE

if TYPE_CHECKING:
    from virtserial.memory.state import StateMemory
    from virtserial.vfio_user.wire import Header

_EMPTY: Final = 0
_APPLIED: Final = 1
_REPLY_OFFSET: Final = 32


class Journal(Record):
    """At most one request and its reply."""

    SIZE = _REPLY_OFFSET + MAX_MESSAGE_SIZE
    phase = U8(0)
    length = U32(4)
    sent = U32(8)

    def __init__(self, state: StateMemory) -> None:
        super().__init__(state)
        start = self.base + 16
        self._header = state.u8[start : start + HEADER_SIZE]
        self._reply = state.u8[self.base + _REPLY_OFFSET : self.base + self.SIZE]

    def unsent_reply(self, header: Header) -> bytes | None:
        """Return what is left to send of the reply to this request, b"" if nothing; None if it was not applied yet."""
        if self.phase == _EMPTY or self._header != header.pack():
            return None
        return bytes(self._reply[self.sent : self.length])

    def record_applied(self, header: Header, reply: bytes) -> None:
        """The request has had its effect; this is its whole reply."""
        self.phase = _EMPTY
        self._header[:] = header.pack()
        self._reply[: len(reply)] = reply
        self.length = len(reply)
        self.sent = 0
        # Last: what is written so far counts from here on.
        self.phase = _APPLIED

    def record_sent(self, count: int) -> None:
        """The kernel took `count` more bytes of the reply."""
        self.sent += count

    def record_consumed(self) -> None:
        """The request is off the socket: the next one with the same header is another one."""
        self.phase = _EMPTY
