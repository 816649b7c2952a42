"""mux=on: several ports on one real socket."""

import contextlib
import os
import re
import socket
import time

import pytest

from virtserial.errors import StateError
from virtserial.host_end.mux import Multiplexer
from virtserial.host_end.stream import DescriptorStream


class Mux:
    def __init__(self, house, recording_port, ports, **how):
        self.house = house
        self._recording_port = recording_port
        self.far, near = socket.socketpair()
        self.far.settimeout(60)
        near.setblocking(False)
        fd = near.detach()
        self.mux = Multiplexer(house.loop, DescriptorStream(house.loop, "m", fd, fd), **how)
        self.ports = [self.add() for _ in range(ports)]
        self.mux.start()

    def add(self):
        front = self.mux.add_front()
        self.house._ends.append(front)
        port = self._recording_port(front)
        front.start()
        return port

    def type(self, data):
        self.far.sendall(data)
        self.house.settle(0.03)

    def received(self):
        return [bytes(port.received) for port in self.ports]


@pytest.fixture
def multiplex(house, recording_port):
    made = []

    def multiplex(ports, **how):
        made.append(Mux(house, recording_port, ports, **how))
        return made[-1]

    yield multiplex
    for mux in made:
        mux.far.close()


def test_all_write_and_the_last_plugged_reads(multiplex):
    mux = multiplex(3)
    assert [port.events[0] for port in mux.ports] == ["opened"] * 3
    for index, port in enumerate(mux.ports):
        assert port.write(b"%d" % index) == 1
    assert mux.far.recv(100) == b"012"
    mux.type(b"hello")
    assert mux.received() == [b"", b"", b"hello"]


def test_focus_goes_round(multiplex):
    mux = multiplex(3)
    mux.type(b"2\x01c0\x01c1\x01c2")
    assert mux.received() == [b"0", b"1", b"22"]


def test_escape_twice_is_one_and_may_come_in_pieces(multiplex):
    mux = multiplex(2)
    mux.type(b"a\x01")
    mux.type(b"\x01b\x01")
    mux.type(b"c")
    mux.type(b"d")
    assert mux.received() == [b"d", b"a\x01b"]


def test_help(multiplex):
    mux = multiplex(1)
    mux.type(b"\x01h\x01?")
    lines = [
        "C-a h    print this help",
        "C-a s    save disk data back to file (if -snapshot)",
        "C-a t    toggle console timestamps",
        "C-a b    send break (magic sysrq)",
        "C-a c    switch between console and monitor",
        "C-a C-a  sends C-a",
    ]
    text = "\n\r" + "".join(f"{line}\n\r" for line in lines)
    assert mux.far.recv(2000).decode() == text * 2
    assert mux.received() == [b""]


def test_keys_without_an_effect_are_swallowed(multiplex):
    mux = multiplex(1)
    mux.type(b"a\x01b\x01s\x01x\x01zb")
    assert mux.received() == [b"ab"]


def test_quit_if_it_is_allowed(multiplex):
    asked = []
    mux = multiplex(1, quit=lambda: asked.append(True))
    mux.type(b"\x01x")
    assert asked == [True]
    assert mux.far.recv(100) == b"virtserial: Terminated\n\r"
    mux.type(b"\x01h")
    assert b"C-a x    exit emulator\n\r" in mux.far.recv(2000)


def test_timestamps(multiplex):
    mux = multiplex(1)
    mux.ports[0].write(b"plain\n")
    mux.type(b"\x01t")
    assert mux.ports[0].end.writev([memoryview(b"one\ntw"), memoryview(b"o\nthree")]) == 13
    stamp = rb"\[00:00:0\d\.\d{3}\] "
    mux.house.settle(0.02)
    assert re.fullmatch(rb"plain\none\n" + stamp + rb"two\n" + stamp + rb"three", mux.far.recv(1000))
    mux.type(b"\x01t")
    mux.ports[0].write(b"\nplain")
    assert mux.far.recv(100) == b"\nplain"


def test_timestamps_under_back_pressure_lose_nothing(house, multiplex):
    mux = multiplex(1)
    mux.type(b"\x01t")
    lines = b"".join(b"%06d\n" % number for number in range(100_000))
    written, received = 0, bytearray()
    mux.far.setblocking(False)

    def done():
        nonlocal written
        while written < len(lines) and (count := mux.ports[0].write(memoryview(lines)[written:])):
            written += count
        try:
            received.extend(mux.far.recv(1 << 20))
        except BlockingIOError:
            return written == len(lines)
        return False

    house.until(done, timeout=30)
    assert re.sub(rb"\[[0-9:.]{12}\] ", b"", bytes(received)) == lines
    assert "writable" in mux.ports[0].events


