"""What a console device keeps in state memory beside its registers and queues."""

from __future__ import annotations

from typing import Final

from virtserial.memory.state import U16, U32, U64, Record

GUEST_OPEN: Final = 6
TRANSMITTED: Final = 16
RECEIVED: Final = 24
"""Offsets of fields of a port that the hot path reaches in state memory without a call."""


class ConsoleRecord(Record):
    """The device as a whole."""

    __slots__ = ()
    SIZE = 8
    next_order = U32(0)
    cols = U16(4)
    rows = U16(6)


class PortRecord(Record):
    """A port; it belongs to the number, whichever port has it."""

    __slots__ = ()
    SIZE = 72
    pending = U16(0)
    """Control messages the driver still has to get (console/control.py)."""
    known = U16(2)
    """The driver was told of a port of this number."""
    ready = U16(4)
    """The driver has said PORT_READY."""
    guest_open = U16(GUEST_OPEN)
    """The driver has said PORT_OPEN 1."""
    told_open = U16(8)
    """The last PORT_OPEN the driver was told."""
    plug = U16(10)
    """Tells ports apart that had this number one after the other."""
    order = U32(12)
    """Grows with every plug: the order in which the driver hears of ports."""
    transmitted = U64(TRANSMITTED)
    received = U64(RECEIVED)
    discarded = U64(32)
    dropped = U64(40)
    doubtful = U64(48)
    """Bytes that may have been moved twice, or not at all, because a worker was killed while it moved them."""
    throttled = U64(56)
    """Nanoseconds for which the driver had to wait because the host end took nothing."""
    throttled_since = U64(64)
    """When it began to wait, in nanoseconds of the loop's clock; 0: it does not."""

    def count_from_zero(self) -> None:
        """Clear the counters, for a port that is plugged in now."""
        self.transmitted = self.received = self.discarded = self.dropped = self.doubtful = 0
        self.throttled = self.throttled_since = 0
