"""Hosts that do not behave: on one port, whatever they do, the others work, and so does that one afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time

import pytest
from support.device_process import DeviceProcess, connect, controller_options, port_options, resident
from support.embedded_guest import EmbeddedGuest
from support.waiting import PATIENCE, wait_until


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


WEBSOCKET = (
    b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
FLOODS = {
    "help of a multiplexer": ("mux=on", b"", b"\x01h"),
    "focus of a multiplexer": ("mux=on", b"", b"\x01c"),
    "escapes of a multiplexer": ("mux=on", b"", b"\x01\x01"),
    "empty frames": ("websocket=on", WEBSOCKET, b"\x82\x80abcd"),
    "pings": ("websocket=on", WEBSOCKET, b"\x89\x80abcd"),
    "telnet commands": ("telnet=on", b"", b"\xff\xf1"),
}


@contextlib.contextmanager
def flooding(path, first, piece):
    """A process that sends without a pause, and reads nothing."""
    pid = os.fork()
    if pid == 0:
        try:
            with connect(path) as host:
                host.settimeout(None)
                host.sendall(first)
                while True:
                    host.sendall(piece * 10_000)
        finally:
            os._exit(0)
    yield
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("flood", FLOODS)
def test_host_that_sends_what_costs_most_without_a_pause_holds_up_nobody(folder, flood):
    option, first, piece = FLOODS[flood]
    flooded = port_options(folder, "a", 1)
    flooded[1] += f",{option}"
    second = ["-device", "virtserialport,bus=ser0.0,nr=2,chardev=a,name=a2"] if option == "mux=on" else []
    device = DeviceProcess(
        folder, *controller_options(folder), *flooded, *second,
        *controller_options(folder, "ser1"), *port_options(folder, "c", 1, "ser1"),
    )  # fmt: skip
    worst = 0.0
    try:
        with EmbeddedGuest(folder / "ser0.sock", "a") as guest, EmbeddedGuest(folder / "ser1.sock", "c") as neighbour:
            guest.open("a")
            echo = neighbour.open("c")
            with connect(folder / "c") as host, flooding(folder / "a", first, piece):
                neighbour.run_until(lambda: echo.port.host_connected)
                end = time.monotonic() + 2
                while time.monotonic() < end:
                    guest.loop.run_once(timeout=0)
                    begin, size = time.monotonic(), len(echo.data)
                    host.sendall(b"x")
                    neighbour.run_until(lambda size=size: len(echo.data) > size)
                    worst = max(worst, time.monotonic() - begin)
        assert "takes over" not in device.log
        assert worst < 3 * PATIENCE, "a neighbour feels it"
    finally:
        device.kill()
