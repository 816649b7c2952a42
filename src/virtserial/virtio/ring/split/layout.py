"""The memory layout of a split virtqueue (virtio 1.3, section 2.7), shared by device and driver side.

A queue of size n has three areas: the descriptor table (16 n bytes, aligned to 16), the available ring (6 + 2 n bytes,
aligned to 2) and the used ring (6 + 8 n bytes, aligned to 4).  A legacy driver gives one address for all three: they
follow each other, the used ring on the next page (2.7.2).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

VIRTQ_DESC_F_NEXT: Final = 1
VIRTQ_DESC_F_WRITE: Final = 2
VIRTQ_DESC_F_INDIRECT: Final = 4
VIRTQ_AVAIL_F_NO_INTERRUPT: Final = 1
VIRTQ_USED_F_NO_NOTIFY: Final = 1

MAX_QUEUE_SIZE: Final = 32768

DESCRIPTOR: Final = Struct("<QIHH")
"""struct virtq_desc: address, length, flags, next."""
DESCRIPTOR_SIZE: Final = 16
USED_ELEMENT_SIZE: Final = 8
USED_RING_ALIGNMENT: Final = 4
LEGACY_RING_ALIGNMENT: Final = 4096
"""Of a legacy ring's start and of its used ring, for PCI (2.7.2)."""

# The available ring in 16-bit words: flags, idx, ring[n], used_event.
AVAIL_FLAGS: Final = 0
AVAIL_IDX: Final = 1
AVAIL_RING: Final = 2
# The used ring in 16-bit words: flags, idx, then (id, len) pairs in 32-bit words from byte 4, then avail_event.
USED_FLAGS: Final = 0
USED_IDX: Final = 1
USED_RING_OFFSET: Final = 4


def descriptor_table_size(size: int) -> int:
    """Bytes of the descriptor table of a queue of `size` descriptors."""
    return DESCRIPTOR_SIZE * size


def avail_ring_size(size: int) -> int:
    """Bytes of the available ring, used_event included."""
    return 6 + 2 * size


def used_ring_size(size: int) -> int:
    """Bytes of the used ring, avail_event included."""
    return 6 + USED_ELEMENT_SIZE * size


def areas(size: int) -> tuple[tuple[int, int], ...]:
    """Bytes and alignment of descriptor table, available ring and used ring of a queue of `size` descriptors."""
    return (descriptor_table_size(size), 16), (avail_ring_size(size), 2), (used_ring_size(size), USED_RING_ALIGNMENT)


def used_ring_start(size: int, alignment: int) -> int:
    """Where the used ring begins behind descriptor table and available ring, in bytes from the start of the table."""
    return (descriptor_table_size(size) + avail_ring_size(size) + alignment - 1) & -alignment


def event_needed(event: int, new: int, old: int) -> bool:
    """Whether moving an index from `old` to `new` passes `event`: the other side asked to hear of that (2.7.10)."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
