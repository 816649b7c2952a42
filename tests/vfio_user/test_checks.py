"""Checks behind which another one stands: inputs that only the one in front refuses."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from support.served_device import build_server

from virtserial.errors import PeerError
from virtserial.vfio_user import wire
from virtserial.vfio_user.client import Client
from virtserial.vfio_user.negotiation import MAX_VERSION_DATA, Capabilities, encode
from virtserial.vfio_user.wire import HEADER_SIZE, Header


@pytest.fixture
def ask():
    """Send a request to a server that has agreed on the version; returns the errno of the reply."""
    server = build_server()

    def handle(command, body, fds=()):
        answer = server.handle(Header(7, command, HEADER_SIZE + len(body), 0, 0), body, list(fds))
        server.journal.record_consumed()
        return Header.unpack_from(answer).error

    handle(wire.VFIO_USER_VERSION, wire.Version(0, 0).pack() + encode({}))
    handle.server = server
    return handle


@pytest.mark.parametrize("offset", [0x800, 2**63, 2**63 - 0x1000])
def test_offset_into_a_file_that_is_read_and_written(ask, offset):
    fd = os.memfd_create("not sealed")
    body = wire.DmaMap(wire.DmaMap.FORMAT.size, 3, offset, 0, 0x1000).pack()
    assert ask(wire.VFIO_USER_DMA_MAP, body, [fd]) == errno.EINVAL
    assert len(ask.server.device.memory) == 0


def test_unknown_flag_without_a_range_unmaps_nothing(ask):
    assert ask(wire.VFIO_USER_DMA_MAP, wire.DmaMap(wire.DmaMap.FORMAT.size, 3, 0, 0, 0x1000).pack()) == 0
    body = wire.DmaUnmap(wire.DmaUnmap.FORMAT.size, 4, 0, 0).pack()
    assert ask(wire.VFIO_USER_DMA_UNMAP, body) == errno.EINVAL
    assert len(ask.server.device.memory) == 1


def test_many_writes_in_one_message_are_refused(ask):
    for count, error in ((wire.MAX_WRITES, 0), (wire.MAX_WRITES + 1, errno.EINVAL)):
        body = wire.WRITE_COUNT.pack(count) + wire.ONE_WRITE.pack(0x14, 4, 1, bytes(8)) * count
        assert ask(wire.VFIO_USER_REGION_WRITE_MULTI, body) == error


def test_version_data_that_ends_in_something_else():
    with pytest.raises(PeerError, match="does not end in NUL"):
        Capabilities.parse(b'{"capabilities":{}}x')


def test_version_data_that_is_long_and_well_formed():
    with pytest.raises(PeerError, match="at most 4096 are taken"):
        Capabilities.parse(b'{"capabilities":{}}'.ljust(MAX_VERSION_DATA) + b"\0")


@pytest.mark.parametrize(("size", "flags"), [(0, 1), (15, 1), (wire.MAX_MESSAGE_SIZE + 1, 1), (HEADER_SIZE, 2)])
def test_server_whose_message_cannot_be(size, flags):
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(Header(1, wire.VFIO_USER_VERSION, size, flags, 0).pack() + bytes(64))
        with pytest.raises(PeerError, match=rf"message of {size} bytes with flags {flags:#x}"):
            Client(ours, timeout=10)
