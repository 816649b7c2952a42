"""Feature bits that belong to every device (virtio 1.3, section 6), as masks."""

from __future__ import annotations

from typing import Final

VIRTIO_F_ANY_LAYOUT: Final = 1 << 27
"""A legacy driver may lay out messages as it likes (6.3); a modern one always may."""
VIRTIO_F_INDIRECT_DESC: Final = 1 << 28
VIRTIO_F_EVENT_IDX: Final = 1 << 29
VIRTIO_F_VERSION_1: Final = 1 << 32
VIRTIO_F_ACCESS_PLATFORM: Final = 1 << 33
VIRTIO_F_RING_PACKED: Final = 1 << 34
VIRTIO_F_IN_ORDER: Final = 1 << 35
"""The device uses chains in the order in which they were made available: ours always does."""
VIRTIO_F_RING_RESET: Final = 1 << 40

TRANSPORT_FEATURES: Final = (
    VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_F_VERSION_1 | VIRTIO_F_ACCESS_PLATFORM | VIRTIO_F_RING_RESET
)
"""What this package offers beside a device type's own bits, unless asked for VIRTIO_F_RING_PACKED or IN_ORDER too."""
LEGACY_FEATURES: Final = 0xFFFFFFFF
"""The bits that the legacy interface has registers for (4.1.4.8)."""
