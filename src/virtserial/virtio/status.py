"""The device status field and the moves a driver may make (virtio 1.3, sections 2.1 and 3.1)."""

from __future__ import annotations

from typing import Final

ACKNOWLEDGE: Final = 1
DRIVER: Final = 2
DRIVER_OK: Final = 4
FEATURES_OK: Final = 8
DEVICE_NEEDS_RESET: Final = 64
FAILED: Final = 128

LEGACY_DRIVER_BITS: Final = ACKNOWLEDGE | DRIVER | DRIVER_OK | FAILED
DRIVER_BITS: Final = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED


def next_status(current: int, written: int, features_acceptable: bool) -> int:
    """Return the status after the driver wrote `written`, 0 being a reset.

    Clearing a bit is no legal move (2.1.1: "The driver MUST NOT clear a device status bit") and changes nothing;
    FEATURES_OK stays clear where the device cannot work with the features (2.2.2); DEVICE_NEEDS_RESET is the device's
    own bit.
    """
    if written == 0:
        return 0
    written &= DRIVER_BITS
    if current & DRIVER_BITS & ~written:
        return current
    if written & ~current & FEATURES_OK and not features_acceptable:
        written &= ~FEATURES_OK
    return current | written
