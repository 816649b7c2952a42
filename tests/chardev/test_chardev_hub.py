"""chardev hub: host ends of real sockets under one port."""

import contextlib
import os
import socket

import pytest

from virtserial.host_end.hub import MAX_OUTPUT, HubHostEnd
from virtserial.host_end.stream import DescriptorStream


class Hub:
    """A hub with a recording port, and the far ends of its parts."""

    def __init__(self, house, recording_port):
        self.house = house
        self.end = HubHostEnd(house.loop, "hub")
        house._ends.append(self.end)
        self.port = recording_port(self.end)
        self.over = []
        self.far = {}

    def join(self, name):
        far, near = socket.socketpair()
        near.setblocking(False)
        far.settimeout(60)
        self.far[name] = far
        fd = near.detach()
        self.end.join(name, DescriptorStream(self.house.loop, name, fd, fd), lambda: self.over.append(name))
        return far


@pytest.fixture
def hub(house, recording_port):
    hub = Hub(house, recording_port)
    yield hub
    for far in hub.far.values():
        far.close()


def test_output_goes_to_all_and_input_comes_from_all(house, hub):
    a, b = hub.join("a"), hub.join("b")
    assert hub.port.events == ["opened"]
    assert hub.end.writev([memoryview(b"to "), memoryview(b"all")]) == 6
    assert (a.recv(100), b.recv(100)) == (b"to all", b"to all")
    a.sendall(b"from a ")
    house.until(lambda: hub.port.received == b"from a ")
    b.sendall(b"from b")
    house.until(lambda: hub.port.received == b"from a from b")


def test_connected_while_any_part_is(house, hub):
    assert hub.port.events == []
    a, b = hub.join("a"), hub.join("b")
    a.close()
    house.until(lambda: hub.over == ["a"])
    assert hub.end.connected
    assert hub.port.write(b"still") == 5
    assert b.recv(100) == b"still"
    b.close()
    house.until(lambda: hub.over == ["a", "b"])
    assert hub.port.events[-1] == "closed"
    assert not hub.end.connected
    assert not hub.end.ended
    c = hub.join("a")
    assert hub.port.events[-1] == "opened"
    hub.port.write(b"again")
    assert c.recv(100) == b"again"


def test_the_slowest_holds_back_and_nothing_is_lost_or_doubled(house, hub):
    a, b = hub.join("a"), hub.join("b")
    message = os.urandom(4 << 20)
    received = {"a": bytearray(), "b": bytearray()}
    a.setblocking(False)
    written = 0

    def write():
        nonlocal written
        while written < len(message) and (count := hub.port.write(memoryview(message)[written : written + 100_000])):
            written += count

    def read(name, far):
        with contextlib.suppress(BlockingIOError):
            received[name] += far.recv(1 << 20)

    for _ in range(50):  # b does not read
        write()
        read("a", a)
        house.loop.run_once(0)
    for _ in range(10):
        read("a", a)
    assert written < len(message)
    assert written - len(received["a"]) <= MAX_OUTPUT
    assert hub.port.write(message) == 0
    b.setblocking(False)

    def done():
        write()
        read("a", a)
        read("b", b)
        return received["a"] == received["b"] == message

    house.until(done)
    assert "writable" in hub.port.events


def test_a_slow_part_that_leaves_frees_the_others(house, hub):
    a, b = hub.join("a"), hub.join("b")
    a.setblocking(False)
    message = bytes(100_000)
    while hub.port.write(message):
        with contextlib.suppress(BlockingIOError):
            while a.recv(1 << 20):
                pass
    assert hub.port.events[-1] != "writable"
    b.close()
    house.until(lambda: "writable" in hub.port.events)
    assert hub.port.write(b"free") == 4


def test_leave_closes_the_connection_of_a_part(house, hub):
    a = hub.join("a")
    hub.join("b")
    assert hub.end.leave("a")
    assert not hub.end.leave("a")
    assert a.recv(1) == b""
    assert hub.over == []
    assert hub.end.connected


def test_a_part_that_fails_does_not_end_the_others(house, hub, caplog):
    b = hub.join("b")
    full = os.open("/dev/full", os.O_WRONLY)
    hub.end.join("full", DescriptorStream(house.loop, "full", None, full), lambda: hub.over.append("full"))
    assert hub.port.write(b"hello") == 5
    house.until(lambda: hub.over == ["full"])
    assert b.recv(10) == b"hello"
    assert "No space left on device" in caplog.text
    assert hub.end.connected


def test_closed_port_hears_of_a_hang_up_at_once(house, hub):
    hub.port.reads = hub.end.wants_input = False
    a = hub.join("a")
    a.sendall(b"unread")
    a.close()
    house.until(lambda: hub.over == ["a"])
    assert hub.end.input_discarded == 6
