"""The place of a port number in a device, with or without a port, and what it keeps in state memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.memory.state import U16, U32, U64, Record

if TYPE_CHECKING:
    from virtserial.console.port import Port
    from virtserial.memory.state import StateMemory


class PortRecord(Record):
    """What a port keeps in state memory; it belongs to the number, whichever port has it."""

    __slots__ = ()
    SIZE = 56
    pending = U16(0)
    """Control messages the driver still has to get (console/control.py)."""
    known = U16(2)
    """The driver was told of a port of this number."""
    ready = U16(4)
    """The driver has said PORT_READY."""
    guest_open = U16(6)
    """The driver has said PORT_OPEN 1."""
    told_open = U16(8)
    """The last PORT_OPEN the driver was told."""
    plug = U16(10)
    """Tells ports apart that had this number one after the other."""
    order = U32(12)
    """Grows with every plug: the order in which the driver hears of ports."""
    transmitted = U64(16)
    received = U64(24)
    discarded = U64(32)
    dropped = U64(40)
    doubtful = U64(48)
    """Bytes that may have been moved twice, or not at all, because a worker was killed while it moved them."""


class PortSlot:
    """The place of a port number in a device: its record, and the port that is plugged there, if any."""

    __slots__ = ("number", "port", "record")

    def __init__(self, number: int, state: StateMemory) -> None:
        self.number = number
        self.record = PortRecord(state)
        self.port: Port | None = None
