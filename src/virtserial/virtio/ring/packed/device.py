"""The device side of a packed virtqueue (virtio 1.3, section 2.8).

Chains are looked at, served, and only then taken, in order, as in a split ring.  But here a used descriptor takes the
place of an available one, so what the driver sees and what the device still has to read are the same memory:

| step | what a crash leaves behind it |
|---|---|
| `readable_chains`, `writable_chains` | nothing: looking moves nothing |
| the one system call that moves the bytes | a note in the ledger tells the successor how far it came |
| `give_back`: `record.progress` is stored | **commit point**: the chains are used; `attach` marks what is not marked |
| `give_back`: used descriptors are stored, last chain first | the driver sees none before it sees the first |
| only without mapped memory: `record.progress` is stored again (below) | the first chain is marked from its length |
| `give_back`: the first chain's used descriptor is stored | the driver sees all of them |
| `give_back`: `record.began` is stored | all are marked; a successor interrupts for them |

A used descriptor is one store of 64 bits into the first descriptor of its chain, so each chain is either as the driver
made it or marked.  Between commit point and the last step `began` is behind the position; `filling` says that the bytes
written are in the place of `offset`: they fill the chains in order, so their sum tells all lengths.

Memory that is not mapped knows no such store: the first chain's flags follow its length in a write of their own, and a
crash between the two leaves neither the driver's length nor a used descriptor.  FIRST_ONLY in `progress` says that all
chains but the first are marked, and that the bytes written, if `filling`, are those of the first.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Final

from virtserial.errors import DriverError
from virtserial.memory import barrier
from virtserial.virtio.ring.chains import MAX_CHAIN_LENGTH, ChainBatch
from virtserial.virtio.ring.packed.access import MappedRing, RemoteRing, RingAccess
from virtserial.virtio.ring.packed.layout import (
    EVENT_SIZE,
    INDEX,
    RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE,
    VIRTQ_DESC_F_WRITE,
    advance,
    available_flags,
    distance,
    event_needed,
    ring_size,
    used_flags,
)
from virtserial.virtio.ring.packed.logged import LoggedRing, mark_filled
from virtserial.virtio.ring.packed.walk import ChainWalker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.memory.table import MemoryTable
    from virtserial.virtio.ring.record import QueueRecord


FIRST_ONLY: Final = 1 << 63
"""In `record.progress`, above any offset: see the head of this file."""


class PackedRing:
    """An attached packed ring (a `DeviceRing`).

    Args:
        index: of the queue, for messages.
        record: its registers, which do not change while the ring is attached, and its position.
        memory: the driver's.

    Raises:
        DriverError: an area is not aligned; a chain of a predecessor breaks a rule.
        AddressError: an area is not mapped for DMA.
    """

    attached = True

    __slots__ = (
        "_access", "_awaited", "_event_idx", "_head", "_index", "_log", "_memory", "_next", "_record", "_size",
        "_slots", "_walker", "mapped", "offset", "position",
    )  # fmt: skip

    def __init__(self, index: int, record: QueueRecord, memory: MemoryTable) -> None:
        self._index = index
        self._record = record
        self._memory = memory
        self._size = record.size
        self._event_idx = bool(record.event_idx)
        self._walker = ChainWalker(index, record.size, memory, bool(record.indirect))
        self._awaited = False
        self._slots: list[int] = []
        self._head = 0
        self.reopen()
        if record.began != record.position:
            # A predecessor was killed behind its commit point.
            self._mark_what_is_left()
        self._next = record.position
        self.position = record.progress
        self.offset = record.offset

    # Taking chains

    def waiting(self) -> int:
        """1 if a chain waits, a quarter of the ring if so much is available."""
        at, quarter = self._next, self._size >> 2
        if not self._access.is_available(at & INDEX, available_flags(at)):
            return 0
        far = advance(at, quarter, self._size)
        return quarter or 1 if self._access.is_available(far & INDEX, available_flags(far)) else 1

    def readable_chains(self, max_chains: int, max_bytes: int) -> ChainBatch:
        return self._collect(0, max_chains, max_bytes, self.offset)

    def writable_chains(self, max_chains: int, max_bytes: int) -> ChainBatch:
        return self._collect(VIRTQ_DESC_F_WRITE, max_chains, max_bytes, 0)

    def _collect(self, direction: int, max_chains: int, max_bytes: int, skip: int) -> ChainBatch:
        """The hot path: a chain of one descriptor in the region that the last one was in costs one slice."""
        batch = ChainBatch()
        heads, views, memory, size = batch.heads, batch.views, self._memory, self._size
        batch.ends = ends = list[int]()
        self._slots = slots = []
        region_view: memoryview | None = None
        region_iova = region_size = total = 0
        recent = memory.recent
        if recent is not None and (recent.writable or not direction):
            region_view, region_iova, region_size = recent.view, recent.iova, recent.size
        position = self._next
        while len(heads) < max_chains:
            available = available_flags(position)
            plain = available | direction
            at = position & INDEX
            flags, fields = self._access.available(at, min(max_chains - len(heads), size - at), available)
            if not flags:
                break
            number = 0
            while number < len(flags):
                address, length, head, _ = fields[number]
                inside = address - region_iova
                if flags[number] == plain and total >= skip and inside >= 0 and 0 < length <= region_size - inside:
                    views.append(region_view[inside : inside + length])  # type: ignore[index]  # a size > 0 means a view
                    total += length
                    count = 1
                else:
                    limit = max_bytes + skip - total
                    head, count, length = self._walk(batch, position, direction, limit, max(0, skip - total))
                    total += length
                    if length and flags[number] == plain:
                        region = memory.find(address)
                        if region.view is not None:
                            memory.recent = region
                            region_view, region_iova, region_size = region.view, region.iova, region.size
                heads.append(head)
                ends.append(total)
                slots.append(count)
                number += count
                position = advance(position, count, size)
                if skip and skip >= ends[0]:
                    raise DriverError(f"queue {self._index}: chain {head} was changed while it was in use")
                if total - skip >= max_bytes or len(views) >= MAX_CHAIN_LENGTH or batch.walked >= MAX_CHAIN_LENGTH:
                    return batch
        return batch

    def _walk(self, batch: ChainBatch, position: int, direction: int, limit: int, skip: int) -> tuple[int, int, int]:
        """Append views of any chain; return its buffer id, how many descriptors it takes, and its bytes."""
        chain = self._walker.chain_at(self._access, position)
        total = 0
        for address, length, flags in chain.buffers:
            if flags & VIRTQ_DESC_F_WRITE != direction:
                # 2.6.4.2: what the other side must not have put here is neither read nor written, only returned.
                batch.odd += 1
                continue
            total += batch.add_buffer(
                self._memory, address, length, bool(direction), limit - total, max(0, skip - total)
            )
        if len(chain.buffers) > 1 or not total:
            batch.walked += len(chain.buffers)
        return chain.identifier, chain.slots, total

    # One chain (console/lane.py).  What is not plain is left to the others.

    def lone_message(self, limit: int) -> memoryview | None:
        at = self._next
        if self.offset or not (view := self._plain_buffer(0)) or len(view) > limit:
            return None
        behind = advance(at, 1, self._size)
        return None if self._access.is_available(behind & INDEX, available_flags(behind)) else view

    def next_buffer(self) -> memoryview | None:
        return self._plain_buffer(VIRTQ_DESC_F_WRITE)

    def _plain_buffer(self, direction: int) -> memoryview | None:
        at = self._next
        if not self.mapped:
            return None
        available = available_flags(at)
        flags, fields = self._access.available(at & INDEX, 1, available)
        if not flags or flags[0] != available | direction:
            return None
        address, length, self._head, _ = fields[0]
        self._slots = [1]
        return self._memory.view_in_region(address, length, bool(direction)) if length else None

    def give_back_one(self, written: int) -> None:
        self.give_back((self._head,), (written,) if written else None)

    # Giving chains back

    def store(self, batch: ChainBatch, written: int) -> None:
        if batch.bounces:
            batch.write_back(self._memory, written)

    def give_back(self, heads: Sequence[int], lengths: Sequence[int] | None = None, offset: int = 0) -> None:
        record, start, count = self._record, self._next, len(heads)
        slots = self._slots[:count] if count <= len(self._slots) else self._slots_of(count)
        self._slots = self._slots[count:]
        total = sum(slots)
        end = advance(start, total, self._size)
        # Looked at before the driver can have seen these: afterwards every driver names one of them.
        event = self._driver_event() if self.mapped else None
        self._awaited = event is not None and 0 < distance(event, start, self._size) < total
        self._note_filled(start, lengths)
        record.filling = lengths is not None
        # Commit point: after a crash here, attaching marks the chains as used.
        record.progress = (offset if lengths is None else sum(lengths)) << 16 | end
        self._mark(start, heads, lengths, slots)
        self._next = end
        self.offset = offset
        self.position = record.progress = offset << 16 | end
        record.began = end
        record.chains += count
        self._memory.commits += 1

    def _slots_of(self, count: int) -> list[int]:
        """How many descriptors each of the next chains takes, where the ring is another one than was looked at."""
        position, slots = self._next, []
        for _ in range(count):
            slots.append(self._walker.chain_at(self._access, position).slots)
            position = advance(position, slots[-1], self._size)
        return slots

    def _mark(
        self, start: int, heads: Sequence[int], lengths: Sequence[int] | None, slots: Sequence[int]
    ) -> None:
        """Mark chains as used, from the last to the first: the driver sees them all at once."""
        runs: list[tuple[int, list[int]]] = []
        position, before = start, 0
        for head, length, count in zip(heads, lengths or repeat(0), slots, strict=False):
            flags = used_flags(position) | VIRTQ_DESC_F_WRITE if length else used_flags(position)
            if before != 1 or not position & INDEX:
                runs.append((position & INDEX, []))
            runs[-1][1].append(flags << 48 | head << 32 | length)
            position, before = advance(position, count, self._size), count
        if not runs:
            return
        access = self._access
        for index, used in reversed(runs[1:]):
            access.store_used(index, used)
        index, (shown, *others) = runs[0]
        if others:
            access.store_used(index + 1, others)
        if not access.mapped:
            record = self._record
            value = (shown & 0xFFFFFFFF) << 16 | record.position if record.filling else record.progress
            record.progress = FIRST_ONLY | value
        access.show_used(index, shown)

    def _note_filled(self, start: int, lengths: Sequence[int] | None) -> None:
        """Note the buffers of chains in the log, if there is one, before their descriptors are overwritten."""
        if self._log is not None and lengths is not None:
            for length in lengths:
                chain = self._walker.chain_at(self._access, start)
                mark_filled(self._log, chain, length)
                start = advance(start, chain.slots, self._size)

    def _mark_what_is_left(self) -> None:
        """Mark the chains from `began` to the position that a predecessor did not come to."""
        record, access, size = self._record, self._access, self._size
        first_only = record.progress & FIRST_ONLY
        offset = (record.progress & ~FIRST_ONLY) >> 16
        left = offset if record.filling else 0
        position, heads, lengths, slots = record.began, [], [], []
        while position != record.position and access.is_available(position & INDEX, available_flags(position)):
            if first_only:
                heads, lengths, slots = [self._walker.identifier_at(access, position)], [left], [1]
                break
            chain = self._walker.chain_at(access, position)
            heads.append(chain.identifier)
            lengths.append(min(left, chain.writable))
            slots.append(chain.slots)
            left -= lengths[-1]
            position = advance(position, chain.slots, size)
        if not first_only:
            self._note_filled(record.began, lengths)
        self._mark(record.began, heads, lengths, slots)
        record.progress = record.position if record.filling else offset << 16 | record.position
        record.began = record.position

    # Notifications

    def _driver_event(self) -> int | None:
        """The position whose chain the driver wants to hear of; None if it wants to hear of all, or of none."""
        event = self._access.driver_event()
        return event & 0xFFFF if self._event_idx and event >> 16 & 3 == RING_EVENT_FLAGS_DESC else None

    def take_signal(self) -> bool:
        record, new = self._record, self._next
        old = record.signalled
        if old == new:
            return False
        barrier.full()
        event = self._access.driver_event()
        flags = event >> 16 & 3
        if flags == RING_EVENT_FLAGS_DESC and self._event_idx:
            wanted = event_needed(event & 0xFFFF, new, old, self._size)
        else:
            wanted = flags != RING_EVENT_FLAGS_DISABLE
        record.signalled = new
        return wanted

    def signal_is_urgent(self) -> bool:
        return self._awaited or distance(self._next, self._record.signalled, self._size) >= self._size * 3 >> 2

    def unseen(self) -> int:
        """A driver that names a descriptor wants to hear of the one behind the last that it has seen."""
        event = self._driver_event() if self.mapped else None
        unseen = 0 if event is None else distance(self._next, event, self._size)
        return unseen if unseen <= self._size else 0

    def arm(self, ahead: int = 0) -> bool:
        if self._event_idx:
            at = advance(self._next, min(ahead, self._size), self._size)
            self._access.store_device_event(RING_EVENT_FLAGS_DESC << 16 | at)
        else:
            self._access.store_device_event(0)
        barrier.full()
        return self._access.is_available(self._next & INDEX, available_flags(self._next))

    def disarm(self, ahead: int = 0) -> None:
        if self._event_idx and ahead:
            at = advance(self._next, min(ahead, self._size), self._size)
            self._access.store_device_event(RING_EVENT_FLAGS_DESC << 16 | at)
            return
        self._access.store_device_event(RING_EVENT_FLAGS_DISABLE << 16)

    # Memory

    def reopen(self) -> None:
        record, memory = self._record, self._memory
        names = ("descriptor ring", "driver event suppression", "device event suppression")
        for name, alignment, (start, _) in zip(names, (16, EVENT_SIZE, EVENT_SIZE), self._areas(), strict=True):
            if start % alignment:
                raise DriverError(f"queue {self._index}: {name} at {start:#x} is not aligned to {alignment} bytes")
        try:
            desc, driver, device = (memory.mapped_view(start, end - start) for start, end in self._areas())
        except DriverError as error:
            raise type(error)(f"queue {self._index}: {error}") from None
        ring: RingAccess
        if desc is None or driver is None or device is None:
            ring = RemoteRing(memory, record.desc_address, record.avail_address, record.used_address)
        else:
            ring = MappedRing(desc, driver, device)
        log = self._log = memory.log
        # What is stored by messages the VMM sees itself.
        if log is not None and log.shared_only and not memory.find(record.desc_address).is_shared:
            log = self._log = None
        if log is not None:
            ring = LoggedRing(ring, log, record.desc_address, record.used_address)
        self._access = ring
        self.mapped = ring.mapped

    def lies_in(self, start: int, end: int) -> bool:
        return any(first < end and start < last for first, last in self._areas())

    def _areas(self) -> tuple[tuple[int, int], ...]:
        """[start, end) of each area in guest addresses.  Not kept: a device has up to 1,024 rings."""
        record = self._record
        return (
            (record.desc_address, record.desc_address + ring_size(self._size)),
            (record.avail_address, record.avail_address + EVENT_SIZE),
            (record.used_address, record.used_address + EVENT_SIZE),
        )

    def forget_buffers(self) -> None:
        """It keeps none."""
