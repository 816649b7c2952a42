"""The socket: whole messages, whoever sends them in whatever pieces, and a process that is killed over one."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.vhost_device import NotingDevice

from virtserial.accounting import CONSUME, REPLY, Note, nowhere
from virtserial.errors import PeerError
from virtserial.memory.state import HEADER_SIZE, StateMemory
from virtserial.vhost_user import wire
from virtserial.vhost_user.server import PROTOCOL_FEATURES, Server
from virtserial.vhost_user.stream import FrontEndStream

GET_FEATURES = wire.message(wire.VHOST_USER_GET_FEATURES)
ANSWER_SIZE = wire.HEADER_SIZE + 8


class Pair:
    """A server behind a stream, and the front end's socket."""

    def __init__(self, make_server):
        self.make_server = make_server
        self.front_end, self.ours = socket.socketpair()
        self.front_end.settimeout(60)
        self.succeed()

    def succeed(self, note=None):
        """A new process serves the same socket."""
        self.server = self.make_server()
        self.stream = FrontEndStream(self.ours.dup(), self.server, 0, nowhere())
        if note is not None:
            self.stream.finish(note)

    def serve(self):
        """Handle all that has arrived."""
        while self.stream.serve():
            pass

    def close(self):
        self.stream.abandon()
        self.ours.close()
        self.front_end.close()


@pytest.fixture
def pair(make_server):
    pair = Pair(make_server)
    yield pair
    pair.close()


def test_a_message_is_answered_and_taken_off(pair):
    pair.front_end.send(GET_FEATURES)
    pair.serve()
    assert len(pair.front_end.recv(100)) == ANSWER_SIZE
    with pytest.raises(BlockingIOError):
        pair.ours.recv(1, socket.MSG_DONTWAIT)


@given(cuts=st.lists(st.integers(1, 30), max_size=12))
def test_messages_arrive_in_any_pieces(cuts):
    device = NotingDevice()
    state = bytearray(HEADER_SIZE + Server.state_size(device.num_queues))
    pair = Pair(lambda: Server(device, StateMemory(state)))
    try:
        data = GET_FEATURES * 3 + wire.message(wire.VHOST_USER_GET_QUEUE_NUM)
        for cut in [*cuts, len(data)]:
            pair.front_end.send(data[:cut])
            data = data[cut:]
            pair.serve()
        assert len(pair.front_end.recv(1000)) == 4 * ANSWER_SIZE
    finally:
        pair.close()


def test_descriptors_that_begin_with_another_message_are_nobodys(pair, device):
    ack = wire.message(wire.VHOST_USER_SET_PROTOCOL_FEATURES, wire.U64.pack(PROTOCOL_FEATURES))
    kick = wire.message(wire.VHOST_USER_SET_VRING_CALL, wire.U64.pack(4))
    socket.send_fds(pair.front_end, [ack + kick[:12]], [0])
    pair.front_end.send(kick[12:] + GET_FEATURES)
    with pytest.raises(PeerError, match="SET_VRING_CALL: queue 0x4 came without a descriptor"):
        pair.serve()


def test_a_descriptor_in_the_middle_of_a_message_is_its(pair, device):
    call = wire.message(wire.VHOST_USER_SET_VRING_CALL, wire.U64.pack(4))
    pair.front_end.send(call[:5])
    pair.serve()
    socket.send_fds(pair.front_end, [call[5:]], [0])
    pair.front_end.send(GET_FEATURES)
    pair.serve()
    assert len(device.descriptors) == 1
    assert len(pair.front_end.recv(100)) == ANSWER_SIZE


def test_descriptors_of_the_next_message_are_not_this_ones(pair, device):
    features = wire.message(wire.VHOST_USER_SET_PROTOCOL_FEATURES, wire.U64.pack(PROTOCOL_FEATURES))
    call = wire.message(wire.VHOST_USER_SET_VRING_CALL, wire.U64.pack(4))
    pair.front_end.send(features)
    socket.send_fds(pair.front_end, [call], [0])
    pair.front_end.send(features)
    socket.send_fds(pair.front_end, [call], [0])
    pair.front_end.send(GET_FEATURES)
    pair.serve()
    assert len(device.descriptors) == 1
    assert len(pair.front_end.recv(100)) == ANSWER_SIZE


