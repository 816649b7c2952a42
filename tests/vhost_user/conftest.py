from __future__ import annotations

import pytest
from support.served_device import open_descriptors
from support.vhost_device import NotingDevice

from virtserial.memory.state import HEADER_SIZE, StateMemory
from virtserial.vhost_user.server import Server


@pytest.fixture(autouse=True)
def no_descriptor_is_left():
    before = open_descriptors()
    yield
    assert open_descriptors() <= before


@pytest.fixture
def device():
    device = NotingDevice()
    yield device
    device.close()


@pytest.fixture
def state():
    return bytearray(HEADER_SIZE + Server.state_size(NotingDevice.num_queues))


@pytest.fixture
def make_server(device, state):
    """Servers over one state memory, one after the other, as by a process that is killed and its successor."""
    return lambda: Server(device, StateMemory(state))
