"""Devices whose state is saved and taken over, with the guest and the host ends of the console's tests."""


import pytest
from support.movable_guest import MovableGuest


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def guest(request):
    """A device with 4 ports; port 0, a console, and port 1 have a connected host end, and the driver has both open."""
    guest = MovableGuest(packed=request.param)
    guest.begin()
    yield guest
    guest.close()
