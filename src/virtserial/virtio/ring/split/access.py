"""How the device side reaches the three areas of a split virtqueue.

`MappedRing` works on views of mapped guest memory: a field that both sides touch is one aligned load or store.
`RemoteRing` works where some area is not mapped in one piece (memory without shared access, a file that may shrink,
a ring that spans IOMMU mappings): the same operations by reads and writes of the memory table.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Protocol

from virtserial.virtio.ring.split.layout import (
    AVAIL_FLAGS,
    AVAIL_IDX,
    AVAIL_RING,
    USED_FLAGS,
    USED_IDX,
    USED_RING_OFFSET,
    descriptor_table_size,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.memory.region import Buffer
    from virtserial.memory.table import MemoryTable

LOADS_AT_MOST = 16
"""A driver that never stops changing a field must not keep us reading it; whatever we see of it is checked anyway."""


class RingAccess(Protocol):
    """Loads and stores of one queue's shared fields.

    Attributes:
        mapped: they are no system calls.
    """

    mapped: bool

    def avail_idx(self) -> int: ...
    def avail_flags(self) -> int: ...
    def used_event(self) -> int: ...
    def avail_entries(self, start: int, count: int) -> list[int]:
        """Return `count` entries of the available ring from free-running position `start`."""
        ...

    def descriptors(self) -> Buffer:
        """Return the descriptor table: live where mapped, else a copy taken now."""
        ...

    def store_used(self, position: int, heads: Sequence[int], lengths: Sequence[int] | None) -> None:
        """Store used elements from free-running `position` on (lengths None: all 0), not yet visible."""
        ...

    def publish_used_idx(self, idx: int) -> None: ...
    def store_used_flags(self, flags: int) -> None: ...
    def store_avail_event(self, idx: int) -> None: ...


class MappedRing:
    """A ring whose three areas each lie in mapped memory.

    Attributes:
        desc: the descriptor table's bytes.
        avail, used16: the rings as 16-bit fields.
        used32: the used elements alone, as 32-bit fields.
    """

    mapped = True

    __slots__ = ("_size", "avail", "desc", "used16", "used32")

    def __init__(self, size: int, desc: memoryview, avail: memoryview, used: memoryview) -> None:
        self._size = size
        self.desc = desc
        self.avail = avail.cast("H")
        self.used16 = used.cast("H")
        # The used elements alone: the whole ring's length is no multiple of 4.
        self.used32 = used[USED_RING_OFFSET : USED_RING_OFFSET + 8 * size].cast("I")

    def avail_idx(self) -> int:
        return self.avail[AVAIL_IDX]

    def avail_flags(self) -> int:
        return self.avail[AVAIL_FLAGS]

    def used_event(self) -> int:
        return self.avail[AVAIL_RING + self._size]

    def avail_entries(self, start: int, count: int) -> list[int]:
        size = self._size
        first = AVAIL_RING + start % size
        end = first + count
        limit = AVAIL_RING + size
        avail = self.avail
        if end <= limit:
            return avail[first:end].tolist()
        return avail[first:limit].tolist() + avail[AVAIL_RING : end - size].tolist()

    def descriptors(self) -> memoryview:
        return self.desc

    def store_used(self, position: int, heads: Sequence[int], lengths: Sequence[int] | None) -> None:
        used = self.used32
        size = self._size
        at = position % size
        count = len(heads)
        if count == 1:
            used[2 * at] = heads[0]
            used[2 * at + 1] = lengths[0] if lengths is not None else 0
            return
        # Nobody looks at them before the index is published: the order of these stores does not matter.
        room = size - at
        all_heads, all_lengths = array("I", heads), array("I", bytes(4 * count) if lengths is None else lengths)
        if count <= room:
            end = 2 * (at + count)
            used[2 * at : end : 2] = all_heads
            used[2 * at + 1 : end : 2] = all_lengths
        else:
            used[2 * at :: 2] = all_heads[:room]
            used[2 * at + 1 :: 2] = all_lengths[:room]
            end = 2 * (count - room)
            used[:end:2] = all_heads[room:]
            used[1:end:2] = all_lengths[room:]

    def publish_used_idx(self, idx: int) -> None:
        self.used16[USED_IDX] = idx

    def store_used_flags(self, flags: int) -> None:
        self.used16[USED_FLAGS] = flags

    def store_avail_event(self, idx: int) -> None:
        self.used16[2 + 4 * self._size] = idx


class RemoteRing:
    """A ring reached through the memory table, access by access."""

    mapped = False

    __slots__ = ("_avail", "_desc", "_memory", "_size", "_used")

    def __init__(self, memory: MemoryTable, size: int, desc: int, avail: int, used: int) -> None:
        self._memory = memory
        self._size = size
        self._desc = desc
        self._avail = avail
        self._used = used

    def _load16(self, address: int) -> int:
        # A copy made by the kernel may see half of an update: two equal ones in a row are whole.
        seen = self._memory.read(address, 2)
        for _ in range(LOADS_AT_MOST - 1):
            again, seen = seen, self._memory.read(address, 2)
            if again == seen:
                break
        return int.from_bytes(seen, "little")

    def _store16(self, address: int, value: int) -> None:
        self._memory.write(address, value.to_bytes(2, "little"))

    def avail_idx(self) -> int:
        return self._load16(self._avail + 2 * AVAIL_IDX)

    def avail_flags(self) -> int:
        return self._load16(self._avail + 2 * AVAIL_FLAGS)

    def used_event(self) -> int:
        return self._load16(self._avail + 2 * (AVAIL_RING + self._size))

    def avail_entries(self, start: int, count: int) -> list[int]:
        ring = memoryview(self._memory.read(self._avail + 2 * AVAIL_RING, 2 * self._size)).cast("H")
        return [ring[(start + k) % self._size] for k in range(count)]

    def descriptors(self) -> bytes:
        return self._memory.read(self._desc, descriptor_table_size(self._size))

    def store_used(self, position: int, heads: Sequence[int], lengths: Sequence[int] | None) -> None:
        elements = b"".join(
            head.to_bytes(4, "little") + (lengths[k] if lengths else 0).to_bytes(4, "little")
            for k, head in enumerate(heads)
        )
        start = 8 * (position % self._size)
        room = 8 * self._size - start
        ring = self._used + USED_RING_OFFSET
        self._memory.write(ring + start, elements[:room])
        if len(elements) > room:
            self._memory.write(ring, elements[room:])

    def publish_used_idx(self, idx: int) -> None:
        self._store16(self._used + 2 * USED_IDX, idx)

    def store_used_flags(self, flags: int) -> None:
        self._store16(self._used + 2 * USED_FLAGS, flags)

    def store_avail_event(self, idx: int) -> None:
        self._store16(self._used + USED_RING_OFFSET + 8 * self._size, idx)
