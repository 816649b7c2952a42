"""Tests with the programs that people use with virtio-serial: Debian's own, unpacked by the rig, never installed.

Everything here needs a real QEMU; the devices and host ends of tests/interop are used.
"""

from __future__ import annotations

import pytest
from support.fetched import fetch_or_skip
from support.guests.host_device import VirtserialDevice

from virtserial.rig.image import guest_image
from virtserial.rig.qemu import find_qemu


@pytest.fixture(scope="session", autouse=True)
def rig():
    fetch_or_skip(find_qemu)
    fetch_or_skip(guest_image)


@pytest.fixture(scope="module")
def our_device():
    return VirtserialDevice()
