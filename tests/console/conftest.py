"""Console devices over every kind of guest memory, with and without EVENT_IDX."""


import pytest
from support.console_guest import FakeHost, queues_of
from support.ring_builder import KINDS


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["flags", "event_idx"])
def guest(request, kind, make_guest):
    """A device with 4 ports and no driver yet."""
    return make_guest(kind, event_idx=request.param)


class OpenPort:
    """Port 1 with a connected host end, known to the driver and open; its queues are empty."""

    def __init__(self, guest, is_console=False):
        self.guest = guest
        self.host = FakeHost()
        self.port = guest.plug(1, self.host, name="one", is_console=is_console, has_backend=True)
        guest.start()
        self.rx, self.tx = queues_of(1)
        guest.tell(0xFFFFFFFF, 0)
        guest.open(1)
        guest.heard()


@pytest.fixture
def open_port(guest):
    return OpenPort(guest)


@pytest.fixture
def open_console(guest):
    return OpenPort(guest, is_console=True)