def test_back_pressure_is_told_to_all(house, multiplex):
    mux = multiplex(2)
    data = os.urandom(100_000)
    total = 0
    while count := mux.ports[0].write(data):
        total += count
    assert mux.ports[1].write(b"x") == 0
    while total:
        total -= len(mux.far.recv(min(total, 1 << 20)))
        house.loop.run_once(0)
    house.until(lambda: all("writable" in port.events for port in mux.ports))
    assert mux.ports[1].write(b"x") == 1


def test_focus_moves_although_the_guest_does_not_read(multiplex):
    mux = multiplex(2)
    mux.ports[1].reads = mux.ports[1].end.wants_input = False
    mux.type(b"kept" * 100 + b"\x01cfirst")
    assert mux.received() == [b"first", b""]
    mux.ports[1].end.wants_input = True
    mux.ports[1].read_all()
    assert mux.received() == [b"first", b"kept" * 100]


def test_much_input_waits_in_the_socket(house, multiplex):
    mux = multiplex(1)
    port = mux.ports[0]
    port.reads = False
    data = os.urandom(100_000).replace(b"\x01", b"\x02")
    mux.far.sendall(data)
    house.settle(0.05)
    assert len(port.end.input) == 4096
    port.reads = True
    port.read_all()
    house.until(lambda: port.received == data)


TURN_SECONDS = 0.05
"""Processor time: ten times what a turn takes here."""


@pytest.mark.parametrize("keys", [b"\x01h", b"\x01c", b"\x01t", b"\x01x", b"\x01\x01", b"\x01s"])
def test_escapes_without_end_hold_nobody_up(house, multiplex, keys):
    """A client that never pauses: each turn of the loop is short, and what it costs others is limited."""
    asked = []
    mux = multiplex(2, quit=lambda: asked.append(True))
    mux.far.setblocking(False)
    worst, turns, end = 0.0, 0, time.monotonic() + 0.5
    while time.monotonic() < end or turns <= 5:
        for _ in range(4):
            with contextlib.suppress(BlockingIOError):
                mux.far.send(keys * 100_000)
        before = time.thread_time()
        house.loop.run_once(0.001)
        worst, turns = max(worst, time.thread_time() - before), turns + 1
    assert worst < TURN_SECONDS
    assert len(mux.mux._output) < 1000
    assert len(mux.mux._typed) + sum(len(port.end.input) for port in mux.ports) <= 3 * 4096
    assert len(asked) <= 8 * 52
    assert len(mux.house.loop._turns) <= 2


def test_more_commands_than_the_budget_are_all_obeyed(house, multiplex):
    mux = multiplex(2)
    mux.type(b"".join(b"%d\x01c" % (number % 10) for number in range(100)))
    house.until(lambda: sum(map(len, mux.received())) == 100)
    assert mux.received() == [b"13579" * 10, b"02468" * 10]


def test_port_that_goes_while_commands_wait(house, multiplex):
    mux = multiplex(1)
    mux.far.sendall(b"\x01t" * 100)
    house.loop.run_once(1)
    mux.ports[0].end.close()
    house.settle(0.05)
    assert mux.far.recv(1) == b""


def test_hang_up_is_told_to_all_after_what_came_before(house, multiplex):
    mux = multiplex(2)
    mux.ports[1].reads = False
    mux.far.sendall(b"last words")
    mux.far.close()
    house.until(lambda: "closed" in mux.ports[0].events)
    assert "closed" not in mux.ports[1].events
    mux.ports[1].read_all()
    house.until(lambda: "closed" in mux.ports[1].events)
    assert mux.received() == [b"", b"last words"]
    assert all(port.end.ended for port in mux.ports)


def test_port_that_goes_and_port_that_comes(multiplex):
    mux = multiplex(2)
    mux.ports[1].end.close()
    mux.type(b"a")
    late = mux.add()
    assert late.events == ["opened"]
    mux.type(b"b")
    assert (mux.received(), bytes(late.received)) == ([b"a", b""], b"b")


def test_last_port_closes_the_host_end(multiplex):
    mux = multiplex(2)
    for port in mux.ports:
        port.end.close()
    assert mux.far.recv(1) == b""


def test_no_fifth_port(multiplex):
    mux = multiplex(4)
    with pytest.raises(StateError):
        mux.mux.add_front()
