"""Our device in this process, driven by its legacy interface: the same cases, their registers and rings translated.

A legacy driver cannot choose a queue's size, so the queues of this device have the 16 entries of the cases.  It gives
one address for a queue's three areas; the cases' available and used rings are moved to where the layout has them.
"""

from __future__ import annotations

from typing import Final

from virtserial.conformance.steps import (
    AVAIL_OFFSET,
    DEVICE_CONFIG,
    DRIVER_FEATURE,
    DRIVER_FEATURE_SELECT,
    ISR,
    LEGACY,
    NOTIFY,
    QUEUE_DESC,
    QUEUE_ENABLE,
    QUEUE_SELECT,
    QUEUE_SIZE,
    QUEUES,
    RING_SIZE,
    RING_STRIDE,
    RINGS,
    STATUS,
    USED_OFFSET,
)
from virtserial.pci.layout import LEGACY_BAR
from virtserial.pci.legacy import HEADER_SIZE, ISR_STATUS, PAGE_SHIFT
from virtserial.testing.hostile.in_memory import InMemoryMachine
from virtserial.virtio.ring.split.layout import LEGACY_RING_ALIGNMENT, descriptor_table_size, used_ring_start
from virtserial.virtio.status import FEATURES_OK

_IO: Final = {DRIVER_FEATURE: 4, QUEUE_DESC: 8, QUEUE_SIZE: 12, QUEUE_SELECT: 14, STATUS: 18, ISR: ISR_STATUS}
_QUEUE_NOTIFY: Final = 16
_AREA: Final = 0x1000


class LegacyMachine(InMemoryMachine):
    """Our device, nothing around it."""

    def __init__(self) -> None:
        super().__init__(has_legacy=True)
        self.name = "in memory, legacy"
        for queue in self.device.queues:
            queue.max_size = queue.record.size = RING_SIZE
        self._select = self._desc = 0
        self._features_ok = False

    def load(self, offset: int, width: int) -> int:
        if offset >= LEGACY:
            return self._load(offset - LEGACY, width)
        if DEVICE_CONFIG <= offset < NOTIFY:
            return self._load(HEADER_SIZE + offset - DEVICE_CONFIG, width)
        value = self._load(_IO[offset], width)
        if offset == STATUS:
            # What a driver of the modern interface has agreed on has no place in this one.
            return value | FEATURES_OK if self._features_ok else value
        return value << PAGE_SHIFT & 0xFFFFFFFF if offset == QUEUE_DESC else value

    def store(self, offset: int, value: int, width: int) -> None:
        if offset >= LEGACY:
            self._store(offset - LEGACY, value, width)
        elif offset >= NOTIFY:
            self._store(_QUEUE_NOTIFY, value, width)
        elif offset >= DEVICE_CONFIG:
            self._store(HEADER_SIZE + offset - DEVICE_CONFIG, value, width)
        elif offset == DRIVER_FEATURE_SELECT:
            self._select = value
        elif offset == QUEUE_DESC:
            self._desc = value
        elif offset == QUEUE_DESC + 4:
            self._desc |= value << 32
        elif offset == QUEUE_ENABLE:
            self._store(_IO[QUEUE_DESC], self._desc >> PAGE_SHIFT, 4)
        elif offset == STATUS:
            self._features_ok = bool(value & FEATURES_OK)
            self._store(_IO[STATUS], value & ~FEATURES_OK, width)
        elif offset in (QUEUE_SIZE, QUEUE_SELECT) or (offset == DRIVER_FEATURE and self._select == 0):
            self._store(_IO[offset], value, width)

    def _load(self, offset: int, width: int) -> int:
        return int.from_bytes(self.function.region_read(LEGACY_BAR, offset, width), "little")

    def _store(self, offset: int, value: int, width: int) -> None:
        self.function.region_write(LEGACY_BAR, offset, value.to_bytes(width, "little"))

    def read(self, address: int, length: int) -> bytes:
        return super().read(_moved(address), length)

    def write(self, address: int, data: bytes) -> None:
        super().write(_moved(address), data)


def _moved(address: int) -> int:
    """Where a byte of the cases' rings is in a legacy ring."""
    if not RINGS <= address < RINGS + QUEUES * RING_STRIDE:
        return address
    at = (address - RINGS) % RING_STRIDE
    if AVAIL_OFFSET <= at < AVAIL_OFFSET + _AREA:
        return address - AVAIL_OFFSET + descriptor_table_size(RING_SIZE)
    if USED_OFFSET <= at < USED_OFFSET + _AREA:
        return address - USED_OFFSET + used_ring_start(RING_SIZE, LEGACY_RING_ALIGNMENT)
    return address
