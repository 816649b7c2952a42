"""The device side of a split virtqueue (virtio 1.3, section 2.7).

Chains are looked at, served, and only then taken, in order:

| step | what a crash leaves behind it |
|---|---|
| `readable_chains`, `writable_chains` | nothing: looking moves nothing |
| the one system call that moves the bytes | a note in the ledger tells the successor how far it came |
| `give_back`: used elements are stored | nothing: the driver does not look past the used index |
| `give_back`: `record.progress` is stored | **commit point**: the chains are used, `attach` republishes used.idx |
| `give_back`: used.idx is published | the driver sees the chains; a successor interrupts for them |

The device uses chains in the order in which they were made available, so one position describes the queue and nothing
is in flight between two turns.  A chain that was served in part stays the next one, with the bytes served so far in
`offset`; both are one 64-bit field, stored at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.errors import AccessInterrupted, DriverError
from virtserial.memory import barrier
from virtserial.virtio.ring.chains import ChainBatch
from virtserial.virtio.ring.record import PROGRESS, SIGNALLED
from virtserial.virtio.ring.split.access import MappedRing, RemoteRing, RingAccess
from virtserial.virtio.ring.split.layout import (
    AVAIL_IDX,
    AVAIL_RING,
    DESCRIPTOR,
    DESCRIPTOR_SIZE,
    USED_IDX,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_WRITE,
    VIRTQ_USED_F_NO_NOTIFY,
    avail_ring_size,
    descriptor_table_size,
    used_ring_size,
)
from virtserial.virtio.ring.split.logged import LoggedRing
from virtserial.virtio.ring.split.table import DescriptorTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.memory.table import MemoryTable
    from virtserial.virtio.ring.record import QueueRecord

_unpack = DESCRIPTOR.unpack_from


def _open_ring(
    memory: MemoryTable, size: int, desc: int, avail: int, used: int
) -> tuple[RingAccess, MappedRing | None]:
    """Return the access to a ring at these guest addresses, and itself again if loads and stores are all that it does.

    Raises:
        DriverError: an address is not aligned as 2.7 asks.
        AddressError: an area is not mapped for DMA.
    """
    for name, address, alignment in (
        ("descriptor table", desc, 16),
        ("available ring", avail, 2),
        ("used ring", used, 4),
    ):
        if address % alignment:
            raise DriverError(f"{name} at {address:#x} is not aligned to {alignment} bytes")
    views = (
        memory.mapped_view(desc, descriptor_table_size(size)),
        memory.mapped_view(avail, avail_ring_size(size)),
        memory.mapped_view(used, used_ring_size(size)),
    )
    mapped = None if None in views else MappedRing(size, *(view for view in views if view is not None))
    ring = mapped or RemoteRing(memory, size, desc, avail, used)
    # What is stored by messages the VMM sees itself.
    if memory.log is None or (memory.log.shared_only and not memory.find(used).is_shared):
        return ring, mapped
    return LoggedRing(ring, memory, memory.log, size, used), None


class SplitRing:
    """An attached split ring (a `DeviceRing`).

    Args:
        index: of the queue, for messages.
        record: its registers, which do not change while the ring is attached, and its position.
        memory: the driver's.

    Raises:
        DriverError: an area is not aligned.
        AddressError: an area is not mapped for DMA.
    """

    attached = True

    __slots__ = (
        "_access",
        "_awaited",
        "_end",
        "_event_idx",
        "_head",
        "_index",
        "_lowest",
        "_mapped",
        "_memory",
        "_next",
        "_progress_at",
        "_record",
        "_registers",
        "_signalled_at",
        "_size",
        "_table",
        "mapped",
        "offset",
        "position",
    )

    def __init__(self, index: int, record: QueueRecord, memory: MemoryTable) -> None:
        size = record.size
        self._index = index
        self._record = record
        self._registers = record.state
        self._progress_at = (record.base + PROGRESS) >> 3
        self._signalled_at = (record.base + SIGNALLED) >> 1
        self._memory = memory
        self.reopen()
        self._size = size
        self._event_idx = bool(record.event_idx)
        self._table = DescriptorTable(index, size, memory, bool(record.indirect))
        areas = self._areas()
        self._lowest, self._end = min(areas)[0], max(end for _, end in areas)
        self._awaited = False
        self._head = 0
        self.position = record.progress
        self.offset = record.offset
        self._next = record.position
        if self._next:
            # A predecessor may have been killed behind its commit point.
            self._access.publish_used_idx(self._next)

    # Taking chains

    def waiting(self) -> int:
        """How many chains the driver has made available and the device has not used.

        Raises:
            DriverError: the driver's index is further ahead than the queue is long (2.7.13.3.1).
        """
        idx = self._access.avail_idx()
        waiting = (idx - self._next) & 0xFFFF
        if waiting > self._size:
            raise DriverError(
                f"queue {self._index}: available index {idx} is {waiting} ahead of {self._next}, "
                f"the queue has {self._size} entries"
            )
        return waiting

    def readable_chains(self, max_chains: int, max_bytes: int) -> ChainBatch:
        waiting = self.waiting()
        if not waiting:
            return ChainBatch()
        access = self._access
        heads = access.avail_entries(self._next, min(waiting, max_chains))
        return self._table.collect(heads, access.descriptors(), 0, max_bytes, self.offset)

    def writable_chains(self, max_chains: int, max_bytes: int) -> ChainBatch:
        waiting = self.waiting()
        if not waiting:
            return ChainBatch()
        access = self._access
        heads = access.avail_entries(self._next, min(waiting, max_chains))
        return self._table.collect(heads, access.descriptors(), VIRTQ_DESC_F_WRITE, max_bytes, 0)

    # One chain (console/lane.py): the same rules and stores, without a list.  What is not plain is left to the others.

    def lone_message(self, limit: int) -> memoryview | None:
        mapped, position = self._mapped, self._next
        if mapped is None or self.offset or (mapped.avail[AVAIL_IDX] - position) & 0xFFFF != 1:
            return None
        head = mapped.avail[AVAIL_RING + position % self._size]
        if head >= self._size:
            return None
        address, length, flags, _ = _unpack(mapped.desc, head * DESCRIPTOR_SIZE)
        if flags or not 0 < length <= limit:
            return None
        self._head = head
        return self._memory.view_in_region(address, length, False)

    def next_buffer(self) -> memoryview | None:
        mapped, position = self._mapped, self._next
        if mapped is None or not 0 < (mapped.avail[AVAIL_IDX] - position) & 0xFFFF <= self._size:
            return None
        head = mapped.avail[AVAIL_RING + position % self._size]
        if head >= self._size:
            return None
        address, length, flags, _ = _unpack(mapped.desc, head * DESCRIPTOR_SIZE)
        if flags != VIRTQ_DESC_F_WRITE or not length:
            return None
        self._head = head
        return self._memory.view_in_region(address, length, True)

    def give_back_one(self, written: int) -> None:
        mapped, position = self._mapped, self._next
        if mapped is None:
            raise AccessInterrupted("the ring was opened anew")
        at, used = position % self._size * 2, mapped.used32
        used[at] = self._head
        used[at + 1] = written
        position = (position + 1) & 0xFFFF
        if not position:
            self._record.chains += 1 << 16
        self._awaited = False
        # Commit point, as in `give_back`; `offset` is 0 (`lone_message`), as a receiveq's always is.
        self.position = self._next = self._registers.u64[self._progress_at] = position
        mapped.used16[USED_IDX] = position
        self._memory.commits += 1

    # Giving chains back

    def store(self, batch: ChainBatch, written: int) -> None:
        if batch.bounces:
            batch.write_back(self._memory, written)

    def give_back(self, heads: Sequence[int], lengths: Sequence[int] | None = None, offset: int = 0) -> None:
        access, position = self._access, self._next
        # Looked at before the driver can have seen these: afterwards every driver names one of them.
        ahead = (access.used_event() - position) & 0xFFFF if self._event_idx and self.mapped else 0
        # It named one as the chain to hear of when others were still to come before it, and so waits for that one.
        self._awaited = 0 < ahead < len(heads)
        access.store_used(position, heads, lengths)
        new = (position + len(heads)) & 0xFFFF
        if new < position:
            self._record.chains += 1 << 16
        position = self._next = new
        self.offset = offset
        # Commit point: after a crash here, attaching republishes used.idx.
        self.position = self._registers.u64[self._progress_at] = offset << 16 | position
        access.publish_used_idx(position)
        self._memory.commits += 1

    # Notifications

    def take_signal(self) -> bool:
        new, registers, at = self._next, self._registers.u16, self._signalled_at
        old = registers[at]
        if old == new:
            return False
        barrier.full()
        mapped = self._mapped
        if self._event_idx:
            used_event = self._access.used_event() if mapped is None else mapped.avail[AVAIL_RING + self._size]
            wanted = (new - used_event - 1) & 0xFFFF < (new - old) & 0xFFFF  # layout.event_needed
        else:
            wanted = not self._access.avail_flags() & VIRTQ_AVAIL_F_NO_INTERRUPT
        registers[at] = new
        return wanted

    def signal_is_urgent(self) -> bool:
        signalled = self._registers.u16[self._signalled_at]
        return self._awaited or (self._next - signalled) & 0xFFFF >= self._size * 3 >> 2

    def unseen(self) -> int:
        """With EVENT_IDX the driver wants to hear of the chain behind the last that it has seen."""
        if not self._event_idx or not self.mapped:
            return 0
        unseen = (self._next - self._access.used_event()) & 0xFFFF
        return unseen if unseen <= self._size else 0

    def arm(self, ahead: int = 0) -> bool:
        mapped = self._mapped
        if mapped is not None and self._event_idx:
            mapped.used16[2 + 4 * self._size] = (self._next + ahead) & 0xFFFF
            barrier.full()
            return mapped.avail[AVAIL_IDX] != self._next and self.waiting() > 0
        if self._event_idx:
            self._access.store_avail_event((self._next + ahead) & 0xFFFF)
        else:
            self._access.store_used_flags(0)
        barrier.full()
        return self.waiting() > 0

    def disarm(self, ahead: int = 0) -> None:
        if not self._event_idx:
            self._access.store_used_flags(VIRTQ_USED_F_NO_NOTIFY)
        elif ahead:  # Else a stale avail_event says it already.
            self._access.store_avail_event((self._next + ahead) & 0xFFFF)

    # Memory

    def reopen(self) -> None:
        record = self._record
        try:
            self._access, self._mapped = _open_ring(
                self._memory, record.size, record.desc_address, record.avail_address, record.used_address
            )
        except DriverError as error:
            raise type(error)(f"queue {self._index}: {error}") from None
        self.mapped = self._access.mapped

    def lies_in(self, start: int, end: int) -> bool:
        if self._lowest >= end or start >= self._end:
            return False
        return any(first < end and start < last for first, last in self._areas())

    def _areas(self) -> tuple[tuple[int, int], ...]:
        """[start, end) of each area in guest addresses.  Not kept: a device has up to 1,024 rings."""
        record, size = self._record, self._size
        return (
            (record.desc_address, record.desc_address + descriptor_table_size(size)),
            (record.avail_address, record.avail_address + avail_ring_size(size)),
            (record.used_address, record.used_address + used_ring_size(size)),
        )

    def forget_buffers(self) -> None:
        self._table.forget_buffers()
