"""A share of a multiplexed host end over a stream: for a monitor in another process, or a device of QEMU's."""

from __future__ import annotations

import contextlib
import socket

import pytest

from virtserial.host_end.mux import Multiplexer
from virtserial.host_end.mux_front import PIECE, PIECES, StreamFront
from virtserial.host_end.stream import DescriptorStream


class Shared:
    """A multiplexer on one real socket with a share for each of `names`, each on another."""

    def __init__(self, house, names):
        self.house, self.told, self.users, self.fronts, self.over = house, [], {}, {}, []
        self.host, near = socket.socketpair()
        near.setblocking(False)
        fd = near.detach()
        self.mux = Multiplexer(house.loop, DescriptorStream(house.loop, "m", fd, fd))
        for name in names:
            user, stream = socket.socketpair()
            stream.setblocking(False)
            tell = lambda state, name=name: self.told.append((name, state))  # noqa: E731
            self.users[name] = user
            self.fronts[name] = StreamFront(house.loop, name, stream.detach(), tell)
            self.fronts[name].join(self.mux, lambda name=name: self.over.append(name))
        self.mux.start()
        for end in (self.host, *self.users.values()):
            end.settimeout(0.5)
        self.settle()

    def settle(self):
        self.house.settle(0.03)

    def host_says(self, data):
        self.host.sendall(data)
        self.settle()

    def user_says(self, name, data):
        self.users[name].sendall(data)
        self.settle()

    def close(self):
        for front in self.fronts.values():
            front.close()
        for end in (self.host, *self.users.values()):
            end.close()


@pytest.fixture
def share(house):
    made = []

    def share(*names):
        made.append(Shared(house, names))
        return made[-1]

    yield share
    for shared in made:
        shared.close()


def test_the_last_that_joins_has_the_focus_and_each_hears_of_it(share):
    shared = share("a", "b")
    assert shared.told == [("a", "in"), ("a", "out"), ("b", "in"), ("a", "opened"), ("b", "opened")]
    shared.host_says(b"one\x01ctwo")
    assert shared.users["b"].recv(100) == b"one"
    assert shared.users["a"].recv(100) == b"two"
    assert shared.told[5:] == [("b", "out"), ("a", "in")]


def test_all_may_write(share):
    shared = share("a", "b")
    shared.user_says("a", b"1")
    shared.user_says("b", b"2")
    assert shared.host.recv(100) == b"12"


def test_a_host_that_leaves_ends_the_share_but_not_the_stream(share):
    shared = share("a")
    shared.host.close()
    shared.settle()
    assert shared.told[-1] == ("a", "closed")
    assert shared.over == ["a"]
    shared.user_says("a", b"to nobody")
    again, near = socket.socketpair()
    near.setblocking(False)
    fd = near.detach()
    mux = Multiplexer(shared.house.loop, DescriptorStream(shared.house.loop, "m", fd, fd))
    shared.fronts["a"].join(mux, lambda: None)
    mux.start()
    shared.settle()
    assert shared.told[-2:] == [("a", "in"), ("a", "opened")]
    again.settimeout(0.5)
    again.sendall(b"hello")
    shared.settle()
    assert shared.users["a"].recv(100) == b"hello"
    shared.user_says("a", b"and back")
    assert again.recv(100) == b"and back"
    again.close()


def test_a_user_that_leaves_gives_the_focus_to_the_next(share):
    shared = share("a", "b")
    shared.users["b"].close()
    shared.settle()
    assert ("a", "in") in shared.told[-2:]
    shared.host_says(b"hello")
    assert shared.users["a"].recv(100) == b"hello"


def pump(shared, source, sink, total):
    """Sends `total` bytes from one socket to the other, one piece at a time, and gives what came."""
    data = bytes(index * 7 % 256 or 2 for index in range(1 << 16)) * (total >> 16)
    data = data.replace(b"\x01", b"\x02")
    source.setblocking(False)
    sink.setblocking(False)
    sent, received = 0, bytearray()
    while len(received) < total:
        with contextlib.suppress(BlockingIOError):
            sent += source.send(data[sent : sent + 65536])
        shared.house.loop.run_once(0.01)
        with contextlib.suppress(BlockingIOError):
            received += sink.recv(10_000)
    return data, bytes(received)


@pytest.mark.parametrize("direction", ["to the user", "to the host"])
def test_nothing_is_lost_when_the_reader_is_slow(share, direction):
    shared = share("a")
    ends = (shared.host, shared.users["a"])
    sent, received = pump(shared, *(ends if direction == "to the user" else ends[::-1]), 1 << 20)
    assert received == sent


def test_a_reader_that_does_not_read_costs_no_memory(share):
    shared = share("a")
    shared.host.setblocking(False)
    sent = 0
    for _ in range(2000):
        try:
            sent += shared.host.send(b"x" * 65536)
        except BlockingIOError:
            shared.house.loop.run_once(0.001)
    front = shared.fronts["a"]
    assert sent < 8 << 20  # What the sockets hold.
    assert len(front._to_user) + len(front._to_host) <= 2 * 4096


def test_a_user_that_never_pauses_has_a_budget(share, house):
    sharing = share("monitor")
    sharing.users["monitor"].setblocking(False)
    sent = sharing.users["monitor"].send(bytes(1 << 20))
    assert sent > PIECES * PIECE
    house.loop.run_once(1)
    received = len(sharing.host.recv(1 << 20))
    assert 0 < received <= 2 * PIECES * PIECE < sent, "one for the event, one for the turn"
    while received < sent:
        house.loop.run_once(0.01)
        received += len(sharing.host.recv(1 << 20))
