"""What a host does first, the guest learns first: a connection to one port, then bytes at another."""

from __future__ import annotations

from support.device_process import connect
from support.embedded_guest import EmbeddedGuest
from support.waiting import wait_until

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