def test_too_many_descriptors_end_the_connection(pair):
    socket.send_fds(pair.front_end, [wire.message(wire.VHOST_USER_SET_MEM_TABLE, bytes(8))], [0] * 33)
    with pytest.raises(PeerError, match="more than 32"):
        pair.serve()


def test_a_header_that_cannot_be_ends_it_before_its_payload_comes(pair):
    pair.front_end.send(wire.Header(1, 1, 1 << 31).pack())
    with pytest.raises(PeerError, match="bytes of payload"):
        pair.serve()


@pytest.mark.parametrize("sent", [b"", GET_FEATURES[:5], GET_FEATURES, GET_FEATURES + GET_FEATURES[:3]])
def test_the_end_is_seen_behind_the_last_message(pair, sent):
    pair.front_end.send(sent)
    pair.front_end.shutdown(socket.SHUT_WR)
    pair.serve()
    assert pair.stream.at_end


def test_a_front_end_that_does_not_read_makes_nobody_wait(pair):
    pair.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    served = 0
    pair.front_end.setblocking(False)
    while not pair.stream.wants_to_send and served < 100_000:
        pair.front_end.send(GET_FEATURES)
        pair.serve()
        served += 1
    assert pair.stream.wants_to_send
    pair.front_end.recv(1 << 20)
    pair.serve()
    assert not pair.stream.wants_to_send


def test_one_call_has_a_bound(pair, monkeypatch):
    monkeypatch.setattr("virtserial.vhost_user.stream.TURN_SECONDS", 0)
    pair.front_end.send(GET_FEATURES * 2)
    assert pair.stream.serve()
    assert pair.stream.serve()
    assert not pair.stream.serve()


# Killed


class KilledError(Exception):
    pass


@pytest.mark.parametrize("sent", range(ANSWER_SIZE + 1))
def test_killed_while_it_answers(pair, monkeypatch, sent):
    """The kernel had taken so many bytes of the reply."""
    pair.front_end.send(GET_FEATURES * 2)
    write = os.write

    def killed(fd, data):
        write(fd, data[:sent])
        raise KilledError

    monkeypatch.setattr(os, "write", killed)
    with pytest.raises(KilledError):
        pair.serve()
    monkeypatch.undo()
    pair.stream.abandon()
    pair.succeed(Note(REPLY, True, 0, 0, 0, sent))
    pair.serve()
    answers = pair.front_end.recv(1000)
    assert answers == answers[:ANSWER_SIZE] * 2


@pytest.mark.parametrize("taken", range(len(GET_FEATURES) + 1))
def test_killed_while_it_takes_the_message_off(pair, monkeypatch, taken):
    pair.front_end.send(GET_FEATURES * 2)

    def killed(fd, views):
        if taken:
            os.read(fd, taken)
        raise KilledError

    monkeypatch.setattr(os, "readv", killed)
    with pytest.raises(KilledError):
        pair.serve()
    monkeypatch.undo()
    pair.stream.abandon()
    pair.succeed(Note(CONSUME, True, 0, 0, len(GET_FEATURES), taken))
    pair.serve()
    answers = pair.front_end.recv(1000)
    assert answers == answers[:ANSWER_SIZE] * 2


def test_a_request_without_a_reply_is_not_applied_twice(pair, monkeypatch, device):
    pair.front_end.send(wire.message(wire.VHOST_USER_SET_PROTOCOL_FEATURES, wire.U64.pack(PROTOCOL_FEATURES)))
    pair.serve()
    pair.front_end.send(wire.message(wire.VHOST_USER_SET_CONFIG, wire.CONFIG.pack(8, 1, 0) + b"x"))
    monkeypatch.setattr(os, "readv", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pair.serve()
    monkeypatch.undo()
    pair.stream.abandon()
    pair.succeed()
    pair.serve()
    assert device.take_calls() == ["write_config"]
