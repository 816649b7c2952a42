"""What a back end keeps of its front end in state memory: a successor of a killed process goes on with it.

| record | of |
|---|---|
| Session | the connection: features, what was said of the rings as a whole |
| Vring | a queue, as the front end has described it, running or not |
| Journal | the request at the head of the socket, once it was applied |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.memory.state import U8, U16, U64, Record
from virtserial.vhost_user.wire import MAX_MESSAGE, MAX_REPLY

if TYPE_CHECKING:
    from virtserial.memory.state import StateMemory


class Session(Record):
    """One front end's session."""

    __slots__ = ()
    SIZE = 40
    negotiated = U8(0)
    """SET_FEATURES has come."""
    live = U8(1)
    """The device runs."""
    started = U8(2)
    """It runs, or stands still and keeps what its driver has said."""
    config_change = U8(3)
    """The front end is still to be told that the configuration has changed."""
    logs = U8(4)
    """The front end wants to know which pages are written."""
    status = U8(5)
    """The driver's device status, as SET_STATUS has told it."""
    features = U64(8)
    protocol_features = U64(16)
    log_offset = U64(24)
    log_size = U64(32)


class Vring(Record):
    """A queue as the front end describes it; a size of 0 says that it has not."""

    __slots__ = ()
    SIZE = 40
    size = U16(0)
    addressed = U8(2)
    """Its addresses were set."""
    kicked = U8(3)
    """It has a descriptor for kicks: the ring is started."""
    enabled = U8(4)
    running = U8(5)
    """The front end wants it to run."""
    given = U8(6)
    """The device has it."""
    kept = U8(7)
    """`progress` is where the device has left the ring, and nobody has moved it since."""
    descriptor = U64(8)
    used = U64(16)
    available = U64(24)
    progress = U64(32)
    """As QueueRecord's: position, and bytes of the next chain that were served already."""


class Journal(Record):
    """At most one request, which was applied and is still in the socket, and its reply.

    A successor that finds the same request there applies it no second time, and sends the rest of the reply.
    """

    __slots__ = ("_reply", "_request")
    SIZE = 16 + MAX_REPLY + MAX_MESSAGE
    applied = U8(0)
    request_length = U16(2)
    length = U16(4)
    sent = U16(6)

    def __init__(self, state: StateMemory) -> None:
        super().__init__(state)
        reply, end = self.base + 16 + MAX_MESSAGE, self.base + self.SIZE
        self._request, self._reply = state.u8[self.base + 16 : reply], state.u8[reply:end]

    def unsent_reply(self, request: bytes | memoryview) -> bytes | None:
        """Return what is left to send of the reply to this whole message; None if it was not applied yet."""
        if not self.applied or self._request[: self.request_length] != request:
            return None
        return bytes(self._reply[self.sent : self.length])

    def record_applied(self, request: bytes | memoryview, reply: bytes) -> None:
        """The whole message has had its effect; this is its whole reply, b"" if it has none."""
        self.applied = 0
        self._request[: len(request)] = request
        self._reply[: len(reply)] = reply
        self.request_length, self.length, self.sent = len(request), len(reply), 0
        # Last: what is written so far counts from here on.
        self.applied = 1

    def record_sent(self, count: int) -> None:
        """The kernel took `count` more bytes of the reply."""
        self.sent += count

    def record_consumed(self) -> None:
        """The request is off the socket."""
        self.applied = 0
