"""The embedded guest in the test's own process, and transfers whose every byte is looked at."""

from __future__ import annotations

import os
import time

from support.device_process import connect

from virtserial.driver.console_driver import DriverListener
from virtserial.driver.ports import PortListener
from virtserial.driver.vfio_user_device import open_vfio_user_device
from virtserial.loop import EventLoop

LIMIT = 60
"""Seconds for an answer of the device: its worker may be one that is just starting."""
PROBE = 64
"""Bytes of random data that stand at one place only."""


class EmbeddedGuest(DriverListener):
    """A driver on the device behind a vfio-user socket.

    Args:
        path: the controller's socket.
        ports: names of ports to wait for.
        open_device: opens another kind of device.
        options: for it.
    """

    def __init__(self, path, *ports, open_device=open_vfio_user_device, **options):
        self.loop = EventLoop()
        self.failure = None
        self.driver = open_device(path, self.loop, self, **{"timeout": LIMIT, **options})
        try:
            self.driver.start()
            self.run_until(lambda: set(ports) <= {port.name for port in self.driver.ports.values()})
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.driver.close()
        self.loop.close()

    def device_failed(self, error):
        self.failure = error

    def port(self, name):
        if self.failure is not None:
            raise self.failure
        return next(port for port in self.driver.ports.values() if port.name == name)

    def run_until(self, condition, seconds=60):
        limit = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < limit, "it did not come to that"
            if self.failure is not None:
                raise self.failure
            self.loop.run_once(timeout=0.02)
        return value

    def open(self, name):
        """Open a port; returns what is received there.  A console can be written to, whoever is there."""
        received = Received(self.port(name))
        if received.port.is_console:
            self.run_until(lambda: received.port.host_connected)
        return received

    def connect(self, path):
        """A host's connection; those who wait there already may have no room for it while a worker is replaced."""
        return self.run_until(lambda: _try_connect(path))

    def check_port(self, name, path, size=300_000):
        """Move random bytes both ways between a port and its host's end; they arrive exactly."""
        data = os.urandom(size)
        with self.connect(path) as host:
            host.setblocking(False)
            received = self.open(name)
            try:
                self.run_until(lambda: received.port.host_connected)
                sent = given = 0
                taken = bytearray()
                limit = time.monotonic() + 15
                while len(taken) < size or len(received.data) < size:
                    assert time.monotonic() < limit, f"{len(taken)} and {len(received.data)} bytes of {size} came"
                    sent += received.port.write(data[sent : sent + 50_000])
                    given += try_send(host, data[given : given + 50_000])
                    taken += try_receive(host)
                    self.loop.run_once(timeout=0.005)
            finally:
                received.port.close()
        # Or what is written next may be discarded with the old connection.
        self.run_until(lambda: not received.port.host_connected)
        assert taken == data
        assert received.data == data


def _try_connect(path):
    try:
        return connect(path)
    except BlockingIOError:
        return None


class Received(PortListener):
    """Takes everything a port has, whenever it has something."""

    def __init__(self, port):
        self.port = port
        self.data = bytearray()
        port.open(self)

    def port_readable(self):
        while data := self.port.read(1 << 18):
            self.data += data


def try_send(sock, data):
    try:
        return sock.send(data) if data else 0
    except BlockingIOError:
        return 0


def try_receive(sock):
    try:
        return sock.recv(1 << 18)
    except BlockingIOError:
        return b""


def jumps(sent, received):
    """Where a received stream leaves the sent one: [(position expected, position found)], random bytes given.

    Fails on bytes that were never sent.
    """
    found, place, start = [], 0, 0
    while start < len(received):
        length = _equal_length(sent, place, received, start)
        place, start = place + length, start + length
        if start == len(received):
            break
        target = sent.find(bytes(received[start : start + PROBE]))
        assert target >= 0, f"byte {start} of {len(received)} received begins something that was not sent"
        found.append((place, target))
        place = target
    return found, place


def _equal_length(a, a_start, b, b_start):
    """How many bytes are equal from the two places on."""
    low, high = 0, min(len(a) - a_start, len(b) - b_start)
    if a[a_start : a_start + high] == b[b_start : b_start + high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if a[a_start : a_start + middle] == b[b_start : b_start + middle]:
            low = middle
        else:
            high = middle - 1
    return low
