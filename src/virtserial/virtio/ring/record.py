"""What a virtqueue keeps in state memory, whatever the format of its ring."""

from __future__ import annotations

from typing import Final

from virtserial.memory.state import U8, U16, U64, Record

VECTOR: Final = 4
SIGNALLED: Final = 8
PROGRESS: Final = 40
"""Offsets of fields that the hot path reaches in state memory without a call."""


class QueueRecord(Record):
    """Registers and position of one queue."""

    __slots__ = ()
    SIZE = 56
    size = U16(0)
    enabled = U16(2)
    vector = U16(VECTOR)
    began = U16(6)
    """Of a packed queue: the position up to which chains are marked as used; `position`, except within `give_back`."""
    signalled = U16(SIGNALLED)
    """The position up to which the driver was considered for an interrupt."""
    event_idx = U16(10)
    indirect = U16(12)
    packed = U8(14)
    """Its ring is a packed one."""
    filling = U8(15)
    """Of a packed queue: while `began` is behind, the place of `offset` has the bytes written into the chains."""
    desc_address = U64(16)
    avail_address = U64(24)
    """The driver area (2.6): a split queue's available ring, a packed queue's driver event suppression."""
    used_address = U64(32)
    """The device area: a split queue's used ring, a packed queue's device event suppression."""
    progress = U64(PROGRESS)
    """`position` in the low 16 bits, `offset` above: one store commits both."""

    chains = U64(48)
    """Chains that the device has used since the queue was reset; of a split queue without those that `position` counts,
    so that the hot path counts by the wrapping of the index."""

    @property
    def position(self) -> int:
        """The next chain: a split ring's free-running index; of a packed ring (2.8) the index in 15 bits and the wrap
        counter in bit 15."""
        return self.progress & 0xFFFF

    @position.setter
    def position(self, value: int) -> None:
        self.progress = self.progress & ~0xFFFF | value

    @property
    def offset(self) -> int:
        """Bytes of the next chain that were served already."""
        return self.progress >> 16

    @offset.setter
    def offset(self, value: int) -> None:
        self.progress = value << 16 | self.progress & 0xFFFF
