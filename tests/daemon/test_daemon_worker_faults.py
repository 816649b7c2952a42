"""A worker that is killed or hangs: its successor goes on with the same guest, the same hosts, the same memory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from support.device_process import connect, controller_options, port_options
from support.embedded_guest import EmbeddedGuest, jumps, try_receive, try_send
from support.places import ROOT
from support.rounds import rounds
from support.waiting import PATIENCE, wait_until

from virtserial.daemon.keeper.blame import HANGS
from virtserial.daemon.keeper.supervisor import RESTART_DELAYS
from virtserial.daemon.keeper.worker_process import SEND_TIMEOUT
from virtserial.errors import PeerError
from virtserial.vfio_user import wire
from virtserial.vfio_user.client import Client

HANDLERS = ROOT / "tests" / "support" / "handlers_for_tests.py"
KILLS = int(os.environ.get("VIRTSERIAL_KILLS", "3"))
MANY = rounds(5, 10)
"""Kills, each of which waits longer for the next worker."""


@pytest.mark.parametrize(
    ("sealed", "shared", "kills", "packed"),
    [(True, True, MANY, "off"), (False, True, 4, "off"), (True, False, 4, "off"), (True, True, MANY, "on")],
    ids=["mapped", "unsealed", "messages", "packed"],
)
def test_kills_in_the_middle_of_a_transfer(start, folder, sealed, shared, kills, packed):
    """The guest's connection lives and the port goes on.  Where its memory is mapped not a byte is lost or doubled;
    else what the kill cut in two is, as docs/security.md says, moved again or, in the other direction, gone."""
    device = start(
        *controller_options(folder, more=f",packed={packed}"),
        *port_options(folder, "a", 1), *port_options(folder, "b", 2),
    )  # fmt: skip
    exact = sealed and shared
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    data = rng.randbytes(24 << 20)
    path = folder / "ser0.sock"
    with EmbeddedGuest(path, "a", "b", sealed=sealed, shared=shared) as guest, connect(folder / "a") as host:
        host.setblocking(False)
        received = guest.open("a")
        guest.run_until(lambda: received.port.host_connected)
        sent = given = killed = 0
        taken = bytearray()
        worker, next_kill = device.worker, time.monotonic() + 0.05
        moving = len(data) if shared else 1 << 20
        limit = time.monotonic() + 35 * PATIENCE
        quiet_since, seen = time.monotonic(), None
        # Until everything that will come has come: nothing has moved for two seconds after the last kill.
        while killed < kills or time.monotonic() < quiet_since + 2:
            if exact and killed == kills and len(taken) == sent == moving and len(received.data) == given == moving:
                break
            assert guest.failure is None, f"seed {seed}: {guest.failure}; {device.log}"
            assert time.monotonic() < limit, f"seed {seed}: {killed} kills, {len(taken)}, {len(received.data)}"
            end = moving * (killed + 1) // (kills + 1)
            sent += received.port.write(data[sent : min(sent + 100_000, end)]) if sent < end else 0
            given += try_send(host, data[given : min(given + 100_000, end)])
            taken += try_receive(host)
            guest.loop.run_once(timeout=0.001)
            if killed < kills and time.monotonic() >= next_kill:
                device.kill_worker()
                worker = device.wait_for_new_worker(worker)
                killed += 1
                next_kill = time.monotonic() + rng.uniform(0.0, 0.15)
            if (now := (sent, given, len(taken), len(received.data), killed)) != seen:
                seen, quiet_since = now, time.monotonic()
        received.port.close()
        if exact:
            assert taken == data[:sent], f"seed {seed}: {jumps(data, taken)} of {sent}; {device.log}"
            assert received.data == data[:given], f"seed {seed}: {jumps(data, received.data)} of {given}; {device.log}"
        again, reached = jumps(data, taken)
        assert reached == sent, f"seed {seed}: the guest wrote {sent} bytes, the last that came is {reached}"
        assert all(found < expected for expected, found in again), f"seed {seed}: bytes to the host are lost: {again}"
        assert len(again) <= kills, f"seed {seed}: {again}"
        left_out, reached = jumps(data, received.data)
        assert len(left_out) <= kills, f"seed {seed}: {left_out}"
        assert reached <= given
    assert "internal error" not in device.log
    assert device.log.count("was killed by SIGKILL; a new one takes over") == kills
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        guest.check_port("a", folder / "a")
        guest.check_port("b", folder / "b")


@pytest.mark.timeout(PATIENCE * (45 + 5 * KILLS))
def test_kills_in_the_middle_of_a_dialogue(device, folder):
    """Single messages and their answers, in the lane; each kill comes at a random moment of one.  No byte is lost or
    doubled, and the dialogue goes on."""
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest, connect(folder / "a") as host:
        received = guest.open("a")
        guest.run_until(lambda: received.port.host_connected)
        worker = device.worker
        said, heard, answered = bytearray(), bytearray(), bytearray()

        def trip():
            question, answer = (os.urandom(random.randrange(1, 1500)) for _ in range(2))
            assert received.port.write(question) == len(question)
            said.extend(question)
            while len(heard) < len(said):
                heard.extend(host.recv(1 << 16))
            host.sendall(answer)
            answered.extend(answer)
            guest.run_until(lambda: len(received.data) >= len(answered))

        host.settimeout(60)
        for _ in range(KILLS):
            for _ in range(20):
                trip()
            killer = threading.Timer(random.uniform(0, 0.003), device.kill_worker)
            killer.start()
            while killer.is_alive():
                trip()
            worker = device.wait_for_new_worker(worker)
            trip()
        assert heard == said
        assert received.data == answered
        received.port.close()
    assert "internal error" not in device.log
    assert device.log.count("was killed by SIGKILL; a new one takes over") == KILLS


def test_guest_that_does_nothing_during_the_kill_works_on(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        guest.check_port("a", folder / "a")
        worker = device.worker
        for _ in range(3):
            device.kill_worker()
            worker = device.wait_for_new_worker(worker)
            guest.check_port("a", folder / "a")
            guest.check_port("b", folder / "b", 20_000)


def test_port_that_is_open_stays_open_and_connected(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest, connect(folder / "a") as host:
        received = guest.open("a")
        guest.run_until(lambda: received.port.host_connected)
        received.port.write(b"before")
        assert host.recv(6) == b"before"
        worker = device.kill_worker()
        device.wait_for_new_worker(worker)
        received.port.write(b"after")
        guest.run_until(received.port.flushed)
        assert host.recv(5) == b"after"
        host.sendall(b"to the guest")
        guest.run_until(lambda: received.data == b"to the guest")
        assert received.port.host_connected


def test_host_that_comes_while_there_is_no_worker_is_served(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        received = guest.open("a")
        device.kill_worker()
        with connect(folder / "a") as host:
            host.sendall(b"hello")
            guest.run_until(lambda: received.data == b"hello")


def test_host_that_leaves_while_there_is_no_worker_has_left(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        received = guest.open("a")
        with connect(folder / "a") as host:
            guest.run_until(lambda: received.port.host_connected)
            device.kill_worker()
            host.close()
        guest.run_until(lambda: not received.port.host_connected)
        received.port.close()
        guest.check_port("a", folder / "a", 10_000)


def test_vmm_that_leaves_while_there_is_no_worker_has_left(device, folder):
    before = device.descriptors_at_rest(folder / "ser0.sock")
    guest = EmbeddedGuest(folder / "ser0.sock", "a", "b")
    os.kill(device.worker, signal.SIGSTOP)
    guest.driver._transport._access.close()
    device.kill_worker()
    guest.loop.close()
    guest.driver._memory.close()
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        guest.check_port("a", folder / "a", 10_000)
    wait_until(lambda: device.descriptors() == before, complaint=f"{before} became {device.descriptors()}")


def test_maps_and_interrupts_of_the_successor_are_those_of_its_predecessor(device, folder):
    """As the VMM set them up and no others: maps that were taken away do not come back."""
    path = folder / "ser0.sock"
    memory = os.memfd_create("vmm memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, 1 << 20)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        with Client(path) as vmm:
            # Addresses whose decimal digits begin alike.
            for page in (1, 10, 100):
                vmm.dma_map(4096 * page, 4096, fd=memory, offset=4096 * page)
            vmm.set_irqs(wire.VFIO_PCI_MSIX_IRQ_INDEX, 1, [eventfd])
            vmm.set_irqs(wire.VFIO_PCI_MSIX_IRQ_INDEX, 10, [eventfd])
            vmm.dma_unmap(4096, 4096)
            vmm.set_irqs(wire.VFIO_PCI_MSIX_IRQ_INDEX, 1, [-1])
            before, maps = device.settled_descriptors(), device.worker_maps("vmm memory")
            device.wait_for_new_worker(device.kill_worker())
            vmm.trigger_irqs(wire.VFIO_PCI_MSIX_IRQ_INDEX, 10, 1)
            assert os.eventfd_read(eventfd) == 1
            vmm.trigger_irqs(wire.VFIO_PCI_MSIX_IRQ_INDEX, 1, 1)
            with pytest.raises(BlockingIOError):
                os.eventfd_read(eventfd)
            assert device.settled_descriptors() == before
            assert device.worker_maps("vmm memory") == maps
            with pytest.raises(PeerError) as refused:
                vmm.dma_map(4096 * 10, 8192, fd=memory)
            assert refused.value.errno == errno.EEXIST
            vmm.dma_map(4096, 8192, fd=memory)
            vmm.dma_unmap_all()
            assert device.worker_maps("vmm memory") == 0
        os.close(eventfd)
    finally:
        os.close(memory)


def test_worker_that_dies_again_and_again_is_started_less_and_less_often(device, folder):
    pauses = []
    for _ in range(len(RESTART_DELAYS) + 1):
        worker = device.kill_worker()
        killed = time.monotonic()
        device.wait_for_new_worker(worker)
        pauses.append(time.monotonic() - killed)
    # The first is counted as young already, so all but the delay of 0 have been there, the last one twice.
    for pause, delay in zip(pauses, (*RESTART_DELAYS[1:], RESTART_DELAYS[-1], RESTART_DELAYS[-1]), strict=True):
        assert pause >= delay * 0.9
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        guest.check_port("a", folder / "a", 10_000)


def test_worker_that_hangs_is_replaced_when_somebody_needs_it(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        received = guest.open("a")
        worker = device.kill_worker(signal.SIGSTOP)
        with connect(folder / "a") as host:
            device.wait_for_log(f"worker {worker} has not read its channel for {SEND_TIMEOUT} s; a new one takes over")
            device.wait_for_new_worker(worker)
            guest.run_until(lambda: received.port.host_connected)
            received.port.write(b"hello")
            assert host.recv(5) == b"hello"
    assert device.log.count("a new one takes over") == 1


def test_worker_that_hangs_is_replaced_when_only_the_guest_needs_it(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest, connect(folder / "a") as host:
        received = guest.open("a")
        guest.run_until(lambda: received.port.host_connected)
        worker = device.kill_worker(signal.SIGSTOP)
        received.port.write(b"hello")
        device.wait_for_log(f"worker {worker} has not read its channel for {SEND_TIMEOUT} s; a new one takes over")
        device.wait_for_new_worker(worker)
        assert host.recv(5) == b"hello"
        received.port.write(b"again")
        guest.run_until(received.port.flushed)
        assert host.recv(5) == b"again"
    assert device.log.count("a new one takes over") == 1


@pytest.mark.timeout(180)
def test_back_end_over_which_one_worker_after_the_other_hangs_is_disconnected(start, folder):
    """A file whose file system does not answer is the same.  Workers hung for ever; and where a neighbour had not been
    restored yet when they did, its VMM lost the connection for it."""
    device = start(
        *controller_options(folder), *controller_options(folder, "ser1"), *controller_options(folder, "ser2"),
        *("-chardev", f"handler,id=h,path={HANDLERS},class=Stuck"),
        *("-device", "virtserialport,bus=ser0.0,nr=1,chardev=h,name=a"), *port_options(folder, "b", bus="ser1"),
    )  # fmt: skip
    complaint = "chardev 'h': workers hang over it again and again; it is disconnected"
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest, EmbeddedGuest(folder / "ser1.sock", "b") as neighbour:
        port = guest.open("a").port
        guest.run_until(lambda: port.host_connected)
        port.write(b"x")
        while complaint not in device.log:
            # Nobody looks unless somebody wants something; it is refused if its predecessor is not known to have left.
            with contextlib.suppress(PeerError):
                Client(folder / "ser2.sock", timeout=60).close()
        guest.run_until(lambda: not port.host_connected)
        neighbour.check_port("b", folder / "b", 10_000)
    assert device.log.count("a new one takes over") >= HANGS
    assert "died restoring" not in device.log


def switches(pid):
    """How often a process has gone to sleep."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("voluntary_ctxt")).split()[1])


def test_nobody_wakes_up_while_nothing_happens(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest, connect(folder / "a"):
        received = guest.open("a")
        guest.run_until(lambda: received.port.host_connected)
        before = []

        def at_rest():
            before.append((switches(device.pid), switches(device.worker)))
            time.sleep(1.5)
            return before[-1] == (switches(device.pid), switches(device.worker))

        wait_until(at_rest, seconds=20, complaint=f"keeper and worker do not come to rest: {before}")
