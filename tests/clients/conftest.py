"""Tests with the programs that people use with virtio-serial: Debian's own, unpacked by the rig, never installed.

Everything here needs a real QEMU; the devices and host ends of tests/interop are used.
"""

from __future__ import annotations

import os

import pytest
from support.fetched import had
from support.guests.host_device import VirtserialDevice

from virtserial.rig.image import guest_image
from virtserial.rig.qemu import find_qemu


def pytest_collection_modifyitems(items):
    for item in items:
        if os.path.dirname(__file__) == str(item.path.parent):
            item.add_marker(pytest.mark.qemu)


@pytest.fixture(scope="session", autouse=True)
def rig():
    had(find_qemu)
    had(guest_image)


@pytest.fixture(scope="module")
def our_device():
    return VirtserialDevice()
