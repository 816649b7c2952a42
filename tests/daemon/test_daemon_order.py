"""What a host does first, the guest learns first: a connection to one port, then bytes at another."""

from __future__ import annotations

import os
import resource
import signal

import pytest
from support.device_process import connect, controller_options, port_options
from support.embedded_guest import EmbeddedGuest
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient
from virtserial.daemon.keeper.back_ends import KEPT_BACK

TRIES = 150


def early_ends(guest, folder, tries, pause=0.0):
    """How often port b is not connected although the host had connected before it sent what port a has just got."""
    a, b = guest.open("a"), guest.port("b")
    early = 0
    with connect(folder / "a") as host:
        guest.run_until(lambda: a.port.host_connected)
        for number in range(tries):
            with connect(folder / "b"):
                host.sendall(b"r")
                guest.run_until(lambda wanted=number + 1: len(a.data) >= wanted)
                early += not b.host_connected
                guest.run_until(lambda: b.host_connected)
            if pause:
                guest.run_until(lambda: not b.host_connected)
    return early


def test_connection_is_told_before_bytes_that_were_sent_later(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        assert early_ends(guest, folder, TRIES, pause=0.1) == 0


def test_connection_in_the_place_of_the_one_before_is_told_before_bytes_that_were_sent_later(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        assert early_ends(guest, folder, TRIES) == 0


@pytest.mark.parametrize(("is_open", "data"), [(False, b""), (True, b""), (True, b"last words")])
def test_hang_up_is_told_before_bytes_that_were_sent_later(device, folder, is_open, data):
    """Port b's host sends something, or nothing, and leaves; then port a's host sends."""
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest, connect(folder / "a") as host:
        a, b = guest.open("a"), guest.port("b")
        received = guest.open("b") if is_open else None
        guest.run_until(lambda: a.port.host_connected)
        late = 0
        for number in range(TRIES):
            with connect(folder / "b") as leaving:
                guest.run_until(lambda: b.host_connected)
                leaving.sendall(data)
            host.sendall(b"r")
            guest.run_until(lambda wanted=number + 1: len(a.data) >= wanted)
            late += b.host_connected
            guest.run_until(lambda: not b.host_connected)
        assert late == 0
        assert received is None or received.data == data * TRIES


def test_accepted_client_outlives_its_worker(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest, connect(folder / "b") as host:
        received = guest.open("b")
        guest.run_until(lambda: received.port.host_connected)
        device.wait_for_new_worker(device.kill_worker())
        host.sendall(b"still here")
        guest.run_until(lambda: received.data == b"still here")
        received.port.write(b"so am I")
        assert host.recv(7) == b"so am I"
    assert device.log.count("a new one takes over") == 1


def test_many_clients_leave_no_descriptor_behind(device, folder):
    before = device.descriptors_at_rest(folder / "ser0.sock")
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        for _ in range(50):
            with connect(folder / "b"):
                guest.run_until(lambda: guest.port("b").host_connected)
            guest.run_until(lambda: not guest.port("b").host_connected)
    wait_until(lambda: device.descriptors() == before, complaint=f"{device.descriptors()} stay, not {before}")


def test_a_client_for_whom_no_descriptor_is_left_is_sent_away_and_no_worker_is_blamed(device, folder):
    before = resource.prlimit(device.pid, resource.RLIMIT_NOFILE)
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        device.settled_descriptors()  # Those of the guest's interrupts are still on their way.
        free = min(set(range(before[0])) - {int(fd) for fd in os.listdir(f"/proc/{device.pid}/fd")})
        resource.prlimit(device.pid, resource.RLIMIT_NOFILE, (free + KEPT_BACK // 2, before[1]))
        for _ in range(3):
            with connect(folder / "b") as host:
                assert host.recv(1) == b""
        resource.prlimit(device.pid, resource.RLIMIT_NOFILE, before)
        # The guest learns of b's clients before it learns of a's.
        guest.check_port("a", folder / "a", 10_000)
        guest.run_until(lambda: not guest.port("b").host_connected)
        guest.check_port("b", folder / "b", 10_000)
    assert "chardev 'b': a client is sent away" in device.log
    assert "takes over" not in device.log


@pytest.fixture
def monitored(start, folder):
    """A device whose ports change, with a chardev "shared" that several ports can use at once."""
    shared = f"socket,id=shared,path={folder}/shared,server=on,wait=off,mux=on"
    return start(
        *controller_options(folder), *port_options(folder, "a"), "-chardev", shared,
        "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
    )  # fmt: skip


def add_chardev(monitor, folder, name):
    """A listening socket by that name."""
    address = {"type": "unix", "data": {"path": f"{folder}/{name}"}}
    backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
    monitor.execute("chardev-add", {"id": name, "backend": backend})


def plug(monitor, name, chardev):
    monitor.execute("device_add", {"driver": "virtserialport", "id": name, "name": name, "chardev": chardev})


def test_client_that_comes_before_the_worker_knows_of_the_port_reaches_it(monitored, folder):
    """The worker finds a new chardev, its client and its port all at once."""
    with QmpClient(f"{folder}/qmp", 30) as monitor, EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        os.kill(monitored.worker, signal.SIGSTOP)
        add_chardev(monitor, folder, "late")
        plug(monitor, "late", "late")
        with connect(folder / "late") as host:
            os.kill(monitored.worker, signal.SIGCONT)
            guest.run_until(lambda: any(port.name == "late" for port in guest.driver.ports.values()))
            guest.run_until(lambda: guest.port("late").host_connected)
            received = guest.open("late")
            host.sendall(b"here")
            guest.run_until(lambda: received.data == b"here")


def test_client_that_comes_with_the_second_port_of_a_multiplexer_reaches_both(monitored, folder):
    with QmpClient(f"{folder}/qmp", 30) as monitor, EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        plug(monitor, "one", "shared")
        guest.run_until(lambda: any(port.name == "one" for port in guest.driver.ports.values()))
        os.kill(monitored.worker, signal.SIGSTOP)
        plug(monitor, "two", "shared")
        with connect(folder / "shared"):
            os.kill(monitored.worker, signal.SIGCONT)
            guest.run_until(lambda: any(port.name == "two" for port in guest.driver.ports.values()))
            guest.run_until(lambda: guest.port("one").host_connected and guest.port("two").host_connected)


def test_chardev_of_a_removed_ones_name_takes_clients(monitored, folder):
    with QmpClient(f"{folder}/qmp", 30) as monitor, EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        monitor.execute("chardev-add", {"id": "again", "backend": {"type": "null", "data": {}}})
        monitor.execute("chardev-remove", {"id": "again"})
        add_chardev(monitor, folder, "again")
        plug(monitor, "again", "again")
        guest.run_until(lambda: any(port.name == "again" for port in guest.driver.ports.values()))
        with connect(folder / "again"):
            guest.run_until(lambda: guest.port("again").host_connected)
