"""Devices whose state is saved and taken over, with the guest and the host ends of the console's tests."""

import sys
from pathlib import Path

import pytest

for room in ("virtio", "console"):
    sys.path.append(str(Path(__file__).parents[1] / room))

from movable_guest import MovableGuest


@pytest.fixture
def guest():
    """A device with 4 ports, port 0 a console, port 1 serial, both with a connected host end; the driver has opened
    both."""
    guest = MovableGuest()
    guest.begin()
    yield guest
    guest.close()
