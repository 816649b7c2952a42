"""The place of a port number in a device, with or without a port."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.console.records import PortRecord

if TYPE_CHECKING:
    from collections.abc import Iterable

    from virtserial.console.port import Port
    from virtserial.memory.state import StateMemory


class PortSlot:
    """A number's record, and the port that is plugged there, if any."""

    __slots__ = ("number", "port", "record")

    def __init__(self, number: int, state: StateMemory) -> None:
        self.number = number
        self.record = PortRecord(state)
        self.port: Port | None = None


def in_plug_order(slots: Iterable[PortSlot]) -> list[PortSlot]:
    """Sort slots, the one that was plugged first at the head."""
    return sorted(slots, key=lambda slot: (slot.record.order, slot.number))
