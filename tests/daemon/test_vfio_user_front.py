"""The vfio-user front without a keeper: how many turns a VMM gets."""

import os
import socket
import struct
import time
from contextlib import contextmanager, suppress

import pytest

from virtserial.accounting import nowhere
from virtserial.channel.messages import Controller
from virtserial.daemon.worker.guest_device import GuestDevice
from virtserial.daemon.worker.request_budget import (
    BURST,
    LONGEST_PAUSE,
    PAUSE,
    SHARE,
    TURNS_ALONE,
    LoopUse,
    RequestBudget,
)
from virtserial.daemon.worker.vfio_user_front import VfioUserFront, state_size
from virtserial.loop import EventLoop
from virtserial.pci.layout import NOTIFY_AREA, REGISTER_BAR
from virtserial.vfio_user import wire

PORTS = 31
BUFFER = 1 << 17


@pytest.fixture
def loop():
    loop = EventLoop()
    yield loop
    loop.close()


def make_device(loop, use=None):
    """A device; `use`: what it shares with others."""
    fd = os.memfd_create("state", os.MFD_CLOEXEC)
    os.ftruncate(fd, state_size(PORTS))
    config = Controller(
        controller=0, name="ser0", max_ports=PORTS, vectors=2, unplug=False, legacy=False, modern=True,
        page_per_vq=False, vhost_user=False, iommu_platform=True, event_idx=True, indirect_desc=True, packed=False,
        in_order=False, queue_reset=True, emergency_write=True, resize_rows_first=False, trust_vmm=False,
    )  # fmt: skip
    return GuestDevice(config, fd, loop, lambda message, fds=(): None, nowhere(), VfioUserFront, use)


@contextmanager
def connected(device):
    """A VMM's socket, the version agreed on."""
    ours, theirs = socket.socketpair()
    device.connect(ours.detach())
    with theirs:
        payload = wire.Version(0, 1).pack() + b'{"capabilities":{}}\0'
        theirs.sendall(wire.request(wire.VFIO_USER_VERSION, 1, payload))
        device.loop.run_once(1)
        assert theirs.recv(1 << 16)
        yield theirs
    device.remove()


@pytest.fixture
def device(loop):
    return make_device(loop)


@pytest.fixture
def vmm(device):
    with connected(device) as theirs:
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


def test_requests_beyond_their_share_pause_while_another_device_has_work():
    use = LoopUse()
    budget = RequestBudget(use, 100.0)
    assert budget.spend(100.0, 100.0 + 10 * BURST) == 0, "nobody else has work"
    use.changes += 2
    assert budget.spend(102.0, 102.0 + BURST / 2) == 0, "a second has filled the bucket"
    use.changes += 2
    assert budget.spend(103.0, 103.0 + 2 * BURST) == LONGEST_PAUSE
    assert budget.spend(103.0 + 2 * BURST, 103.0 + 3 * BURST) == 0, "nobody else has had work since"


def test_a_device_has_the_loop_for_itself_when_no_other_had_a_turn_for_a_while():
    use = LoopUse()
    for _ in range(TURNS_ALONE):
        use.turn_of("one")
        assert use.is_shared
    use.turn_of("one")
    assert not use.is_shared
    use.turn_of("two")
    assert use.is_shared


def test_who_has_taken_more_pauses_for_longer():
    use = LoopUse()
    budget = RequestBudget(use, 0.0)
    use.changes += 2
    assert budget.spend(0.0, BURST * 1.001) == PAUSE
    use.changes += 2
    now = BURST * 1.001
    assert PAUSE < budget.spend(now, now + 2 * PAUSE * SHARE) < LONGEST_PAUSE


def test_requests_within_their_share_never_pause():
    use = LoopUse()
    budget = RequestBudget(use, 0.0)
    for step in range(1000):
        use.changes += 2
        now = step * BURST
        assert budget.spend(now, now + BURST * SHARE * 0.99) == 0


def reads(vmm, seconds, between=lambda: None):
    """How many reads of a register a VMM gets answered, one after the other."""
    payload = wire.RegionAccess(0x14, REGISTER_BAR, 1).pack()
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        vmm.sendall(wire.request(wire.VFIO_USER_REGION_READ, 2, payload))
        while True:
            between()
            try:
                vmm.recv(1 << 16, socket.MSG_DONTWAIT)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    return count
        count += 1
    return count


def test_a_vmm_that_asks_without_end_pauses_for_its_neighbour(loop):
    use = LoopUse()
    one, other = make_device(loop, use), make_device(loop, use)
    turns = 0
    end = time.monotonic() + 60

    def turn():
        loop.run_once(0)

    with connected(one) as attacker:
        while one.front._vmm._budget._allowed and time.monotonic() < end:
            reads(attacker, 0.01, turn)
            assert one.front._vmm._pause is None, "it is alone"
        with connected(other) as vmm:

            def ring():
                nonlocal turns
                turns += one.front._vmm._pause is not None
                vmm.send(posted_write(NOTIFY_AREA, b"\0\0"))
                turn()

            while not turns and time.monotonic() < end:
                reads(attacker, BURST, ring)
            assert turns > 1, "the neighbour has turns while the requests pause"
            while one.front._vmm._pause is not None:
                loop.run_once(0.1)
            assert reads(attacker, 0.01, turn), "it goes on"


def test_a_vmm_that_leaves_in_a_pause_is_let_go(loop):
    use = LoopUse()
    one, other = make_device(loop, use), make_device(loop, use)
    with connected(other) as vmm, connected(one) as attacker:
        end = time.monotonic() + 60
        while one.front._vmm._pause is None and time.monotonic() < end:
            vmm.send(posted_write(NOTIFY_AREA, b"\0\0"))
            reads(attacker, 0.01, lambda: loop.run_once(0))
        attacker.close()
        while one.front._vmm.stream is not None and time.monotonic() < end:
            loop.run_once(0.1)
        assert one.front._vmm.stream is None
        assert one.front._vmm._pause is None


def test_a_storm_of_doorbells_pauses_for_its_neighbour(loop):
    use = LoopUse()
    one, other = make_device(loop, use), make_device(loop, use)
    bell = posted_write(NOTIFY_AREA, b"\0\0")
    storm = bell * (BUFFER // len(bell))
    with connected(one) as attacker, connected(other) as vmm:
        attacker.setblocking(False)
        sent = 0
        end = time.monotonic() + 60
        while one.front._vmm._pause is None and time.monotonic() < end:
            with suppress(BlockingIOError):
                while True:
                    sent = (sent + attacker.send(storm[sent:])) % len(storm)
            vmm.send(bell)
            loop.run_once(0)
        assert one.front._vmm._pause is not None


def test_a_driver_s_doorbells_one_by_one_never_count(loop):
    device = make_device(loop)
    with connected(device) as vmm:
        for _ in range(1000):
            vmm.send(posted_write(NOTIFY_AREA, b"\0\0"))
            loop.run_once(0)
            assert not device.front._vmm.stream.busy_since
