"""The device side of a split virtqueue (virtio 1.3, section 2.7).

Chains are looked at, served, and only then taken: `readable_chains` and `writable_chains` return what the driver has
made available without moving the queue's position; `push_used` returns chains to the driver and moves it.  The device
uses chains in the order in which they were made available, so one position describes the whole queue, nothing is ever
"in flight" between two turns, and a successor of a killed process finds the ring as its predecessor left it.  A chain
that was served in part stays the next one, with the bytes already served in `offset`.

Everything read from guest memory is read once, checked, and never trusted again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.errors import DriverError
from virtserial.memory import barrier
from virtserial.memory.state import U16, U64, Record
from virtserial.virtio.ring.access import RingAccess, open_ring
from virtserial.virtio.ring.known_buffers import WORTH_KNOWING, KnownBuffers
from virtserial.virtio.ring.layout import (
    DESCRIPTOR,
    DESCRIPTOR_SIZE,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    VIRTQ_USED_F_NO_NOTIFY,
    avail_ring_size,
    descriptor_table_size,
    event_needed,
    used_ring_size,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.memory.region import Buffer
    from virtserial.memory.state import StateMemory
    from virtserial.memory.table import MemoryTable

MAX_CHAIN_LENGTH = 1024
"""Descriptors in one chain: QEMU's limit (VIRTQUEUE_MAX_SIZE), and as many buffers as one readv or writev takes."""
MAX_CHAIN_BYTES = 1 << 32
"""2.7.5.2: a driver must not add a chain longer than 2^32 bytes in total."""

_unpack = DESCRIPTOR.unpack_from


class QueueRecord(Record):
    """What a queue keeps in state memory."""

    __slots__ = ()
    SIZE = 48
    size = U16(0)
    enabled = U16(2)
    vector = U16(4)
    signalled = U16(8)
    event_idx = U16(10)
    indirect = U16(12)
    desc_address = U64(16)
    avail_address = U64(24)
    used_address = U64(32)
    progress = U64(40)
    """The next chain's position, and above its 16 bits how many of its bytes were served: one store for both."""

    @property
    def position(self) -> int:
        """The free-running index of the next chain."""
        return self.progress & 0xFFFF

    @position.setter
    def position(self, value: int) -> None:
        self.progress = self.progress & ~0xFFFF | value


class ChainBatch:
    """Chains that the driver has made available, in order, and the views of their bytes in one flat list.

    Attributes:
        heads: the chains' head descriptors.
        ends: for each chain the count of bytes up to its end, from the start of the first chain.
        views: the bytes, without those that `skip` left out.
        bounces: (guest address, view) for views that are no guest memory: see MemoryTable.writable_views.
        odd: how many descriptors were of the wrong direction for this queue.
        walked: how many descriptors were looked at in chains that are not a single one.
    """

    __slots__ = ("bounces", "ends", "heads", "odd", "views", "walked")

    def __init__(self) -> None:
        self.heads: list[int] = []
        self.ends: list[int] = []
        self.views: list[memoryview] = []
        self.bounces: list[tuple[int, memoryview]] = []
        self.odd = 0
        self.walked = 0


