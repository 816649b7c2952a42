"""The vfio-user front without a keeper: how many turns a VMM gets."""

import os
import socket
import struct
from contextlib import suppress

import pytest

from virtserial.accounting import nowhere
from virtserial.channel.messages import Controller
from virtserial.daemon.worker.guest_device import GuestDevice
from virtserial.daemon.worker.vfio_user_front import VfioUserFront, state_size
from virtserial.loop import EventLoop
from virtserial.pci.layout import NOTIFY_AREA, REGISTER_BAR
from virtserial.vfio_user import wire

PORTS = 31


@pytest.fixture
def loop():
    loop = EventLoop()
    yield loop
    loop.close()


@pytest.fixture
def device(loop):
    fd = os.memfd_create("state", os.MFD_CLOEXEC)
    os.ftruncate(fd, state_size(PORTS))
    config = Controller(
        controller=0, name="ser0", max_ports=PORTS, vectors=2, unplug=False, legacy=False, modern=True,
        page_per_vq=False, vhost_user=False, iommu_platform=True, event_idx=True, indirect_desc=True, packed=False,
        in_order=False, queue_reset=True, emergency_write=True, resize_rows_first=False, trust_vmm=False,
    )  # fmt: skip
    device = GuestDevice(config, fd, loop, lambda message, fds=(): None, nowhere(), VfioUserFront)
    yield device
    device.remove()


@pytest.fixture
def vmm(device):
    """A VMM's socket, the version agreed on."""
    ours, theirs = socket.socketpair()
    device.connect(ours.detach())
    with theirs:
        payload = wire.Version(0, 1).pack() + b'{"capabilities":{}}\0'
        theirs.sendall(wire.request(wire.VFIO_USER_VERSION, 1, payload))
        device.loop.run_once(1)
        assert theirs.recv(1 << 16)
        yield theirs


def posted_write(offset, data):
    payload = wire.RegionAccess(offset, REGISTER_BAR, len(data)).pack() + data
    size = 16 + len(payload)
    return struct.pack("<HHIII", 7, wire.VFIO_USER_REGION_WRITE, size, wire.VFIO_USER_NO_REPLY, 0) + payload


def test_many_edges_are_one_turn(device, vmm):
    """A queued turn for each edge would multiply: its turns come first while new edges add more."""
    flood = posted_write(0x16, b"\0\0") * 3000
    sent = most = 0
    vmm.setblocking(False)
    for _ in range(50):
        with suppress(BlockingIOError):
            while True:
                sent = (sent + vmm.send(flood[sent:])) % len(flood)
        device.loop.run_once(0)
        most = max(most, len(device.loop._turns))
    assert most <= 1


def test_a_storm_on_every_queue_is_one_turn_of_the_device(device, vmm):
    bell = b"".join(posted_write(NOTIFY_AREA + 4 * queue, struct.pack("<H", queue)) for queue in range(2 * PORTS + 2))
    vmm.sendall(bell * 20)
    for _ in range(20):
        device.loop.run_once(0)
        assert len(device.loop._turns) <= 2, "one of the device, one of its VMM"
