"""A ring that notes which guest memory the device writes: its own fields, and the buffers of chains it returns.

It stands before a queue's ring only while dirty pages are logged, so that the data path pays for it only then.  A
buffer is noted when its chain is returned: what was written into one that never is, no driver may look at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.errors import DriverError
from virtserial.virtio.ring.split.layout import (
    DESCRIPTOR,
    DESCRIPTOR_SIZE,
    USED_RING_OFFSET,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.memory.dirty_log import DirtyLog
    from virtserial.memory.region import Buffer
    from virtserial.memory.table import MemoryTable
    from virtserial.virtio.ring.split.access import RingAccess

MAX_INDIRECT = 1024
"""Descriptors of an indirect table: the queue takes no longer chain."""


class LoggedRing:
    """A RingAccess that does what another one does, and notes the writes.

    Args:
        ring: the one that does it.
        size: entries.
        used: guest address of the used ring.
    """

    def __init__(self, ring: RingAccess, memory: MemoryTable, log: DirtyLog, size: int, used: int) -> None:
        self.mapped = ring.mapped
        self.avail_idx = ring.avail_idx
        self.avail_flags = ring.avail_flags
        self.used_event = ring.used_event
        self.avail_entries = ring.avail_entries
        self.descriptors = ring.descriptors
        self._ring = ring
        self._memory = memory
        self._log = log
        self._size = size
        self._used = used

    def store_used(self, position: int, heads: Sequence[int], lengths: Sequence[int] | None) -> None:
        self._ring.store_used(position, heads, lengths)
        self._log.mark(self._used, USED_RING_OFFSET + 8 * self._size)
        for head, length in zip(heads, lengths or (), strict=False):
            if length:
                self._mark_chain(head, length)

    def publish_used_idx(self, idx: int) -> None:
        self._ring.publish_used_idx(idx)
        self._log.mark(self._used, USED_RING_OFFSET)

    def store_used_flags(self, flags: int) -> None:
        self._ring.store_used_flags(flags)
        self._log.mark(self._used, USED_RING_OFFSET)

    def store_avail_event(self, idx: int) -> None:
        self._ring.store_avail_event(idx)
        self._log.mark(self._used + USED_RING_OFFSET + 8 * self._size, 2)

    def _mark_chain(self, head: int, length: int) -> None:
        """Note the first `length` device-writable bytes of a chain.

        The driver must not touch a chain before it is used.  One that does gets a wrong log of its own memory; the
        steps are counted, so that a loop ends.
        """
        table: Buffer = self._ring.descriptors()
        entries, index = self._size, head
        for _ in range(self._size + MAX_INDIRECT):
            address, size, flags, following = DESCRIPTOR.unpack_from(table, index * DESCRIPTOR_SIZE)
            if flags & VIRTQ_DESC_F_INDIRECT:
                if size > MAX_INDIRECT * DESCRIPTOR_SIZE:
                    return
                try:
                    table = self._memory.read(address, size)
                except DriverError:
                    return
                entries, index = size // DESCRIPTOR_SIZE, 0
            else:
                if flags & VIRTQ_DESC_F_WRITE:
                    self._log.mark(address, min(size, length))
                    length -= size
                if length <= 0 or not flags & VIRTQ_DESC_F_NEXT:
                    return
                index = following
            if index >= entries:
                return
