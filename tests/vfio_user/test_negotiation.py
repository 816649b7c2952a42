"""VFIO_USER_VERSION, one fault per test."""

from __future__ import annotations

import json

import pytest
from support.served_device import build_server, handle, message, region_read, version

from virtserial.errors import PeerError
from virtserial.vfio_user import wire
from virtserial.vfio_user.negotiation import Capabilities

QEMU_DATA = (
    b'{"capabilities": {"migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "max_msg_fds": 16, '
    b'"max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 65535, "write_multiple": true}}\0'
)


def reply_data(server, data):
    errno, payload = handle(server, version(data))
    assert errno == 0
    assert payload[:4] == bytes(4)
    return payload[4:]


def test_qemus_request_gets_a_shorter_reply_with_our_limits():
    data = reply_data(build_server(), QEMU_DATA)
    assert len(data) <= len(QEMU_DATA)
    assert data.endswith(b"\0")
    assert json.loads(data[:-1]) == {
        "capabilities": {
            "max_msg_fds": 16,
            "max_data_xfer_size": 65536,
            "pgsizes": 4096,
            "max_dma_maps": 8192,
            "write_multiple": True,
        }
    }


def test_capabilities_are_a_subset_of_those_proposed():
    data = reply_data(build_server(), b'{"capabilities":{"max_msg_fds":4}}      \0')
    assert json.loads(data[:-1]) == {"capabilities": {"max_msg_fds": 16}}


def test_a_reply_that_would_be_too_long_leaves_capabilities_out():
    asked = b'{"capabilities":{"max_data_xfer_size":1,"pgsizes":1,"max_msg_fds":1}}\0'
    data = reply_data(build_server(), asked)
    assert len(data) <= len(asked)
    assert json.loads(data[:-1]) == {"capabilities": {"max_data_xfer_size": 65536, "max_msg_fds": 16}}


@pytest.mark.parametrize(("asked", "answer"), [(b"", b""), (b"{}\0", b""), (b'{"capabilities":{}}\0', None)])
def test_no_capabilities(asked, answer):
    data = reply_data(build_server(), asked)
    assert data == (b'{"capabilities":{}}\0' if answer is None else answer)


def test_a_smaller_transfer_size_of_the_client_counts():
    server = build_server()
    handle(server, version(b'{"capabilities":{"max_data_xfer_size":4096}}\0'))
    assert server.session.max_data_xfer_size == 4096


def test_unknown_members_are_ignored():
    data = b'{"capabilities":{"wings":2,"twin_socket":{"supported":true}},"x":[]}\0'
    assert handle(build_server(), version(data))[0] == 0


@pytest.mark.parametrize(
    "data",
    [
        b'{"capabilities":{}}',
        b"\0",
        b"nonsense\0",
        b"{\0",
        b"[]\0",
        b"7\0",
        b"\xff\xfe\0",
        b'{"capabilities":[]}\0',
        b'{"capabilities":{}}\0\0',
        b'{"capabilities":{"max_msg_fds":"16"}}\0',
        b'{"capabilities":{"max_msg_fds":true}}\0',
        b'{"capabilities":{"max_msg_fds":0}}\0',
        b'{"capabilities":{"max_data_xfer_size":-1}}\0',
        b'{"capabilities":{"max_data_xfer_size":1e3}}\0',
        b"[" * 2000 + b"]" * 2000 + b"\0",
        b"{" * 65520 + b"\0",
        b'{"a":' * 4000 + b"\0",
    ],
    ids=lambda data: repr(bytes(data[:40])),
)
def test_bad_version_data_is_refused(data):
    server = build_server()
    assert handle(server, version(data)) == (22, b"")
    assert not server.negotiated
    assert server.refusals == 1


def test_another_major_version_is_refused():
    server = build_server()
    assert handle(server, message(wire.VFIO_USER_VERSION, wire.Version(1, 0).pack() + b"{}\0"))[0] == 22
    assert "0.0 is spoken here" in server.last_refusal


def test_a_newer_minor_version_gets_ours():
    payload = wire.Version(0, 9).pack() + b'{"capabilities":{}}\0'
    assert handle(build_server(), message(wire.VFIO_USER_VERSION, payload))[1][:4] == bytes(4)


@pytest.mark.parametrize("length", [0, 3])
def test_a_short_version_is_refused(length):
    assert handle(build_server(), message(wire.VFIO_USER_VERSION, bytes(length)))[0] == 22


def test_a_second_version_is_refused(server):
    assert handle(server, version())[0] == 22


def test_after_a_refusal_another_try_is_welcome():
    server = build_server()
    handle(server, version(b"no\0"))
    assert handle(server, version())[0] == 0


@pytest.mark.parametrize("command", [2, 4, 9, 13, 99])
def test_a_command_before_version_ends_the_stream(command):
    with pytest.raises(PeerError, match="before VFIO_USER_VERSION"):
        handle(build_server(), message(command))


def test_after_the_client_left_the_next_one_must_negotiate(server):
    server.disconnected()
    with pytest.raises(PeerError, match="before VFIO_USER_VERSION"):
        handle(server, region_read(7, 0, 4))


def test_a_peer_without_version_data_has_the_defaults():
    peer = Capabilities.parse(b"")
    assert (peer.max_msg_fds, peer.max_data_xfer_size, peer.write_multiple, peer.names) == (1, 1 << 20, False, set())
