"""The memory layout of a packed virtqueue (virtio 1.3, section 2.8), and positions in it, for both sides.

A queue of size n has one ring of n descriptors (16 n bytes, aligned to 16), which the driver makes available and the
device marks as used in place, and two event suppression structures (4 bytes, aligned to 4): the driver's, which the
device reads, and the device's, which the driver reads.

A position is an index in 15 bits and the wrap counter in bit 15, as in the event suppression structures.  The wrap
counter begins with 1 and changes with every lap.  What the AVAIL and USED flags of a descriptor say in a lap with wrap
counter w:

| AVAIL | USED | the descriptor is |
|---|---|---|
| w | not w | available |
| w | w | used |
| not w | w | available already in the next lap, so it was used in this one |
| not w | not w | not available yet: used in the lap before |
"""

from __future__ import annotations

from struct import Struct
from typing import Final

VIRTQ_DESC_F_NEXT: Final = 1
VIRTQ_DESC_F_WRITE: Final = 2
VIRTQ_DESC_F_INDIRECT: Final = 4
VIRTQ_DESC_F_AVAIL: Final = 1 << 7
VIRTQ_DESC_F_USED: Final = 1 << 15
LAP_FLAGS: Final = VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED

RING_EVENT_FLAGS_ENABLE: Final = 0
RING_EVENT_FLAGS_DISABLE: Final = 1
RING_EVENT_FLAGS_DESC: Final = 2
"""At one descriptor; only with VIRTIO_F_EVENT_IDX."""

MAX_QUEUE_SIZE: Final = 32768
"""Any size up to this one, not only powers of 2 (2.8)."""

DESCRIPTOR: Final = Struct("<QIHH")
"""struct pvirtq_desc: address, length, buffer id, flags."""
DESCRIPTOR_SIZE: Final = 16
EVENT_SIZE: Final = 4
"""struct pvirtq_event_suppress: a position, then flags, 16 bits each."""

INDEX: Final = 0x7FFF
WRAP: Final = 0x8000
START: Final = WRAP
"""The position of a new queue."""


def ring_size(size: int) -> int:
    """Bytes of the descriptor ring of a queue of `size` descriptors."""
    return DESCRIPTOR_SIZE * size


def areas(size: int) -> tuple[tuple[int, int], ...]:
    """Bytes and alignment of descriptor ring, driver area and device area of a queue of `size` descriptors."""
    return (ring_size(size), 16), (EVENT_SIZE, 4), (EVENT_SIZE, 4)


def advance(position: int, count: int, size: int) -> int:
    """Return the position `count` descriptors, at most `size`, behind `position`."""
    index, wrap = (position & INDEX) + count, position & WRAP
    return index | wrap if index < size else index - size | wrap ^ WRAP


def distance(end: int, start: int, size: int) -> int:
    """Return how many descriptors lie from `start` to `end`: less than two laps."""
    laps = 0 if (end ^ start) & WRAP == 0 else size
    return ((end & INDEX) - (start & INDEX) + laps) % (2 * size)


def available_flags(position: int) -> int:
    """AVAIL and USED of a descriptor that is available in the lap of `position`."""
    return VIRTQ_DESC_F_AVAIL if position & WRAP else VIRTQ_DESC_F_USED


def used_flags(position: int) -> int:
    """AVAIL and USED of a descriptor that is used in the lap of `position`."""
    return LAP_FLAGS if position & WRAP else 0


def event_needed(event: int, new: int, old: int, size: int) -> bool:
    """Whether moving from position `old` to `new` passes `event`, a descriptor that the other side has named."""
    return (distance(new, event, size) - 1) % (2 * size) < distance(new, old, size)
