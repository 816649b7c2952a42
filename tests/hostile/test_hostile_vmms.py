"""VMMs that break vfio-user where a device is in the middle of something; what a single message can have wrong is
tried in tests/vfio_user and tests/daemon."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import time

import pytest
from support.console_guest import READY, FakeHost, queues_of
from support.embedded_guest import EmbeddedGuest
from support.huge_pages import HUGE_PAGE, huge_page_file, huge_page_pool, punch_hole
from support.raw_vmm import VERSION, RawVmm
from support.served_device import build_server
from support.waiting import wait_until

from virtserial.conformance.driver import HostileDriver
from virtserial.conformance.steps import BUFFER, TX
from virtserial.errors import PeerError
from virtserial.testing.hostile.over_vfio_user import VfioUserMachine
from virtserial.vfio_user import wire
from virtserial.vfio_user.client import Client
from virtserial.vfio_user.stream import TURN_SECONDS, MessageStream
from virtserial.virtio.status import DEVICE_NEEDS_RESET

BASE = 0x4000_0000
SLOW_ANSWER = 2.0
REGISTERS = 4
POSTED_RESET = wire.request(
    wire.VFIO_USER_REGION_WRITE, 1, wire.RegionAccess(0x14, REGISTERS, 1).pack() + b"\0", wire.VFIO_USER_NO_REPLY
)
"""A write of 0 to the device status."""


def test_memory_that_is_unmapped_under_a_half_sent_chain_is_not_touched_and_the_rest_is_sent_when_it_comes_back(
    make_guest,
):
    guest = make_guest("mapped")
    host = FakeHost()
    guest.plug(1, host, name="one", has_backend=True)
    guest.start()
    guest.tell(0xFFFFFFFF, READY)
    guest.open(1)
    host.drain(4)
    guest.send(queues_of(1)[1], b"half of it")
    device = guest.device
    device.memory.unmap(BASE, guest.memory.size)
    device.memory_unmapped(BASE, guest.memory.size)
    host.drain()
    guest.run()
    assert host.taken == b"half"
    assert not guest.needs_reset
    guest.memory.map_into(device.memory)
    device.memory_mapped()
    guest.run()
    assert host.taken == b"half of it"
    assert guest.rings[queues_of(1)[1]].used_idx == guest.rings[queues_of(1)[1]].idx


def use_a_queue_without_shared_memory(vmm):
    """Set the control transmitq up; the device asks for its available index next."""
    vmm.send(VERSION)
    vmm.reply()
    number = 10

    def ask(command, body):
        nonlocal number
        number += 1
        vmm.send(wire.request(command, number, body))
        header, _ = vmm.reply()
        assert (header.id, header.error) == (number, 0)

    def store(offset, data):
        ask(wire.VFIO_USER_REGION_WRITE, wire.RegionAccess(offset, REGISTERS, len(data)).pack() + data)

    ask(wire.VFIO_USER_DMA_MAP, wire.DmaMap(32, 3, 0, 0, 1 << 20).pack())
    store(0x14, b"\x03")
    for half, features in ((0, 2), (1, 1)):
        store(0x08, half.to_bytes(4, "little"))
        store(0x0C, features.to_bytes(4, "little"))
    store(0x14, b"\x0b")
    store(0x16, b"\x03\0")
    for offset, address in ((0x20, 0x10000), (0x28, 0x14000), (0x30, 0x18000)):
        store(offset, address.to_bytes(8, "little"))
    store(0x1C, b"\x01\0")
    store(0x14, b"\x0f")


def test_vmm_that_answers_slowly_does_not_hold_its_neighbour(device, folder):
    """Each answer comes just before the connection would be lost; others are served until it is there."""
    worker, waits, answered = device.worker, [], 0
    with EmbeddedGuest(folder / "ser1.sock", "c") as other, RawVmm(folder / "ser0.sock") as vmm:
        other.check_port("c", folder / "c", 100)
        use_a_queue_without_shared_memory(vmm)
        end = time.monotonic() + 3 * SLOW_ANSWER
        while time.monotonic() < end or answered < 3:
            header, body = vmm.reply()
            due = time.monotonic() + SLOW_ANSWER
            while time.monotonic() < due:
                started = time.monotonic()
                other.check_port("c", folder / "c", 100)
                waits.append(time.monotonic() - started)
            if header.command == wire.VFIO_USER_DMA_READ and struct.unpack_from("<Q", body, 8)[0] < 1 << 32:
                vmm.send(wire.reply(header, body + bytes(struct.unpack_from("<Q", body, 8)[0])))
            else:
                vmm.send(wire.error_reply(header, 22))
            answered += 1
    assert sorted(waits)[-2] < SLOW_ANSWER / 2, "one may be the machine's"
    assert device.worker == worker, device.log


def test_vmm_that_does_not_answer_loses_its_connection_and_nobody_else(device, folder):
    """A DMA_READ without a reply: not so long that the keeper takes the worker for one that hangs."""
    worker = device.worker
    with RawVmm(folder / "ser0.sock") as vmm:
        use_a_queue_without_shared_memory(vmm)
        header, _ = vmm.reply()
        assert header.command == wire.VFIO_USER_DMA_READ
        assert vmm.closed_by_server()
    device.wait_for_log("VFIO_USER_DMA_READ: no reply in time")
    with EmbeddedGuest(folder / "ser1.sock", "c") as other, EmbeddedGuest(folder / "ser0.sock", "a") as again:
        other.check_port("c", folder / "c", 10_000)
        again.check_port("a", folder / "a", 10_000)
    assert device.worker == worker, device.log


@pytest.mark.parametrize("kind", ["directory", "pipe", "write only", "socket"])
def test_memory_in_a_file_that_cannot_be_memory(device, folder, kind):
    """Whatever stands behind the descriptor of a DMA_MAP, it is the VMM's loss."""
    ends = os.pipe()
    written = os.open(folder / "file", os.O_WRONLY | os.O_CREAT)
    os.ftruncate(written, 4096)
    fd = {
        "directory": os.open(folder, os.O_RDONLY),
        "pipe": ends[0],
        "write only": written,
        "socket": os.dup(ends[1]),
    }[kind]
    worker = device.worker
    with Client(folder / "ser0.sock") as client:
        # Refused at once, or found out when it is read.
        with contextlib.suppress(PeerError):
            client.dma_map(0x10000, 4096, fd=fd)
        for offset, data in (
            (0x14, b"\x03"), (0x08, bytes(4)), (0x0C, b"\x02\0\0\0"), (0x08, b"\x01\0\0\0"), (0x0C, b"\x01\0\0\0"),
            (0x14, b"\x0b"), (0x16, b"\x03\0"),
            (0x20, struct.pack("<Q", 0x10000)), (0x28, struct.pack("<Q", 0x10400)), (0x30, struct.pack("<Q", 0x10800)),
            (0x1C, b"\x01\0"), (0x14, b"\x0f"),
        ):  # fmt: skip
            client.region_write(REGISTERS, offset, data)
        client.region_write(REGISTERS, 0x300C, b"\x03\0", posted=True)
        wait_until(lambda: client.region_read(REGISTERS, 0x14, 1)[0] & DEVICE_NEEDS_RESET)
    for each in {*ends, written, fd}:
        os.close(each)
    assert "internal error" not in device.log
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        guest.check_port("a", folder / "a", 10_000)
    assert device.worker == worker


