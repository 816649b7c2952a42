"""The registers and rings of the cases where the legacy interface has them (virtio 1.3, 4.1.4.8 and 2.7.2).

A legacy driver cannot choose a queue's size.  It gives one address for a queue's three areas; the cases' available and
used rings are moved to where the layout has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.conformance.steps import (
    AVAIL_OFFSET,
    DEVICE_CONFIG,
    DEVICE_FEATURE,
    DEVICE_FEATURE_SELECT,
    DRIVER_FEATURE,
    DRIVER_FEATURE_SELECT,
    ISR,
    LEGACY,
    NOTIFY,
    NUM_QUEUES,
    QUEUE_DESC,
    QUEUE_ENABLE,
    QUEUE_SELECT,
    QUEUE_SIZE,
    QUEUES,
    RING_STRIDE,
    RINGS,
    STATUS,
    USED_OFFSET,
)
from virtserial.pci.legacy import HEADER_SIZE, ISR_STATUS, PAGE_SHIFT
from virtserial.virtio.ring.split.layout import LEGACY_RING_ALIGNMENT, descriptor_table_size, used_ring_start
from virtserial.virtio.status import FEATURES_OK

if TYPE_CHECKING:
    from collections.abc import Callable

_IO: Final = {DRIVER_FEATURE: 4, QUEUE_DESC: 8, QUEUE_SIZE: 12, QUEUE_SELECT: 14, STATUS: 18, ISR: ISR_STATUS}
_QUEUE_NOTIFY: Final = 16
_AREA: Final = 0x1000
_MOST_QUEUES: Final = 1024


class LegacyRegisters:
    """
    Args:
        read, write: access to the legacy BAR: (offset, width), (offset, value, width).
    """

    def __init__(self, read: Callable[[int, int], int], write: Callable[[int, int, int], None]) -> None:
        self._read = read
        self._write = write
        self._select = self._desc = self._feature_select = 0
        self._features_ok = False
        self.sizes: list[int] = []
        while len(self.sizes) < _MOST_QUEUES:
            write(_IO[QUEUE_SELECT], len(self.sizes), 2)
            size = read(_IO[QUEUE_SIZE], 2)
            if not size:
                break
            self.sizes.append(size)

    def load(self, offset: int, width: int) -> int:
        """Read a register of the cases."""
        if offset >= LEGACY:
            return self._read(offset - LEGACY, width)
        if DEVICE_CONFIG <= offset < NOTIFY:
            return self._read(HEADER_SIZE + offset - DEVICE_CONFIG, width)
        if offset == DEVICE_FEATURE:
            return 0 if self._feature_select else self._read(0, 4)
        if offset == NUM_QUEUES:
            return len(self.sizes)
        value = self._read(_IO[offset], width)
        if offset == STATUS:
            # What a driver of the modern interface has agreed on has no place in this one.
            return value | FEATURES_OK if self._features_ok else value
        return value << PAGE_SHIFT & 0xFFFFFFFF if offset == QUEUE_DESC else value

    def store(self, offset: int, value: int, width: int) -> None:
        """Write a register of the cases."""
        if offset >= LEGACY:
            self._write(offset - LEGACY, value, width)
        elif offset >= NOTIFY:
            self._write(_QUEUE_NOTIFY, value, width)
        elif offset >= DEVICE_CONFIG:
            self._write(HEADER_SIZE + offset - DEVICE_CONFIG, value, width)
        elif offset == DEVICE_FEATURE_SELECT:
            self._feature_select = value
        elif offset == DRIVER_FEATURE_SELECT:
            self._select = value
        elif offset == QUEUE_DESC:
            self._desc = value
        elif offset == QUEUE_DESC + 4:
            self._desc |= value << 32
        elif offset == QUEUE_ENABLE:
            self._write(_IO[QUEUE_DESC], self._desc >> PAGE_SHIFT, 4)
        elif offset == STATUS:
            self._features_ok = bool(value & FEATURES_OK)
            self._write(_IO[STATUS], value & ~FEATURES_OK, width)
        elif offset in (QUEUE_SIZE, QUEUE_SELECT) or (offset == DRIVER_FEATURE and self._select == 0):
            self._write(_IO[offset], value, width)

    def moved(self, address: int) -> int:
        """Where a byte of the cases' rings is in a legacy ring."""
        queue, at = divmod(address - RINGS, RING_STRIDE)
        if not 0 <= queue < min(QUEUES, len(self.sizes)):
            return address
        if AVAIL_OFFSET <= at < AVAIL_OFFSET + _AREA:
            return address - AVAIL_OFFSET + descriptor_table_size(self.sizes[queue])
        if USED_OFFSET <= at < USED_OFFSET + _AREA:
            return address - USED_OFFSET + used_ring_start(self.sizes[queue], LEGACY_RING_ALIGNMENT)
        return address
