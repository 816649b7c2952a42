"""Bugs that others had, each as a test: what happened there does not happen here.

Those that a hostile case or a test elsewhere holds already are in the two tables at the end.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
import subprocess
import sys
import time
import tracemalloc

import pytest
from support.console_guest import CONTROL_TX, OPEN, PORT_READY, READY, FakeHost, queues_of
from support.device_process import connect, open_descriptors, resident
from support.embedded_guest import EmbeddedGuest
from support.places import ENVIRONMENT, ROOT
from support.waiting import wait_until

from virtserial.conformance.cases import CASES
from virtserial.errors import PeerError
from virtserial.vfio_user import wire
from virtserial.vfio_user.client import Client

RX, TX = queues_of(1)


@pytest.fixture
def guest(make_guest):
    """A device whose port 1 is open, with a host that takes everything."""
    guest = make_guest("mapped", size=1 << 21)
    guest.host = FakeHost()
    guest.port = guest.plug(1, guest.host, name="one", has_backend=True)
    guest.start()
    guest.tell(0xFFFFFFFF, READY)
    guest.open(1)
    guest.heard()
    return guest


def every_head_came_back(guest, index):
    """Whether the device has returned each chain of a queue exactly once (the ring's reader fails on one twice)."""
    ring = guest.rings[index]
    ring.harvest()
    return ring.used_idx == ring.idx


def test_qemu_36b37f849480_a_long_control_message_takes_no_memory(guest):
    """control_out() grew a buffer to the length that the guest gave."""
    length = 1 << 20
    guest.memory.write(0x4000_0000 + length - 64, b"\xff" * 64)
    tracemalloc.start()
    try:
        for _ in range(100):
            ring = guest.rings[CONTROL_TX]
            index = ring.idx % 16
            ring.describe(index, 0x4000_0000 + length - 64, length)
            ring.offer(index)
            guest.device.notify(CONTROL_TX)
            guest.run()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert guest.rings[CONTROL_TX].used_idx == guest.rings[CONTROL_TX].idx
    assert not guest.needs_reset
    assert peak < 1 << 18


def test_qemu_2021_a_chain_that_waits_for_a_host_comes_back_when_that_leaves(guest):
    """"Unpop throttled VirtQueueElement": closing the socket of a throttled port lost its chain; guests locked up."""
    for number in range(1000):
        guest.host.drain(number % 3)
        guest.send(TX, b"x" * (1 + number % 7), b"y" * 5)
        guest.host.leave()
        guest.run()
        assert every_head_came_back(guest, TX), f"round {number}"
        guest.host.come()
        guest.run()
        guest.heard()
    guest.host.drain()
    guest.host.taken.clear()
    guest.send(TX, b"alive")
    assert guest.host.taken == b"alive"


def test_qemu_1044_and_crosvm_62_answers_wait_without_growing(make_guest):
    """QEMU drops control messages when no buffer is posted; crosvm keeps a list of them without a limit."""
    guest = make_guest("mapped", 300, size=1 << 22)
    for number in range(1, 300):
        guest.plug(number, FakeHost(), name=f"p{number}", has_backend=True)
    guest.start(queues=[2, 3], control_buffers=0)
    tracemalloc.start()
    try:
        for number in range(2000):
            guest.tell(0xFFFFFFFF, READY)
            guest.tell(1 + number % 299, PORT_READY)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    told = []
    while True:
        guest.post(2, *[64] * 16)
        messages = guest.heard(repost=False)
        told += messages
        if not messages:
            break
    opened = {number for number, event, value, _ in told if event == OPEN and value}
    assert opened == set(range(1, 300))


def test_cve_2016_5403_no_more_chains_are_in_flight_than_the_queue_has(guest):
    """virtqueue_pop took elements without end while none came back."""
    guest.host.drain(0)
    guest.send(TX, *[b"x"] * 16)
    assert not guest.needs_reset
    guest.rings[TX].offer(*range(16))
    guest.device.notify(TX)
    guest.host.drain(0)
    guest.run()
    assert guest.needs_reset


def test_cve_2026_45782_a_head_that_is_in_flight_is_not_taken_again(guest):
    """Cloud Hypervisor used a descriptor after free when it was made available again while its host was blocked."""
    guest.host.drain(2)
    guest.send(TX, b"hello")
    assert guest.host.taken == b"he"
    guest.rings[TX].offer(guest.rings[TX].next_free - 1)
    guest.device.notify(TX)
    guest.host.drain()
    guest.run()
    assert guest.needs_reset
    assert guest.host.taken == b"he"


def test_cve_2022_26354_nothing_is_in_flight_after_an_error_in_any_step(guest):
    """An element stayed attached, and its memory mapped, where an error cut its way short."""
    for _ in range(50):
        guest.host.drain(3)
        guest.send(TX, b"half sent")
        guest.post(RX, 64)
        guest.rings[TX].offer(16)
        guest.device.notify(TX)
        guest.host.drain()
        guest.run()
        assert guest.needs_reset
        assert guest.device.queues[TX].record.offset in (0, 3)
        guest.rings.clear()
        guest.memory._rings, guest.memory._next = 0, 0x40000
        guest.memory.view[:] = bytes(guest.memory.size)
        guest.start()
        guest.tell(0xFFFFFFFF, READY)
        guest.open(1)
        assert (guest.device.queues[TX].record.offset, guest.device.queues[TX].record.position) == (0, 0)
        guest.heard()
    guest.host.taken.clear()
    guest.send(TX, b"whole")
    assert guest.host.taken == b"whole"


def test_cve_2020_16843_a_full_ring_and_a_full_host_flow_again(guest):
    """Firecracker stopped receiving for good when both directions were full at once."""
    guest.host.drain(0)
    guest.send(TX, *[b"t" * 100] * 16)
    guest.host.feed(b"r" * 1000)
    guest.run()
    assert guest.rings[RX].used_idx == 0
    guest.post(RX, *[64] * 16)
    assert guest.received(RX) == b"r" * 1000
    guest.host.drain()
    guest.run()
    assert guest.host.taken == b"t" * 1600
    assert every_head_came_back(guest, TX)


def test_cve_2020_13759_an_index_is_never_seen_half_written():
    """vm-memory wrote ring indexes byte by byte; guests saw a third value."""
    program = (
        "import mmap, sys\n"
        "from virtserial.virtio.ring.split.access import MappedRing\n"
        "view = memoryview(mmap.mmap(int(sys.argv[1]), 4096))\n"
        "ring = MappedRing(16, view[0:256], view[256:294], view[512:646])\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    ring.publish_used_idx(0x1111)\n"
        "    ring.publish_used_idx(0xFFFF)\n"
    )
    fd = os.memfd_create("ring")
    os.ftruncate(fd, 4096)
    words = memoryview(mmap.mmap(fd, 4096)).cast("H")
    with subprocess.Popen(
        [sys.executable, "-c", program, str(fd)], env=ENVIRONMENT, pass_fds=[fd], stdout=subprocess.PIPE
    ) as writer:
        try:
            assert writer.stdout.readline() == b"ready\n"
            wait_until(lambda: words[257] != 0)
            seen = set()
            end = time.monotonic() + 1
            while time.monotonic() < end:
                seen.update(words[257] for _ in range(10_000))
        finally:
            writer.kill()
    os.close(fd)
    assert seen <= {0x1111, 0xFFFF}


def test_cve_2020_27174_a_host_that_pushes_is_held_back(device, folder):
    """Firecracker's serial console kept all that its host sent, without a limit."""
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest, connect(folder / "a") as host:
        guest.run_until(lambda: guest.port("a").host_connected)
        before = resident(device.worker)
        host.setblocking(False)
        pushed = 0
        with pytest.raises(BlockingIOError):
            while pushed < 1 << 30:
                pushed += host.send(bytes(1 << 16))
        assert pushed < 64 << 20
        assert resident(device.worker) - before < 16 << 20
        received = guest.open("a")
        guest.run_until(lambda: len(received.data) == pushed)


def test_vmm_that_maps_file_after_file_leaves_descriptors_for_others(device, folder):
    """Found here: the keeper held a descriptor for every map, until there was none left to accept anybody with."""
    limit = 200
    for pid in (device.pid, device.worker):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
    worker = device.kill_worker()
    device.wait_for_new_worker(worker)
    fd = os.memfd_create("page")
    os.ftruncate(fd, 4096)
    try:
        with Client(folder / "ser0.sock") as client:
            for number in range(limit // 4):
                client.dma_map(number * 4096, 4096, fd=fd)
            for number in range(limit // 4, limit):
                with pytest.raises(PeerError, match="was refused: No space left on device"):
                    client.dma_map(number * 4096, 4096, fd=fd)
            client.dma_map(limit * 4096, 4096)
            client.dma_unmap(0, 4096)
            client.dma_map(0, 4096, fd=fd)
            with EmbeddedGuest(folder / "ser1.sock", "c") as other:
                other.check_port("c", folder / "c", 10_000)
    finally:
        os.close(fd)
    assert "cut short" not in device.log


def test_vmms_together_leave_descriptors_for_others(device, folder):
    """Found here: with maps and interrupts two took all, and no next worker could be started."""
    limit = 200
    for pid in (device.pid, device.worker):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
    device.wait_for_new_worker(device.kill_worker())
    page, event, refused = os.memfd_create("page"), os.eventfd(0), set()
    os.ftruncate(page, 4096)
    with Client(folder / "ser0.sock", timeout=30) as one, Client(folder / "ser1.sock", timeout=30) as other:
        for vmm in (one, other):
            for number in range(limit // 4):
                try:
                    vmm.dma_map(number * 4096, 4096, fd=page)
                    vmm.set_irqs(wire.VFIO_PCI_MSIX_IRQ_INDEX, number % 32, [event])
                except PeerError as error:
                    refused.add(error.errno)
        assert refused == {errno.EMFILE}
        assert limit // 2 < open_descriptors(device.worker) <= limit - limit // 4
        device.wait_for_new_worker(device.kill_worker())
    os.close(page)
    os.close(event)
    with EmbeddedGuest(folder / "ser1.sock", "c") as guest:
        guest.check_port("c", folder / "c", 10_000)
    assert "cut short" not in device.log
    assert "Too many open files" not in device.log


def test_ports_that_nobody_has_do_not_hold_the_loop(make_guest):
    """Found here: what a driver had queued for ports that do not exist was discarded in one turn, however long."""
    ports, entries = 40, 1000
    guest = make_guest("mapped", ports, size=1 << 22)
    guest.negotiate()
    guest.enable(2, 3, size=16)
    guest.memory._next = 0x300000
    table = guest.memory.buffer(
        b"".join((0x4000_0000).to_bytes(8, "little") + (1).to_bytes(4, "little")
                 + (3 if index < entries - 1 else 2).to_bytes(2, "little") + (index + 1).to_bytes(2, "little")
                 for index in range(entries))
    )  # fmt: skip
    for number in range(1, ports):
        index = queues_of(number)[1]
        guest.enable(index, size=16)
        for head in range(16):
            guest.rings[index].describe(head, table, 16 * entries, 4)
        guest.rings[index].offer(*range(16))
    guest.device.set_status(15)
    turns = 0
    while waiting := guest.scheduler._turns:
        guest.scheduler._turns = []
        for turn in waiting:
            before = sum(guest.rings[queues_of(number)[1]].used_idx for number in range(1, ports))
            turn()
            after = sum(guest.rings[queues_of(number)[1]].used_idx for number in range(1, ports))
            assert after - before <= 16, "one turn has walked too many descriptors"
            turns += 1
    assert after == 16 * (ports - 1)
    assert turns > ports


BY_CASE = {
    "CVE-2015-5745 control receive buffer too short": ("c24", "c24b"),
    "CVE-2024-3446 DMA into the device itself": ("c10", "c11", "c37"),
    "CVE-2016-6490 zero-length descriptor": ("c06",),
    "CVE-2016-7422 huge length": ("c09", "c09b"),
    "CVE-2011-2512 queue number of a notification": ("c39",),
    "vm-virtio 196, Firecracker 3149 index further ahead than the queue is long": ("c02", "c02b"),
    "CVE-2026-5747 queue changed after activation": ("c34", "c35"),
    "CVE-2026-50626 queue size above the largest": ("c33",),
    "CVE-2026-6425 indirect tables": ("c12", "c13", "c14", "c15", "c17", "c18", "c18b", "c19", "c20", "c20b"),
}
ELSEWHERE = {
    "CVE-2022-0669 stray descriptors": "tests/daemon/test_daemon_vmm_connections.py::"
    "test_ten_thousand_stray_descriptors_are_closed",
    "CVE-2026-84788 websocket handshake": "tests/chardev/test_chardev_websocket.py::test_request_without_an_end",
    "QEMU f6a321c9, 152f7dd3, 3966a425, 6a51aab9 lengths that a server lies about": "tests/vfio_user/"
    "test_client.py::test_a_lie_about_the_device_is_seen",
}


@pytest.mark.parametrize("bug", BY_CASE)
def test_the_case_of_a_bug_exists(bug):
    assert set(BY_CASE[bug]) <= {case.name.split()[0] for case in CASES}


@pytest.mark.parametrize("bug", ELSEWHERE)
def test_the_test_of_a_bug_exists(bug):
    path, name = ELSEWHERE[bug].split("::")
    assert f"\ndef {name}(" in (ROOT / path).read_text()
