"""A packed ring that notes which guest memory the device writes: used descriptors, its events, and filled buffers.

It stands before a queue's ring only while dirty pages are logged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.virtio.ring.packed.layout import DESCRIPTOR_SIZE, EVENT_SIZE, VIRTQ_DESC_F_WRITE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.memory.dirty_log import DirtyLog
    from virtserial.virtio.ring.packed.access import RingAccess
    from virtserial.virtio.ring.packed.walk import Chain


class LoggedRing:
    """A RingAccess that does what another one does, and notes the writes.

    Args:
        ring: the one that does it.
        desc, device: guest addresses of the descriptor ring and of the device's event suppression.
    """

    def __init__(self, ring: RingAccess, log: DirtyLog, desc: int, device: int) -> None:
        self.mapped = ring.mapped
        self.is_available = ring.is_available
        self.available = ring.available
        self.driver_event = ring.driver_event
        self._ring = ring
        self._log = log
        self._desc = desc
        self._device = device

    def store_used(self, index: int, used: Sequence[int]) -> None:
        self._ring.store_used(index, used)
        self._log.mark(self._desc + DESCRIPTOR_SIZE * index, DESCRIPTOR_SIZE * len(used))

    def show_used(self, index: int, used: int) -> None:
        self._ring.show_used(index, used)
        self._log.mark(self._desc + DESCRIPTOR_SIZE * index, DESCRIPTOR_SIZE)

    def store_device_event(self, event: int) -> None:
        self._ring.store_device_event(event)
        self._log.mark(self._device, EVENT_SIZE)


def mark_filled(log: DirtyLog, chain: Chain, length: int) -> None:
    """Note the first `length` device-writable bytes of a chain."""
    for address, size, flags in chain.buffers:
        if length > 0 and flags & VIRTQ_DESC_F_WRITE:
            log.mark(address, min(size, length))
            length -= size
