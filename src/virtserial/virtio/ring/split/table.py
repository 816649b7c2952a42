"""The descriptor table of a split virtqueue: from the head of a chain to views of its bytes, device side.

Everything read from guest memory is read once, checked against 2.7.5 and its subsections, and never trusted again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.errors import DriverError
from virtserial.virtio.ring.chains import MAX_CHAIN_BYTES, MAX_CHAIN_LENGTH, ChainBatch
from virtserial.virtio.ring.split.known_buffers import WORTH_KNOWING, KnownBuffers
from virtserial.virtio.ring.split.layout import (
    DESCRIPTOR,
    DESCRIPTOR_SIZE,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.memory.region import Buffer
    from virtserial.memory.table import MemoryTable

_unpack = DESCRIPTOR.unpack_from


class DescriptorTable:
    """Walks the chains of one attached queue.

    Args:
        index: of the queue, for messages.
        size: descriptors in the table.
        memory: where the chains' buffers are.
        indirect: VIRTIO_F_INDIRECT_DESC was negotiated.
    """

    __slots__ = ("_index", "_indirect", "_known", "_memory", "_size")

    def __init__(self, index: int, size: int, memory: MemoryTable, indirect: bool) -> None:
        self._index = index
        self._size = size
        self._memory = memory
        self._indirect = indirect
        self._known: KnownBuffers | None = None

    def forget_buffers(self) -> None:
        """Let go of views of buffers."""
        self._known = None

    def collect(self, heads: list[int], table: Buffer, direction: int, max_bytes: int, skip: int) -> ChainBatch:
        """Return the chains of these heads, up to the one that reaches `max_bytes`.

        The hot path.  A chain of one descriptor in the region that the last one was in - that is every chain of a Linux
        driver - costs one unpack, one slice and three comparisons; everything else goes to `_walk`.

        Args:
            table: the descriptor table's bytes, live or copied.
            direction: 0 for the device-readable part, VIRTQ_DESC_F_WRITE for the other.
            skip: bytes of the first chain that are left out.

        Raises:
            DriverError: a chain breaks a rule.
            AddressError: a buffer is not mapped for DMA, or only to be read.
        """
        batch = ChainBatch()
        size, memory = self._size, self._memory
        known = None
        if direction and len(heads) >= WORTH_KNOWING:
            known = self._known
            copy = bytes(table)
            if known is None or not known.describes(copy, memory.generation):
                known = self._known = KnownBuffers(copy, memory.generation)
            elif known.fill(batch, heads, max_bytes):
                self._check_unique(batch.heads)
                return batch
        views, ends = batch.views, list[int]()
        batch.ends = ends
        region_view: memoryview | None = None
        region_iova = region_size = 0
        recent = memory.recent
        if recent is not None and (recent.writable or not direction):
            region_view, region_iova, region_size = recent.view, recent.iova, recent.size
        total = 0
        for head in heads:
            if head >= size:
                raise DriverError(f"queue {self._index}: head {head} is outside the descriptor table of {size}")
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
                raise DriverError(f"queue {self._index}: chain {head} was changed while it was in use")
            if total - skip >= max_bytes or len(views) >= MAX_CHAIN_LENGTH:
                break
        batch.heads = heads[: len(ends)]
        self._check_unique(batch.heads)
        if known is not None and len(views) == len(ends) and not batch.bounces and not batch.walked:
            known.learn(batch)
        return batch

    def _check_unique(self, heads: Sequence[int]) -> None:
        if len(set(heads)) != len(heads):
            raise DriverError(f"queue {self._index}: a head was made available again before it was used")

    def _buffer(self, batch: ChainBatch, address: int, length: int, direction: int, limit: int, skip: int) -> int:
        if not length:
            raise DriverError(f"queue {self._index}: zero-length buffer at {address:#x}")
        return batch.add_buffer(self._memory, address, length, bool(direction), limit, skip)

    def _walk(self, batch: ChainBatch, head: int, table: Buffer, direction: int, limit: int, skip: int) -> int:
        """Append views of any chain: direct, indirect, or direct descriptors that end in an indirect one.

        Returns the bytes of the wanted direction.
        """
        total = 0
        buffers = self._descriptors(head, table)
        batch.walked += len(buffers)
        for address, length, flags in buffers:
            if flags & VIRTQ_DESC_F_WRITE != direction:
                # 2.6.4.2: what the other side must not have put here is neither read nor written, only returned.
                batch.odd += 1
                continue
            total += self._buffer(batch, address, length, direction, limit - total, max(0, skip - total))
        return total

    def _descriptors(self, head: int, table: Buffer) -> list[tuple[int, int, int]]:
        """Return (address, length, flags) of every buffer of a chain, checked against 2.7.5 and its subsections."""
        buffers: list[tuple[int, int, int]] = []
        name = f"queue {self._index}: chain {head}"
        size = limit = self._size
        index, indirect, writable_seen = head, False, False
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
