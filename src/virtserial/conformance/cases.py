"""The cases: what a hostile driver does, the rule it breaks (virtio 1.3), and what must come of it.

A device that stops sets DEVICE_NEEDS_RESET, raises a configuration interrupt, uses no queue and tells its hosts, until
the driver resets it (2.1.2); every case ends with that reset and a device that works again.
"""

from __future__ import annotations

from typing import Final

from virtserial.conformance.device_cases import DEVICE_CASES
from virtserial.conformance.ring_cases import RING_CASES

CASES: Final = RING_CASES + DEVICE_CASES
