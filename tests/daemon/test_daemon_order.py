"""What a host does first, the guest learns first: a connection to one port, then bytes at another."""

from __future__ import annotations

import signal

import pytest
from support.device_process import connect, open_descriptors, wait_until
from support.embedded_guest import EmbeddedGuest

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
                guest.run_until(lambda: len(a.data) > number)
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
