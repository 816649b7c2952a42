"""A stream that keeps still while its port means to look by itself, and one that was read in part."""

import os
import socket

import pytest

from virtserial.host_end.stream import DescriptorStream


@pytest.fixture
def stream(house, recording_port):
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        end = DescriptorStream(house.loop, "stream", ours.fileno(), ours.detach())
        port = recording_port(end, take=1000)
        end.start()
        yield port, theirs
        end.close()


def test_bytes_for_a_held_stream_wake_nobody(house, stream):
    port, theirs = stream
    theirs.send(bytes(500))
    house.settle()
    assert port.end.hold_input()
    port.events.clear()
    theirs.send(bytes(400))
    house.settle()
    assert port.events == []
    port.end.readable = True
    port.read_all()
    assert len(port.received) == 900


def test_a_held_stream_tells_again_once_it_was_found_empty(house, stream):
    port, theirs = stream
    port.end.hold_input()
    port.end.readable = True
    port.read_all()
    theirs.send(b"more")
    house.until(lambda: port.received == b"more")


def test_what_came_while_a_stream_was_held_is_told_of_by_wait_readable(house, stream):
    port, theirs = stream
    port.end.hold_input()
    theirs.send(b"waiting")
    house.settle()
    assert port.end.wait_readable()
    house.until(lambda: port.received == b"waiting")


def test_a_held_stream_that_blocks_still_tells_when_there_is_room(house, stream):
    port, theirs = stream
    while port.write(bytes(100_000)):
        pass
    port.end.hold_input()
    theirs.send(bytes(300))
    house.settle()
    assert "readable" not in port.events
    while "writable" not in port.events:
        theirs.recv(1 << 20)
        house.loop.run_once(0.02)


def test_a_port_that_closes_lets_a_held_stream_go(house, stream):
    port, theirs = stream
    port.end.hold_input()
    port.end.wants_input = False
    theirs.close()
    house.until(lambda: "closed" in port.events)


def test_the_hang_up_of_a_held_streams_host_is_noticed(house, stream):
    port, theirs = stream
    port.end.hold_input()
    theirs.send(b"last words")
    theirs.close()
    house.settle()
    port.end.readable = True
    port.read_all()
    house.until(lambda: "closed" in port.events)
    assert port.received == b"last words"


def test_what_a_short_read_has_left_behind_a_passed_descriptor_is_told_of(house, stream):
    port, theirs = stream
    port.reads = False
    socket.send_fds(theirs, [b"one"], [theirs.fileno()])
    theirs.send(b"two")
    house.settle()
    assert port.end.readv([memoryview(bytearray(100))]) == 3
    assert port.end.wait_readable()
    port.events.clear()
    port.reads = True
    house.until(lambda: port.received == b"two")


def test_what_comes_after_a_short_read_is_told_of_at_once(house, stream):
    port, theirs = stream
    port.reads = False
    theirs.send(b"one")
    house.settle()
    assert port.end.readv([memoryview(bytearray(100))]) == 3
    assert port.end.wait_readable()
    port.events.clear()
    theirs.send(b"two")
    house.loop.run_once(0.001)
    assert port.events == ["readable"]


def test_a_file_cannot_be_held(house, recording_port, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    end = DescriptorStream(house.loop, "file", os.open(tmp_path / "file", os.O_RDONLY), None)
    recording_port(end)
    end.start()
    assert not end.hold_input()
    end.close()


def test_a_short_read_needs_no_call_of_epoll_and_what_it_left_is_told_of(house, recording_port, monkeypatch):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    port = recording_port(DescriptorStream(house.loop, "stream", ours.fileno(), ours.detach()), reads=False)
    port.end.start()
    rewatched = []
    monkeypatch.setattr(house.loop, "rewatch", lambda *arguments: rewatched.append(arguments))
    with theirs:
        for _ in range(3):
            theirs.send(b"ab")
            house.loop.run_once(1)
            for left in (True, False):
                assert port.end.readv([memoryview(bytearray(1))]) == 1
                assert port.end.wait_readable()
                house.loop.run_once(0.001)
                assert port.end.readable is left
    assert rewatched == []
    port.end.close()
