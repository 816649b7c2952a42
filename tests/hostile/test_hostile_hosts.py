"""Hosts that do not behave: on one port, whatever they do, the others work, and so does that one afterwards."""

from __future__ import annotations

import contextlib
import socket

from support.device_process import connect, resident
from support.embedded_guest import EmbeddedGuest
from support.waiting import wait_until


def test_host_that_never_reads_holds_back_its_guest_and_nobody_else(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest, connect(folder / "a") as deaf:
        port = guest.open("a").port
        guest.run_until(lambda: port.host_connected)
        before, sent, still = resident(device.worker), 0, 0
        while still < 50:
            taken = port.write(bytes(50_000))
            sent += taken
            still = 0 if taken else still + 1
            guest.loop.run_once(timeout=0.01)
        assert sent < 64 << 20
        guest.check_port("b", folder / "b", 100_000)
        assert resident(device.worker) - before < 16 << 20
        deaf.setblocking(False)
        received = 0

        def take():
            nonlocal received
            with contextlib.suppress(BlockingIOError):
                received += len(deaf.recv(1 << 18))
            return received == sent

        guest.run_until(take)


def test_hosts_that_come_and_go_all_the_time_leave_nothing(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        received = guest.open("a")
        port = received.port
        # What is connected and accepted may lag behind what was closed.
        before = device.settled_descriptors()
        for number in range(300):
            with socket.socket(socket.AF_UNIX) as host:
                # Blocking: the backlog is as short as QEMU's, and a connect with a time limit does not wait for it.
                host.connect(str(folder / "a"))
                if number % 3:
                    host.sendall(b"x" * number)
                port.write(b"y" * 100)
                guest.loop.run_once(timeout=0)
        with socket.socket(socket.AF_UNIX) as last:
            # Those before it are let go first.
            last.connect(str(folder / "a"))
            last.sendall(b"last")
            guest.run_until(lambda: received.data.endswith(b"last"))
        guest.run_until(lambda: not port.host_connected)
        port.close()
        guest.check_port("a", folder / "a", 10_000)
        guest.check_port("b", folder / "b", 10_000)
        wait_until(lambda: device.settled_descriptors() == before, complaint="descriptors stay open")


def test_host_that_closes_its_half_is_let_go_and_the_next_is_served(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        received = guest.open("a")
        with connect(folder / "a") as host:
            guest.run_until(lambda: received.port.host_connected)
            host.sendall(b"last words")
            host.shutdown(socket.SHUT_WR)
            guest.run_until(lambda: received.data == b"last words")
            guest.run_until(lambda: not received.port.host_connected)
        received.port.close()
        guest.check_port("a", folder / "a", 10_000)
