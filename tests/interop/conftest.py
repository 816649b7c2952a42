"""Fixtures of the tests with a real QEMU and a real Linux guest; each runs on QEMU's own device and on ours."""

from __future__ import annotations

import os
import signal

import pytest
from support.fetched import fetch_or_skip
from support.folders import short_folder
from support.guests.host_device import QemuDevice, VhostUserDevice, VirtserialDevice
from support.guests.scenario import STARTERS

from virtserial.rig.image import guest_image
from virtserial.rig.qemu import find_qemu

OURS = VhostUserDevice() if os.environ.get("VIRTSERIAL_FRONT") == "vhost-user" else VirtserialDevice()
DEVICES = {"qemu": QemuDevice(), "virtserial": OURS}


@pytest.fixture(scope="session", autouse=True)
def rig():
    """The rig itself, fetched and built on first use; without it these tests are skipped, in CI they fail."""
    fetch_or_skip(find_qemu)
    fetch_or_skip(guest_image)
    # A run that is ended by SIGTERM (a time limit's) tears down as one that is interrupted: no folder stays.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module", params=list(DEVICES))
def host_device(request):
    """The device under test: QEMU's own, then ours."""
    return DEVICES[request.param]


@pytest.fixture(scope="module")
def our_device():
    """Our device, for what only a process of its own can do."""
    return DEVICES["virtserial"]


@pytest.fixture(scope="module")
def device_folder(host_device):
    """For what the tests of a module share with one device."""
    with short_folder() as path:
        yield path


@pytest.fixture(scope="module", params=STARTERS)
def starter(request):
    """What starts a machine: QEMU, or virtserial-qemu in its place."""
    return request.param


@pytest.fixture(scope="module")
def starter_folder(starter):
    """For what the tests of a module share with one starter."""
    with short_folder() as path:
        yield path
