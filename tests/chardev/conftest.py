"""A keeper and a worker's port in one process, over the real event loop."""

import contextlib
import os
import time

import pytest

from virtserial.host_end.factory import open_host_end
from virtserial.loop import EventLoop


class RecordingPort:
    """A port that keeps what it hears, and reads all it can while `reads` is on."""

    def __init__(self, end, *, reads=True, take=65536):
        self.end = end
        self.reads = reads
        self.take = take
        self.events = []
        self.received = bytearray()
        end.listener = self
        end.wants_input = reads

    def host_opened(self):
        self.events.append("opened")

    def host_closed(self):
        self.events.append("closed")

    def host_readable(self):
        self.events.append("readable")
        if self.reads:
            self.read_all()

    def host_writable(self):
        self.events.append("writable")

    def read_all(self):
        buffer = bytearray(self.take)
        while count := self.end.readv([memoryview(buffer)]):
            self.received += buffer[:count]

    def write(self, data):
        return self.end.writev([memoryview(data)])


class House:
    """The loop, the opened chardevs, their connections and host ends; closes all of it."""

    def __init__(self):
        self.loop = EventLoop()
        self.connections = []
        self.reports = []
        self._chardevs = []
        self._ends = []

    def open(self, chardev):
        chardev.report = self.reports.append
        self._chardevs.append(chardev)
        chardev.open(self.loop, self)
        return chardev

    def connection_opened(self, chardev, connection, fds):
        self.connections.append((connection, fds))

    def port(self, *, start=True, **how):
        """The worker's half of the oldest connection that has none yet (waits for one)."""
        self.until(lambda: self.connections)
        end = open_host_end(*self.connections.pop(0), self.loop)
        return self.join(end, start=start, **how)

    def join(self, end, *, start=True, **how):
        """A port on a host end, which the house closes."""
        self._ends.append(end)
        port = RecordingPort(end, **how)
        if start:
            end.start()
        return port

    def until(self, condition, timeout=60.0):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            self.loop.run_once(0.02)

    def settle(self, seconds=0.1):
        """Let everything happen that is going to: in some turns of the loop, although the machine may be busy."""
        deadline, turns = time.monotonic() + seconds, 0
        while time.monotonic() < deadline or turns < 5:
            self.loop.run_once(0.01)
            turns += 1

    def close(self):
        for end in self._ends:
            end.close()
        for _, fds in self.connections:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
        for chardev in self._chardevs:
            chardev.close()
        self.loop.close()


@pytest.fixture
def recording_port():
    """Joins a RecordingPort to a host end."""
    return RecordingPort


@pytest.fixture
def house():
    house = House()
    before = set(os.listdir("/proc/self/fd"))
    yield house
    house.close()
    left = set(os.listdir("/proc/self/fd")) - before
    assert not left, f"descriptors left open: {[os.path.realpath(f'/proc/self/fd/{fd}') for fd in left]}"
