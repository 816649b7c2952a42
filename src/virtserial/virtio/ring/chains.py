"""Chains that the driver has made available, as a batch of views: what a ring gives to the device.

The limits are those of every ring format.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import sub
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.memory.table import MemoryTable

MAX_CHAIN_LENGTH: Final = 1024
"""Descriptors in one chain: QEMU's limit (VIRTQUEUE_MAX_SIZE), and as many buffers as one readv or writev takes."""
MAX_CHAIN_BYTES: Final = 1 << 32
"""2.7.5.2: a driver must not add a chain longer than 2^32 bytes in total."""


class ChainBatch:
    """Waiting chains in order, and the views of their bytes in one flat list.

    Attributes:
        heads: what `DeviceRing.give_back` calls each chain (split: the head descriptor; packed: the buffer id).
        ends: for each chain the count of bytes up to its end, from the start of the first chain.
        views: the bytes, without those that were served already.
        bounces: (guest address, view) for views that are no guest memory: see MemoryTable.writable_views.
        odd: descriptors of the wrong direction for this queue; what they hold is neither read nor written.
        walked: descriptors that were looked at in chains of several.
        each: bytes of every chain, where all are known to have as many; else 0.
    """

    __slots__ = ("bounces", "each", "ends", "heads", "odd", "views", "walked")

    def __init__(self) -> None:
        self.heads: list[int] = []
        self.ends: Sequence[int] = []
        self.views: list[memoryview] = []
        self.bounces: list[tuple[int, memoryview]] = []
        self.odd = 0
        self.walked = self.each = 0

    def add_buffer(
        self, memory: MemoryTable, address: int, length: int, writable: bool, limit: int, skip: int
    ) -> int:
        """Append views of one buffer, less its first `skip` bytes; return the bytes that it counts for.

        Args:
            length: at least 1.
            limit: bytes after which no more views are needed.

        Raises:
            AddressError: it is not mapped for DMA, or only to be read.
        """
        if writable:
            views, bounces = memory.writable_views(address, length, limit)
            self.views += views
            self.bounces += bounces
            return sum(map(len, views))
        if skip < length:
            self.views += memory.readable_views(address + skip, length - skip, limit - skip)
        return length

    def lengths(self, count: int) -> list[int]:
        """How many of the first `count` bytes lie in each chain, up to the chain that the last of them reaches.

        Args:
            count: at least 1, and no more than there are.
        """
        ends = self.ends
        used = bisect_left(ends, count) + 1
        lengths = [self.each] * used if self.each else [ends[0], *map(sub, ends[1:used], ends)]
        lengths[-1] -= ends[used - 1] - count
        return lengths

    def write_back(self, memory: MemoryTable, written: int) -> None:
        """Store the first `written` bytes of the views in guest memory, where they are not there already."""
        bounced = {id(view): address for address, view in self.bounces}
        for view in self.views:
            if written <= 0:
                return
            count = min(written, len(view))
            address = bounced.get(id(view))
            if address is not None:
                memory.write(address, view[:count])
            written -= count
