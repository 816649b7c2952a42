"""One virtqueue of a device: its registers as a transport shows them, and its ring while it is enabled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.virtio.ring.device_ring import DETACHED, UNOPENED
from virtserial.virtio.ring.packed.device import PackedRing
from virtserial.virtio.ring.packed.layout import START
from virtserial.virtio.ring.record import QueueRecord
from virtserial.virtio.ring.split.device import SplitRing

if TYPE_CHECKING:
    from virtserial.memory.state import StateMemory
    from virtserial.memory.table import MemoryTable
    from virtserial.virtio.ring.device_ring import DeviceRing

NO_VECTOR = 0xFFFF
"""VIRTIO_MSI_NO_VECTOR."""


class Virtqueue:
    """Registers and ring.

    Args:
        index: the queue's number.
        max_size: the largest size offered, a power of 2.
        state: where its registers live.
        touched: takes the queue when a register of it is no longer as after a reset.

    Attributes:
        ring: `DETACHED` unless `attach` has found one; `UNOPENED` behind `close_ring`.
    """

    __slots__ = ("_touched", "index", "max_size", "record", "ring")

    def __init__(
        self, index: int, max_size: int, state: StateMemory, touched: dict[Virtqueue, None] | None = None
    ) -> None:
        self.index = index
        self.max_size = max_size
        self.record = QueueRecord(state)
        self.ring: DeviceRing = DETACHED
        self._touched = {} if touched is None else touched
        if not self.record.size:
            self.reset()
        elif not self.record.holds(max_size.to_bytes(2, "little") + b"\0\0\xff\xff" + bytes(QueueRecord.SIZE - 6)):
            self._touched[self] = None

    def reset(self) -> None:
        """Return every register to its value after a device reset."""
        self.detach()
        self.record.clear()
        self.record.size = self.max_size
        self.record.vector = NO_VECTOR

    def touch(self) -> None:
        """A register is written."""
        self._touched[self] = None

    # Registers.  A driver sets them before it enables the queue (4.1.5.1.3); later writes are ignored, so that nothing
    # that an attached ring was checked against can change.

    @property
    def size(self) -> int:
        """Descriptors in the queue."""
        return self.record.size

    @size.setter
    def size(self, value: int) -> None:
        """Powers of 2 up to max_size; anything else is ignored (4.1.4.3.2)."""
        if not value & (value - 1):
            self.set_packed_size(value)

    def set_packed_size(self, value: int) -> None:
        """Set the size of a packed queue: any up to max_size; anything else is ignored (4.1.4.3.2)."""
        if not self.record.enabled and 0 < value <= self.max_size:
            self.touch()
            self.record.size = value

    @property
    def enabled(self) -> bool:
        """Whether the driver has enabled the queue."""
        return bool(self.record.enabled)

    @property
    def vector(self) -> int:
        """The MSI-X vector of this queue's interrupts, 0xffff for none."""
        return self.record.vector

    @vector.setter
    def vector(self, value: int) -> None:
        self.touch()
        self.record.vector = value

    @property
    def desc_address(self) -> int:
        return self.record.desc_address

    @desc_address.setter
    def desc_address(self, value: int) -> None:
        if not self.record.enabled:
            self.touch()
            self.record.desc_address = value

    @property
    def avail_address(self) -> int:
        return self.record.avail_address

    @avail_address.setter
    def avail_address(self, value: int) -> None:
        if not self.record.enabled:
            self.touch()
            self.record.avail_address = value

    @property
    def used_address(self) -> int:
        return self.record.used_address

    @used_address.setter
    def used_address(self, value: int) -> None:
        if not self.record.enabled:
            self.touch()
            self.record.used_address = value

    # The ring

    def enable(
        self, event_idx: bool, indirect: bool, packed: bool = False, progress: int | None = None
    ) -> None:
        """Latch the registers and the features of the ring that were negotiated.

        Args:
            progress: where the ring stands, as QueueRecord's; None: at its start.
        """
        self.touch()
        record = self.record
        record.event_idx, record.indirect, record.packed = event_idx, indirect, packed
        if packed and progress is None:
            progress = START
        if progress is not None:
            record.progress = progress
            record.signalled = record.began = progress & 0xFFFF
        record.enabled = 1

    def attach(self, memory: MemoryTable) -> None:
        """Find an enabled queue's ring in guest memory, at the position where it was left.

        Raises:
            DriverError: an area is not aligned.
            AddressError: an area is not mapped for DMA.
        """
        self.ring = DETACHED
        ring = PackedRing if self.record.packed else SplitRing
        self.ring = ring(self.index, self.record, memory)

    def detach(self) -> None:
        """Let go of the ring and of every view of guest memory."""
        self.ring = DETACHED

    def close_ring(self) -> None:
        """Nobody uses this queue: close the ring until `attach` finds it again, at the same place."""
        if self.ring.attached:
            self.ring = UNOPENED
