"""What a vhost-user front end can send to our server, and a back end to our front end."""

from __future__ import annotations

import os
import socket

from fuzz.any_bytes import AnyBytes
from support.vhost_device import NotingDevice

from virtserial.errors import PeerError
from virtserial.memory.state import HEADER_SIZE, StateMemory
from virtserial.vhost_user import wire
from virtserial.vhost_user.client import FrontEnd
from virtserial.vhost_user.server import PROTOCOL_FEATURES, Server
from virtserial.vhost_user.wire import MAX_REPLY, MAX_SLOTS, Header, MemoryRegion

FEATURES = NotingDevice.features | wire.VHOST_USER_F_PROTOCOL_FEATURES
REGION = MemoryRegion(0x1000, 0x10000, 0x5000, 0)
REQUESTS = sorted(wire.REQUEST_NAMES)


def vhost_requests(data):
    """Whole messages with right headers, behind a front end that has agreed on all: payloads are the fuzzer's."""
    source = AnyBytes(data)
    device = NotingDevice()
    server = Server(device, StateMemory(bytearray(HEADER_SIZE + Server.state_size(device.num_queues))))
    before = len(os.listdir("/proc/self/fd"))
    for request, payload, fds in (
        (wire.VHOST_USER_SET_PROTOCOL_FEATURES, wire.U64.pack(PROTOCOL_FEATURES), []),
        (wire.VHOST_USER_SET_FEATURES, wire.U64.pack(FEATURES), []),
        (wire.VHOST_USER_SET_MEM_TABLE, wire.TABLE.pack(1, 0) + wire.pack(REGION), [os.dup(0)]),
    ):
        server.handle(Header(request, wire.VERSION, len(payload)), payload, fds)
    try:
        for _ in range(64):
            if not source.left():
                break
            which, how = source.u8(), source.u8()
            request = REQUESTS[which % len(REQUESTS)] if which < 240 else which
            payload = source.take(source.u8())
            fds = [os.dup(0) for _ in range(how >> 5)]
            flags = wire.VERSION | (0 if how & 1 else wire.NEED_REPLY)
            answer = server.handle(Header(request, flags, len(payload)), payload, fds)
            assert fds == []
            _check_answer(request, answer)
            _check_device(server, device)
    except PeerError:
        pass
    server.disconnected()
    assert not device.places
    assert not device.memory
    device.close()
    assert len(os.listdir("/proc/self/fd")) <= before, "descriptors stay open"


def _check_answer(request, answer):
    assert len(answer) <= MAX_REPLY
    if answer:
        header = wire.unpack_header(answer)
        assert header == (request, wire.VERSION | wire.REPLY, len(answer) - wire.HEADER_SIZE)


def _check_device(server, device):
    assert len(server.regions) == len(device.memory) <= MAX_SLOTS
    assert {index for index, vring in enumerate(server.vrings) if vring.given} == set(device.places)
    if server.session.live:
        for index in device.places:
            assert server.vrings[index].running
            assert 0 < server.vrings[index].size <= device.max_queue_size


def vhost_client(data):
    """A back end's answers to our front end."""
    source = AnyBytes(data)
    ours, theirs = socket.socketpair()
    try:
        for request in (wire.VHOST_USER_GET_FEATURES, wire.VHOST_USER_GET_PROTOCOL_FEATURES):
            number = (1 << 64) - 1 if source.u8() & 3 else source.u64()
            theirs.sendall(wire.message(request, wire.U64.pack(number), wire.REPLY))
        for request in (wire.VHOST_USER_GET_CONFIG, wire.VHOST_USER_GET_VRING_BASE, wire.VHOST_USER_SET_CONFIG):
            theirs.sendall(wire.message(request, source.take(source.u8() % 64), wire.REPLY))
        theirs.sendall(source.rest())
        theirs.shutdown(socket.SHUT_WR)
        with_front_end = FrontEnd(ours, timeout=0.5)
        assert len(with_front_end.get_config(0, 12)) == 12
        assert with_front_end.stop_vring(1) < 1 << 32
        with_front_end.set_config(8, b"x")
    except PeerError:
        return
    finally:
        ours.close()
        theirs.close()