def test_huge_page_that_is_taken_away_under_a_ring_kills_nobody(device, folder):
    """F_SEAL_SHRINK stops no hole, and a hole in huge pages is SIGBUS once the pool is empty."""
    worker = device.worker
    with huge_page_pool(), huge_page_file(fcntl.F_SEAL_SHRINK) as fd, Client(folder / "ser0.sock") as client:
        client.dma_map(0x200000, HUGE_PAGE, fd=fd)
        punch_hole(fd)
        for offset, data in (
            (0x14, b"\x03"), (0x08, bytes(4)), (0x0C, b"\x02\0\0\0"), (0x08, b"\x01\0\0\0"), (0x0C, b"\x01\0\0\0"),
            (0x14, b"\x0b"), (0x16, b"\x03\0"),
            *((at, struct.pack("<Q", 0x200000 + 0x400 * place)) for place, at in enumerate((0x20, 0x28, 0x30))),
            (0x1C, b"\x01\0"), (0x14, b"\x0f"),
        ):  # fmt: skip
            client.region_write(REGISTERS, offset, data)
        client.region_write(REGISTERS, 0x300C, b"\x03\0", posted=True)
        # The device asks for the ring by a message, which this VMM refuses.
        wait_until(lambda: client.region_read(REGISTERS, 0x14, 1)[0] & DEVICE_NEEDS_RESET)
    assert "internal error" not in device.log
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        guest.check_port("a", folder / "a", 10_000)
    assert device.worker == worker, device.log


