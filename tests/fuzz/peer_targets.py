"""What a VMM can send to our server, and a server to our client."""

from __future__ import annotations

import os
import socket
import struct
from itertools import pairwise

from fuzz.any_bytes import AnyBytes
from support.message_batches import handle_batch
from support.served_device import build_server

from virtserial.errors import PeerError
from virtserial.memory.table import MAX_REGIONS
from virtserial.vfio_user import wire
from virtserial.vfio_user.client import Client
from virtserial.vfio_user.negotiation import Capabilities, encode
from virtserial.vfio_user.wire import HEADER_SIZE, MAX_MESSAGE_SIZE, Header

VERSION = wire.request(1, 1, wire.Version(0, 0).pack() + encode({"max_msg_fds": 16}))


def _check_replies(replies):
    for each in replies:
        header = Header.unpack_from(each)
        assert header.size == len(each) <= MAX_MESSAGE_SIZE
        assert header.flags in (wire.VFIO_USER_REPLY, wire.VFIO_USER_REPLY | wire.VFIO_USER_ERROR)
        assert (header.error != 0) == bool(header.flags & wire.VFIO_USER_ERROR)


def vfio_stream(data):
    """A stream of bytes behind a good VERSION, in two pieces."""
    server = build_server()
    whole = VERSION + data
    try:
        cut = len(whole) // 2
        taken, replies = handle_batch(server, whole, cut)
        assert taken <= cut
        _check_replies(replies)
        rest = whole[taken:]
        taken, replies = handle_batch(server, rest, len(rest))
        assert taken <= len(rest)
        _check_replies(replies)
    except PeerError:
        pass
    server.disconnected()
    assert len(server.device.memory) == 0


def _check_regions(memory):
    assert len(memory) <= min(MAX_REGIONS, 64)
    assert all(one.iova + one.size <= other.iova for one, other in pairwise(memory))


def vfio_requests(data):
    """Whole messages with right headers, some with descriptors: bodies are the fuzzer's."""
    source = AnyBytes(data)
    server = build_server()
    server.handle(Header.unpack_from(VERSION), VERSION[HEADER_SIZE:], [])
    before = len(os.listdir("/proc/self/fd"))
    try:
        for _ in range(64):
            if not source.left():
                break
            command, how, length = source.u8() % 20, source.u8(), source.u8()
            body = source.take(length)
            if how & 1:
                # argsz as large as the body, so that what is behind it is looked at.
                body = len(body).to_bytes(4, "little") + body[4:]
            fds = [os.memfd_create("fuzz", 3) for _ in range(how >> 6)]
            for fd in fds:
                os.ftruncate(fd, 8192)
            posted = wire.VFIO_USER_NO_REPLY if how & 2 else 0
            header = Header(source.u16(), command, HEADER_SIZE + len(body), posted, 0)
            answer = server.handle(header, body, fds)
            assert fds == []
            assert (answer is None) == bool(posted)
            if answer is not None:
                _check_replies([answer])
                refused = Header.unpack_from(answer).flags & wire.VFIO_USER_ERROR
                if command == wire.VFIO_USER_REGION_READ and not refused:
                    (count,) = struct.unpack_from("<I", body, 12)
                    assert len(answer) == HEADER_SIZE + 16 + count
                elif command == wire.VFIO_USER_REGION_WRITE and not refused:
                    assert body[12:16] == (len(body) - 16).to_bytes(4, "little")
                server.journal.record_consumed()
            _check_regions(server.device.memory)
    except PeerError:
        pass
    server.disconnected()
    assert len(os.listdir("/proc/self/fd")) <= before, "descriptors stay open"


def vfio_version(data):
    """The JSON of a VERSION message."""
    try:
        agreed = Capabilities.parse(data)
    except PeerError:
        return
    assert agreed.max_msg_fds > 0
    assert agreed.max_data_xfer_size > 0


def vfio_client(data):
    """A server's answers to our client."""
    source = AnyBytes(data)
    ours, theirs = socket.socketpair()
    try:
        # The client's requests are known beforehand: ids count from 1.
        version = wire.Version(0, 0).pack() + (encode({"max_msg_fds": 4}) if source.u8() & 1 else source.take(60))
        answers = [wire.reply(Header(1, 1, 0, 0, 0), version)]
        info = wire.DeviceInfo(16, 3, source.u8(), source.u8() % 8).pack()
        answers.append(wire.reply(Header(2, 4, 0, 0, 0), info if source.u8() & 3 else source.take(20)))
        for number, command in ((3, 5), (4, 7), (5, 9)):
            body = source.take(source.u8() % 64)
            header = Header(number if source.u8() & 7 else source.u16(), command, 0, 0, 0)
            answers.append(wire.reply(header, body))
        theirs.sendall(b"".join(answers) + source.rest()[:65536])
        theirs.shutdown(socket.SHUT_WR)
        with Client(ours, timeout=0.5) as client:
            client.region_info(7)
            client.irq_info(2)
            assert len(client.region_read(7, 0, 4)) == 4
    except PeerError:
        return
    finally:
        ours.close()
        theirs.close()
