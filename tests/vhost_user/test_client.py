"""Our front end with our back end, and with one that lies."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import pytest

from virtserial.accounting import nowhere
from virtserial.errors import PeerError
from virtserial.vhost_user import wire
from virtserial.vhost_user.client import FrontEnd
from virtserial.vhost_user.stream import FrontEndStream
from virtserial.vhost_user.wire import MemoryRegion

REGION = MemoryRegion(0x100000, 0x200000, 0x7F0000000000, 0)


@pytest.fixture
def front_end(make_server):
    theirs, ours = socket.socketpair()
    server = make_server()
    stream = FrontEndStream(ours, server, 0, nowhere())

    def serve():
        while not stream.at_end:
            with contextlib.suppress(PeerError):
                stream.serve()

    thread = threading.Thread(target=serve)
    thread.start()
    front_end = FrontEnd(theirs)
    yield front_end
    front_end.close()
    thread.join()
    stream.abandon()
    server.disconnected()


def test_memory_queues_and_configuration(front_end, device):
    device.config[4] = 31
    assert front_end.get_config(4, 4) == bytes((31, 0, 0, 0))
    front_end.set(wire.VHOST_USER_SET_FEATURES, wire.U64.pack(device.features | wire.VHOST_USER_F_PROTOCOL_FEATURES))
    front_end.set_table([REGION], [0])
    front_end.remove_region(REGION)
    front_end.add_region(REGION, 0)
    for index in (2, 3):
        front_end.set_vring(wire.VHOST_USER_SET_VRING_NUM, index, 64)
        front_end.set(
            wire.VHOST_USER_SET_VRING_ADDR,
            wire.pack(wire.VringAddress(index, 0, REGION.user, REGION.user, REGION.user, 0)),
        )
        front_end.set_vring_descriptor(wire.VHOST_USER_SET_VRING_KICK, index, 0)
        front_end.set_vring_descriptor(wire.VHOST_USER_SET_VRING_CALL, index, -1)
        front_end.set_vring(wire.VHOST_USER_SET_VRING_ENABLE, index, 1)
    device.places[3] = 17
    assert front_end.stop_vring(3) == 17
    front_end.set_config(8, b"x")
    assert device.calls[-1] == ("write_config", 8, b"x")


def test_a_refusal_is_an_error_and_the_connection_stays(front_end):
    with pytest.raises(PeerError, match="refuses VHOST_USER_SET_VRING_NUM"):
        front_end.set_vring(wire.VHOST_USER_SET_VRING_NUM, 2, 3)
    assert front_end.get(wire.VHOST_USER_GET_QUEUE_NUM) == 10


GOOD = [
    wire.message(wire.VHOST_USER_GET_FEATURES, wire.U64.pack(wire.VHOST_USER_F_PROTOCOL_FEATURES), wire.REPLY),
    wire.message(wire.VHOST_USER_GET_PROTOCOL_FEATURES, bytes(8), wire.REPLY),
    wire.message(wire.VHOST_USER_GET_VRING_BASE, wire.pack(wire.VringState(1, 7)), wire.REPLY),
    wire.message(wire.VHOST_USER_GET_CONFIG, wire.CONFIG.pack(0, 4, 0) + b"abcd", wire.REPLY),
]


def converse(answers):
    """What our front end makes of a back end's answers."""
    theirs, ours = socket.socketpair()
    ours.sendall(b"".join(answers))
    ours.shutdown(socket.SHUT_WR)
    try:
        front_end = FrontEnd(theirs, timeout=5)
        return front_end.stop_vring(1), front_end.get_config(0, 4)
    finally:
        theirs.close()
        ours.close()


def test_good_answers_are_taken():
    assert converse(GOOD) == (7, b"abcd")


@pytest.mark.parametrize(
    ("place", "answer"),
    [
        (0, b""),
        (0, GOOD[1]),
        (0, wire.message(1, wire.U64.pack(1 << 30))),
        (0, wire.message(1, bytes(4), wire.REPLY)),
        (0, wire.message(1, bytes(8), wire.REPLY)),
        (0, wire.Header(1, 5, wire.MAX_PAYLOAD + 1).pack() + wire.U64.pack(1 << 30) + bytes(wire.MAX_PAYLOAD - 7)),
        (2, wire.message(11, wire.pack(wire.VringState(2, 7)), wire.REPLY)),
        (2, wire.message(11, bytes(4), wire.REPLY)),
        (3, wire.message(24, b"", wire.REPLY)),
        (3, wire.message(24, wire.CONFIG.pack(4, 4, 0) + b"abcd", wire.REPLY)),
        (3, wire.message(24, wire.CONFIG.pack(0, 4, 0) + b"abcde", wire.REPLY)),
    ],
)
def test_a_back_end_that_lies_is_an_error(place, answer):
    with pytest.raises(PeerError):
        converse([*GOOD[:place], answer, *GOOD[place + 1 :]])


def test_descriptors_in_an_answer_are_closed():
    theirs, ours = socket.socketpair()
    socket.send_fds(ours, [wire.message(1, wire.U64.pack(1 << 30), wire.REPLY)], [0])
    ours.close()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PeerError):
        FrontEnd(theirs, timeout=5)
    assert len(os.listdir("/proc/self/fd")) < before


def test_nobody_listens(folder):
    with pytest.raises(OSError, match="No such file"):
        FrontEnd(folder / "none")