def test_resets_without_end_are_taken_in_turns(device, folder):
    """Posted writes of 0 to the status of a device: a buffer of them was handled before anybody else had a turn."""
    worker = device.worker
    with RawVmm(folder / "ser0.sock") as vmm, EmbeddedGuest(folder / "ser1.sock", "c") as other:
        vmm.send(VERSION)
        vmm.reply()
        vmm.socket.setblocking(False)
        for _ in range(20):
            with contextlib.suppress(BlockingIOError):
                while True:
                    vmm.socket.send(POSTED_RESET * 100)
            other.check_port("c", folder / "c", 1000)
    assert device.worker == worker


def test_one_buffer_of_requests_that_take_long_is_cut_into_turns():
    server = build_server()
    ours, theirs = socket.socketpair()
    stream = MessageStream(ours, server)
    slow = []

    def region_write(index, offset, data):
        slow.append(offset)
        time.sleep(TURN_SECONDS / 2)

    server.device.region_write = region_write
    with theirs:
        theirs.sendall(VERSION + POSTED_RESET * 100)
        turns = 0
        while stream.serve(select.EPOLLIN):
            turns += 1
        assert len(slow) == 100
        assert turns >= 20
        stream.abandon()


def test_crowd_of_vmms_waits_in_the_backlog_and_costs_no_descriptors(device, folder):
    """One is served, four may wait a second for it to go; the others are not even accepted."""
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        before = device.settled_descriptors()[0]
        crowd = []
        for _ in range(8):
            client = socket.socket(socket.AF_UNIX)
            crowd.append(client)
            client.settimeout(60)
            client.connect(str(folder / "ser0.sock"))
        assert max(device.descriptors()[0] for _ in range(100)) <= before + 5
        for client in crowd:
            assert client.recv(1) == b"", "it is refused in its turn"
            client.close()
        guest.check_port("a", folder / "a", 10_000)
    assert device.log.count("a second VMM was refused") == 8


def test_thousands_of_maps_are_taken_and_given_back_one_by_one(device, folder):
    with Client(folder / "ser0.sock", timeout=30) as client:
        for number in range(5000):
            client.dma_map(number << 16, 4096)
        with pytest.raises(PeerError, match="File exists"):
            client.dma_map(7 << 16, 4096)
        for number in range(0, 5000, 2):
            client.dma_unmap(number << 16, 4096)
        client.dma_map(8 << 16, 4096)
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        guest.check_port("a", folder / "a", 10_000)


def test_doorbells_and_rings_of_nonsense_all_the_time_leave_the_device_beside_it_working():
    """One device under attack: kicks without work, chains of one byte, broken rings; the other one works on."""
    machine = VfioUserMachine()
    try:
        driver = HostileDriver(machine)
        for number in range(20):
            driver.start()
            for _ in range(500):
                machine.store(0x3000 + 4 * TX, TX, 2)
            for _ in range(8):
                driver.send(TX, BUFFER, 1)
            machine.check()
            machine.settle()
            if number % 2:
                driver.send(TX, BUFFER, 0)
            machine.check()
            machine.heard()
    finally:
        machine.close()