class Virtqueue:
    """One queue: its registers, its rings while it is enabled, its position.

    Args:
        index: the queue's number, for messages.
        max_size: the largest size offered, a power of 2.
        state: where its registers live.

    Attributes:
        awaited: the chains returned last hold one that the driver, by EVENT_IDX, had named as the one to hear of when
            others were still to come before it: it means to have them in batches of its own, and waits for this one.
    """

    __slots__ = (
        "_end",
        "_event_idx",
        "_indirect",
        "_known",
        "_lowest",
        "_memory",
        "_position",
        "_size",
        "_untouched",
        "awaited",
        "index",
        "max_size",
        "record",
        "ring",
    )

    def __init__(self, index: int, max_size: int, state: StateMemory) -> None:
        self.index = index
        self.max_size = max_size
        self.record = QueueRecord(state)
        self.ring: RingAccess | None = None
        self._memory: MemoryTable | None = None
        self._event_idx = False
        self._indirect = False
        self._position = 0
        self._size = 0
        self._known: KnownBuffers | None = None
        self.awaited = False
        self._lowest = self._end = 0
        self._untouched = max_size.to_bytes(2, "little") + b"\0\0\xff\xff" + bytes(QueueRecord.SIZE - 6)
        if not self.record.size:
            self.reset()

    def reset(self) -> None:
        """Return every register to its value after a device reset."""
        self.detach()
        self._position = 0
        if self.record.holds(self._untouched):
            # Most queues of a large device: a driver can reset it as fast as it can write a byte.
            return
        self.record.clear()
        self.record.size = self.max_size
        self.record.vector = 0xFFFF

    # Registers, as the transport shows them.  A driver sets them before it enables the queue (4.1.5.1.3); later writes
    # are ignored, so that nothing a live ring was checked against can change.

    @property
    def size(self) -> int:
        """Descriptors in the queue."""
        return self.record.size

    @size.setter
    def size(self, value: int) -> None:
        """Powers of 2 up to max_size; anything else is ignored (4.1.4.3.2)."""
        if not self.record.enabled and 0 < value <= self.max_size and not value & (value - 1):
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
        self.record.vector = value

    @property
    def desc_address(self) -> int:
        return self.record.desc_address

    @desc_address.setter
    def desc_address(self, value: int) -> None:
        if not self.record.enabled:
            self.record.desc_address = value

    @property
    def avail_address(self) -> int:
        return self.record.avail_address

    @avail_address.setter
    def avail_address(self, value: int) -> None:
        if not self.record.enabled:
            self.record.avail_address = value

    @property
    def used_address(self) -> int:
        return self.record.used_address

    @used_address.setter
    def used_address(self, value: int) -> None:
        if not self.record.enabled:
            self.record.used_address = value

    @property
    def offset(self) -> int:
        """Bytes of the next chain that were served already."""
        return self.record.progress >> 16

    @offset.setter
    def offset(self, value: int) -> None:
        self.record.progress = value << 16 | self.record.progress & 0xFFFF

    @property
    def position(self) -> int:
        """The free-running index of the next chain to use."""
        return self._position

    # Life

    def enable(self, event_idx: bool, indirect: bool) -> None:
        """Latch the registers: the queue is the driver's to fill from now on."""
        record = self.record
        record.event_idx, record.indirect = event_idx, indirect
        record.enabled = 1

    def attach(self, memory: MemoryTable) -> None:
        """Resolve the ring's addresses; again whenever the memory table has changed.

        Raises:
            DriverError: an area is misaligned.
            AddressError: an area is not mapped; the queue then has no ring.
        """
        record = self.record
        size = self._size = record.size
        self.ring = None
        self._memory = memory
        spans = self._spans()
        self._lowest, self._end = min(spans)[0], max(end for _, end in spans)
        self._event_idx = bool(record.event_idx)
        self._indirect = bool(record.indirect)
        self._position = record.position
        try:
            self.ring = open_ring(memory, size, record.desc_address, record.avail_address, record.used_address)
        except DriverError as error:
            raise type(error)(f"queue {self.index}: {error}") from None
        if self._position:
            self.ring.publish_used_idx(self._position)

    def reopen_ring(self) -> None:
        """Look up an attached ring anew: the memory table has begun or ceased to log."""
        if self.ring is not None:
            assert self._memory is not None
            record = self.record
            self.ring = open_ring(
                self._memory, self._size, record.desc_address, record.avail_address, record.used_address
            )

    @property
    def mapped(self) -> bool:
        """Whether the ring is reached without system calls."""
        return self.ring is not None and self.ring.mapped

    def detach(self) -> None:
        """Let go of the ring and of every view of guest memory."""
        self.ring = None
        self._known = None

    def forget_buffers(self) -> None:
        """Let go of views of buffers: memory was unmapped."""
        self._known = None

    def lies_in(self, start: int, end: int) -> bool:
        """Whether the attached ring has a part in the guest addresses [start, end)."""
        if self.ring is None or self._lowest >= end or start >= self._end:
            return False
        return any(first < end and start < last for first, last in self._spans())

    def _spans(self) -> tuple[tuple[int, int], ...]:
        """[start, end) of each of the ring's areas in guest addresses."""
        record, size = self.record, self._size
        return (
            (record.desc_address, record.desc_address + descriptor_table_size(size)),
            (record.avail_address, record.avail_address + avail_ring_size(size)),
            (record.used_address, record.used_address + used_ring_size(size)),
        )

    # Taking chains

    def available(self) -> int:
        """How many chains the driver has made available and the device has not used.

        Raises:
            DriverError: the driver's index is further ahead than the queue is long (2.7.13.3.1).
        """
        ring = self.ring
        if ring is None:
            return 0
        idx = ring.avail_idx()
        waiting = (idx - self._position) & 0xFFFF
        if waiting > self._size:
            raise DriverError(
                f"queue {self.index}: available index {idx} is {waiting} ahead of {self._position}, "
                f"the queue has {self._size} entries"
            )
        return waiting

    def readable_chains(self, max_chains: int, max_bytes: int) -> ChainBatch:
        """Return waiting chains with views of their device-readable part, less the `offset` bytes served already.

        The batch ends with the chain that reaches `max_bytes`.

        Raises:
            DriverError: a chain breaks a rule.
            AddressError: a buffer is not mapped for DMA.
        """
        return self._chains(0, max_chains, max_bytes, self.offset)

    def writable_chains(self, max_chains: int, max_bytes: int) -> ChainBatch:
        """Return waiting chains with views of their device-writable part.

        Raises:
            DriverError: a chain breaks a rule.
            AddressError: a buffer is not mapped for DMA, or only to be read.
        """
        return self._chains(VIRTQ_DESC_F_WRITE, max_chains, max_bytes, 0)

    def _chains(self, direction: int, max_chains: int, max_bytes: int, skip: int) -> ChainBatch:
        """The hot path.  A chain of one descriptor in the region that the last one was in - that is every chain of a
        Linux driver - costs one unpack, one slice and three comparisons; everything else goes to `_walk`."""
        batch = ChainBatch()
        waiting = self.available()
        if not waiting:
            return batch
        ring, memory = self.ring, self._memory
        assert ring is not None
        assert memory is not None
        size = self._size
        heads = ring.avail_entries(self._position, min(waiting, max_chains))
        table = ring.descriptors()
        known = None
        if direction and len(heads) >= WORTH_KNOWING:
            known = self._known
            copy = bytes(table)
            if known is None or not known.describes(copy, memory.generation):
                known = self._known = KnownBuffers(copy, memory.generation, size)
            elif known.fill(batch, heads, max_bytes):
                self._check_unique(batch.heads)
                return batch
        views, ends = batch.views, batch.ends
        region_view: memoryview | None = None
        region_iova = region_size = 0
        recent = memory.recent
        if recent is not None and (recent.writable or not direction):
            region_view, region_iova, region_size = recent.view, recent.iova, recent.size
        total = 0
        for head in heads:
            if head >= size:
                raise DriverError(f"queue {self.index}: head {head} is outside the descriptor table of {size}")
            address, length, flags, _ = _unpack(table, head * DESCRIPTOR_SIZE)
            if flags == direction and total >= skip:
                at = address - region_iova
                if at >= 0 and 0 < length <= region_size - at:
                    views.append(region_view[at : at + length])  # type: ignore[index]  # a size > 0 means a view
                    total += length
                else:
                    total += self._buffer(batch, address, length, direction, max_bytes + skip - total, 0)
                    region = memory.find(address)
                    if region.view is not None:
                        memory.recent = region
                        region_view, region_iova, region_size = region.view, region.iova, region.size
            else:
                total += self._walk(batch, head, table, direction, max_bytes + skip - total, max(0, skip - total))
                if batch.walked >= MAX_CHAIN_LENGTH:
                    # Descriptors without a byte for us cost time as well: the batch ends here.
                    max_bytes = 0
            ends.append(total)
            if skip and skip >= ends[0]:
                raise DriverError(f"queue {self.index}: chain {head} was changed while it was in use")
            if total - skip >= max_bytes or len(views) >= MAX_CHAIN_LENGTH:
                break
        batch.heads = heads[: len(ends)]
        self._check_unique(batch.heads)
        if known is not None and len(views) == len(ends) and not batch.bounces and not batch.walked:
            known.learn(batch)
        return batch

    def _check_unique(self, heads: Sequence[int]) -> None:
        if len(set(heads)) != len(heads):
            raise DriverError(f"queue {self.index}: a head was made available again before it was used")

    def _buffer(self, batch: ChainBatch, address: int, length: int, direction: int, limit: int, skip: int) -> int:
        """Append views of one buffer less its first `skip` bytes; return the length it counts for."""
        if not length:
            raise DriverError(f"queue {self.index}: zero-length buffer at {address:#x}")
        assert self._memory is not None
        if direction:
            views, bounces = self._memory.writable_views(address, length, limit)
            batch.views += views
            batch.bounces += bounces
            return sum(map(len, views))
        if skip < length:
            batch.views += self._memory.readable_views(address + skip, length - skip, limit - skip)
        return length

    def _walk(self, batch: ChainBatch, head: int, table: Buffer, direction: int, limit: int, skip: int) -> int:
        """Append views of any chain: direct, indirect, or direct descriptors that end in an indirect one.

        Returns the bytes of the wanted direction.
        """
        total = 0
        size = self.record.size
        buffers = self._descriptors(head, table, size)
        batch.walked += len(buffers)
        for address, length, flags in buffers:
            if flags & VIRTQ_DESC_F_WRITE != direction:
                # 2.6.4.2: what the other side must not have put here is neither read nor written, only returned.
                batch.odd += 1
                continue
            total += self._buffer(batch, address, length, direction, limit - total, max(0, skip - total))
        return total

    def _descriptors(self, head: int, table: Buffer, size: int) -> list[tuple[int, int, int]]:
        """Return (address, length, flags) of every buffer of a chain, checked against 2.7.5 and its subsections."""
        buffers: list[tuple[int, int, int]] = []
        name = f"queue {self.index}: chain {head}"
        index, limit, indirect, writable_seen = head, size, False, False
        total = 0
        while True:
            address, length, flags, following = _unpack(table, index * DESCRIPTOR_SIZE)
            if flags & VIRTQ_DESC_F_INDIRECT:
                if indirect:
                    raise DriverError(f"{name}: an indirect descriptor inside an indirect table")
                if not self._indirect:
                    raise DriverError(f"{name}: an indirect descriptor, but VIRTIO_F_INDIRECT_DESC was not negotiated")
                if flags & VIRTQ_DESC_F_NEXT:
                    raise DriverError(f"{name}: an indirect descriptor with a next one")
                if not length or length % DESCRIPTOR_SIZE:
                    raise DriverError(f"{name}: an indirect table of {length} bytes, not a multiple of 16")
                if len(buffers) + length // DESCRIPTOR_SIZE > MAX_CHAIN_LENGTH:
                    raise DriverError(
                        f"{name}: {length // DESCRIPTOR_SIZE} indirect descriptors, at most {MAX_CHAIN_LENGTH}"
                    )
                assert self._memory is not None
                table = self._memory.read(address, length)
                index, limit, indirect = 0, length // DESCRIPTOR_SIZE, True
                size += limit
                continue
            if flags & VIRTQ_DESC_F_WRITE:
                writable_seen = True
            elif writable_seen:
                raise DriverError(f"{name}: a device-readable descriptor behind a device-writable one")
            buffers.append((address, length, flags))
            total += length
            if total > MAX_CHAIN_BYTES:
                raise DriverError(f"{name}: longer than {MAX_CHAIN_BYTES} bytes")
            if not flags & VIRTQ_DESC_F_NEXT:
                return buffers
            if following >= limit:
                raise DriverError(f"{name}: next descriptor {following} is outside a table of {limit}")
            if len(buffers) >= min(size, MAX_CHAIN_LENGTH):
                raise DriverError(f"{name}: more than {min(size, MAX_CHAIN_LENGTH)} descriptors, a loop")
            index = following

    # Giving chains back

    def push_used(self, heads: Sequence[int], lengths: Sequence[int] | None = None, offset: int = 0) -> None:
        """Return chains to the driver in order of availability; the used index is published once for all of them.

        Args:
            heads: the chains, none being allowed.
            lengths: the bytes written into each (None: none).
            offset: bytes of the chain behind them that were served already.
        """
        ring = self.ring
        assert ring is not None
        # Looked at before the driver can have seen these: afterwards every driver names one of them.
        ahead = (ring.used_event() - self._position) & 0xFFFF if self._event_idx and ring.mapped else 0
        self.awaited = 0 < ahead < len(heads)
        ring.store_used(self._position, heads, lengths)
        position = self._position = (self._position + len(heads)) & 0xFFFF
        # From here on they are used: who is cut short before the next line publishes the index when it attaches again.
        self.record.progress = offset << 16 | position
        ring.publish_used_idx(position)

    def write_back(self, batch: ChainBatch, written: int) -> None:
        """Carry the first `written` bytes of the batch's buffers to guest memory, where they are not there already."""
        if not batch.bounces:
            return
        assert self._memory is not None
        bounced = {id(view): address for address, view in batch.bounces}
        for view in batch.views:
            if written <= 0:
                return
            count = min(written, len(view))
            address = bounced.get(id(view))
            if address is not None:
                self._memory.write(address, view[:count])
            written -= count

    # Notifications

    @property
    def unsignalled(self) -> int:
        """Chains returned since the driver was last considered for an interrupt."""
        return (self._position - self.record.signalled) & 0xFFFF

    def unseen(self) -> int:
        """How many of the returned chains the driver has not looked at yet, as far as it tells: with EVENT_IDX it wants
        to hear of the one behind the last that it has seen.  0 where that is not known, or costs a system call."""
        ring = self.ring
        if ring is None or not ring.mapped or not self._event_idx:
            return 0
        unseen = (self._position - ring.used_event()) & 0xFFFF
        return unseen if unseen <= self._size else 0

    def take_signal(self) -> bool:
        """Whether the driver wants an interrupt for the chains returned since the last call (2.7.7.2)."""
        ring = self.ring
        old, new = self.record.signalled, self._position
        if ring is None or old == new:
            return False
        barrier.full()
        if self._event_idx:
            wanted = event_needed(ring.used_event(), new, old)
        else:
            wanted = not ring.avail_flags() & VIRTQ_AVAIL_F_NO_INTERRUPT
        self.record.signalled = new
        return wanted

    def enable_notifications(self, ahead: int = 0) -> bool:
        """Ask for a doorbell when the driver makes a chain available, with EVENT_IDX `ahead` chains later.

        Returns whether chains came in meanwhile, for which no doorbell may ring.
        """
        ring = self.ring
        if ring is None:
            return False
        if self._event_idx:
            ring.store_avail_event((self._position + ahead) & 0xFFFF)
        else:
            ring.store_used_flags(0)
        barrier.full()
        return self.available() > 0

    def disable_notifications(self) -> None:
        """Tell the driver that no doorbell is needed.  With EVENT_IDX a stale avail_event says that already."""
        if self.ring is not None and not self._event_idx:
            self.ring.store_used_flags(VIRTQ_USED_F_NO_NOTIFY)
