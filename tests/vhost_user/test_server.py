"""Requests in, replies out: what a front end can say, and what it must not."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.vhost_device import F_MULTIPORT, VERSION_1, NotingDevice

from virtserial.errors import PeerError
from virtserial.memory.state import HEADER_SIZE, StateMemory
from virtserial.vhost_user import wire
from virtserial.vhost_user.backend import CALL, KICK
from virtserial.vhost_user.server import PROTOCOL_FEATURES, Server
from virtserial.vhost_user.wire import Header, MemoryRegion, VringAddress, VringState
from virtserial.virtio.features import VIRTIO_F_RING_PACKED

REGION = MemoryRegion(0x100000, 0x200000, 0x7F0000000000, 0)
FEATURES = VERSION_1 | F_MULTIPORT | wire.VHOST_USER_F_PROTOCOL_FEATURES


def ask(server, request, payload=b"", fds=(), flags=0):
    """The payload of the reply, None if there is none."""
    given_fds = [os.dup(fd) for fd in fds]
    header = Header(request, wire.VERSION | flags, len(payload))
    answer = server.handle(header, payload, given_fds)
    assert given_fds == []
    if not answer:
        return None
    reply = wire.unpack_header(answer)
    assert (reply.request, reply.flags, reply.size) == (request, 5, len(answer) - wire.HEADER_SIZE)
    return answer[wire.HEADER_SIZE :]


def number(server, request, *arguments, **options):
    return wire.unpack_u64(ask(server, request, *arguments, **options))


def acked(server, request, payload=b"", fds=()):
    """Whether a request with need_reply was applied."""
    return number(server, request, payload, fds, wire.NEED_REPLY) == 0


def u64(value):
    return wire.U64.pack(value)


def vring(index, value):
    return wire.pack(VringState(index, value))


def addresses(index, user=REGION.user):
    return wire.pack(VringAddress(index, 0, user, user + 0x2000, user + 0x1000, 0))


def bring_up(server, features=FEATURES):
    ask(server, wire.VHOST_USER_SET_PROTOCOL_FEATURES, u64(PROTOCOL_FEATURES))
    ask(server, wire.VHOST_USER_SET_FEATURES, u64(features))
    ask(server, wire.VHOST_USER_SET_MEM_TABLE, wire.TABLE.pack(1, 0) + wire.pack(REGION), [0])


def start(server, *queues, base=None, size=128):
    for index in queues:
        ask(server, wire.VHOST_USER_SET_VRING_NUM, vring(index, size))
        if base is not None:
            ask(server, wire.VHOST_USER_SET_VRING_BASE, vring(index, base))
        ask(server, wire.VHOST_USER_SET_VRING_ADDR, addresses(index))
        ask(server, wire.VHOST_USER_SET_VRING_KICK, u64(index), [0])
        ask(server, wire.VHOST_USER_SET_VRING_ENABLE, vring(index, 1))


def stop(server, *queues):
    return [wire.unpack(VringState, ask(server, wire.VHOST_USER_GET_VRING_BASE, vring(index, 0))) for index in queues]


@pytest.fixture
def server(make_server):
    server = make_server()
    yield server
    server.disconnected()


# Negotiation


def test_features_are_the_devices_and_the_protocols(server):
    offered = number(server, wire.VHOST_USER_GET_FEATURES)
    assert offered == VERSION_1 | F_MULTIPORT | wire.VHOST_USER_F_PROTOCOL_FEATURES | wire.VHOST_F_LOG_ALL
    assert number(server, wire.VHOST_USER_GET_PROTOCOL_FEATURES) == PROTOCOL_FEATURES
    assert number(server, wire.VHOST_USER_GET_QUEUE_NUM) == 10


@pytest.mark.parametrize("request_", [wire.VHOST_USER_SET_FEATURES, wire.VHOST_USER_SET_PROTOCOL_FEATURES])
def test_a_feature_that_is_not_offered_is_refused(server, request_):
    with pytest.raises(PeerError, match="not offered"):
        ask(server, request_, u64(1 << 60))


@pytest.mark.parametrize(
    ("request_", "payload", "fds"),
    [
        (wire.VHOST_USER_GET_CONFIG, wire.CONFIG.pack(0, 4, 0) + bytes(4), 0),
        (wire.VHOST_USER_ADD_MEM_REG, wire.SLOT_PADDING + wire.pack(REGION), 1),
        (wire.VHOST_USER_SET_BACKEND_REQ_FD, b"", 1),
        (wire.VHOST_USER_RESET_DEVICE, b"", 0),
        (wire.VHOST_USER_SET_LOG_BASE, bytes(16), 1),
        (wire.VHOST_USER_CHECK_DEVICE_STATE, b"", 0),
    ],
)
def test_a_request_without_its_feature_is_refused(server, request_, payload, fds):
    with pytest.raises(PeerError, match="was not negotiated"):
        ask(server, request_, payload, [0] * fds)


# Messages that cannot be


@pytest.mark.parametrize(
    "header",
    [Header(1, 0, 0), Header(1, 2, 0), Header(1, 1 | wire.REPLY, 0), Header(1, 1, wire.MAX_PAYLOAD + 1)],
)
def test_a_header_that_cannot_be_ends_the_connection(server, header):
    with pytest.raises(PeerError):
        server.check_header(header)


def test_an_unknown_request_is_refused_and_with_need_reply_the_connection_stays(server):
    bring_up(server)
    with pytest.raises(PeerError, match="request 99: not known here"):
        ask(server, 99)
    assert not acked(server, 99)
    assert acked(server, wire.VHOST_USER_SET_OWNER)


def test_need_reply_counts_only_with_reply_ack(server):
    assert ask(server, wire.VHOST_USER_SET_OWNER, flags=wire.NEED_REPLY) is None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_descriptors_that_belong_to_no_request_are_closed(server, count):
    with pytest.raises(PeerError, match="descriptors came with it"):
        ask(server, wire.VHOST_USER_GET_FEATURES, fds=[0] * count)


# Queues


@pytest.mark.parametrize("size", [3, 2048, 65535])
def test_a_queues_size_is_a_power_of_2_within_the_limit(server, size):
    bring_up(server)
    assert not acked(server, wire.VHOST_USER_SET_VRING_NUM, vring(1, size))


def test_a_queue_of_size_0_is_one_that_the_driver_has_not_set_up(server, device):
    bring_up(server)
    start(server, 2, 3)
    start(server, 4, size=0)
    assert set(device.places) == {2, 3}


@pytest.mark.parametrize("index", [10, 255, 1 << 31])
def test_there_is_no_queue_beyond_the_devices(server, index):
    bring_up(server)
    assert not acked(server, wire.VHOST_USER_SET_VRING_NUM, vring(index, 128))
    assert not acked(server, wire.VHOST_USER_SET_VRING_BASE, vring(index, 1))
    assert not acked(server, wire.VHOST_USER_SET_VRING_ENABLE, vring(index, 1))
    with pytest.raises(PeerError, match="the device has 10"):
        ask(server, wire.VHOST_USER_GET_VRING_BASE, vring(index, 0))


def test_a_ring_outside_of_memory_is_refused(server):
    bring_up(server)
    assert not acked(server, wire.VHOST_USER_SET_VRING_ADDR, addresses(0, REGION.user + REGION.size))
    assert not acked(server, wire.VHOST_USER_SET_VRING_ADDR, addresses(0, REGION.guest))


def test_rings_are_at_guest_addresses(server, device):
    bring_up(server)
    start(server, 2, 3, base=7)
    ring = next(call[2] for call in device.calls if call[:2] == ("start_ring", 3))
    assert ring == (128, REGION.guest, REGION.guest + 0x1000, REGION.guest + 0x2000, 7)


def test_the_device_runs_when_the_queues_that_it_needs_do(server, device):
    bring_up(server)
    device.take_calls()
    start(server, 0, 1, 2)
    assert device.take_calls() == []
    start(server, 3)
    assert device.take_calls() == ["set_up", *["start_ring"] * 4, "run"]
    start(server, 4)
    assert device.take_calls() == ["start_ring", "run"]


def test_without_multiport_any_queue_runs(server, device):
    bring_up(server, FEATURES & ~F_MULTIPORT)
    start(server, 0)
    assert device.places == {0: 0}


def test_without_protocol_features_rings_need_not_be_enabled(server, device):
    ask(server, wire.VHOST_USER_SET_FEATURES, u64(VERSION_1))
    ask(server, wire.VHOST_USER_SET_MEM_TABLE, wire.TABLE.pack(1, 0) + wire.pack(REGION), [0])
    ask(server, wire.VHOST_USER_SET_VRING_NUM, vring(0, 8))
    ask(server, wire.VHOST_USER_SET_VRING_ADDR, addresses(0))
    assert device.places == {}
    ask(server, wire.VHOST_USER_SET_VRING_KICK, u64(0), [0])
    assert device.places == {0: 0}


def test_a_stopped_ring_tells_where_it_stands_and_keeps_the_offset(server, device):
    bring_up(server)
    start(server, 2, 3)
    device.places[2] = 5 << 16 | 40
    assert stop(server, 2) == [(2, 40)]
    assert stop(server, 2) == [(2, 40)]
    start(server, 2, base=40)
    assert device.places[2] == 5 << 16 | 40


def test_rings_that_start_where_they_stopped_go_on(server, device):
    bring_up(server)
    start(server, 2, 3, 4)
    device.places.update({2: 12, 3: 9})
    stop(server, 2, 3, 4)
    assert device.take_calls()[-1] == "stop_ring"
    start(server, 2, base=12)
    start(server, 3, base=9)
    assert ("set_up", False) in device.calls


@pytest.mark.parametrize("moved", [2, 3])
def test_a_ring_that_starts_elsewhere_makes_the_device_begin_anew(server, device, moved):
    bring_up(server)
    start(server, 2, 3)
    device.places.update({2: 12, 3: 9})
    stop(server, 2, 3)
    device.take_calls()
    start(server, 2, base=0 if moved == 2 else 12)
    start(server, 3, base=0 if moved == 3 else 9)
    assert ("set_up", True) in device.calls
    assert device.places[moved] == 0


def test_other_features_make_it_begin_anew(server, device):
    bring_up(server)
    start(server, 2, 3)
    device.places.update({2: 12, 3: 9})
    stop(server, 2, 3)
    ask(server, wire.VHOST_USER_SET_FEATURES, u64(FEATURES & ~F_MULTIPORT))
    device.calls.clear()
    start(server, 3, base=9)
    assert ("set_up", True) in device.calls


def test_a_reset_makes_it_begin_anew_and_disables_all(server, device):
    bring_up(server)
    start(server, 2, 3)
    ask(server, wire.VHOST_USER_RESET_DEVICE)
    assert device.places == {}
    device.calls.clear()
    start(server, 2, 3)
    assert ("set_up", True) in device.calls


def test_a_disabled_ring_goes_on_when_it_is_enabled(server, device):
    bring_up(server)
    start(server, 2, 3, 5)
    device.places[5] = 33
    ask(server, wire.VHOST_USER_SET_VRING_ENABLE, vring(5, 0))
    assert 5 not in device.places
    ask(server, wire.VHOST_USER_SET_VRING_ENABLE, vring(5, 1))
    assert device.places[5] == 33
    assert ("stand_still",) not in device.calls


def test_what_a_running_ring_rests_on_does_not_change(server):
    bring_up(server)
    start(server, 2, 3)
    assert not acked(server, wire.VHOST_USER_SET_VRING_NUM, vring(2, 64))
    assert not acked(server, wire.VHOST_USER_SET_VRING_BASE, vring(2, 1))
    assert not acked(server, wire.VHOST_USER_SET_VRING_ADDR, addresses(2, REGION.user + 0x10000))
    assert not acked(server, wire.VHOST_USER_SET_FEATURES, u64(FEATURES & ~F_MULTIPORT))
    assert acked(server, wire.VHOST_USER_SET_VRING_ADDR, addresses(2))
    assert acked(server, wire.VHOST_USER_SET_FEATURES, u64(FEATURES | wire.VHOST_F_LOG_ALL))


def test_a_packed_ring_stands_at_two_positions(server, device):
    device.features = FEATURES | VIRTIO_F_RING_PACKED
    bring_up(server, device.features)
    assert acked(server, wire.VHOST_USER_SET_VRING_NUM, vring(4, 100))
    start(server, 2, 3, base=0x80078005)
    assert device.places[3] == 0x8007
    device.places[2] = 5 << 16 | 0x2A
    assert stop(server, 2) == [(2, 0x2A002A)]
    start(server, 2, base=0x2A002A)
    assert device.places[2] == 5 << 16 | 0x2A


def test_the_status_is_kept_and_only_a_device_that_runs_is_reset_by_it(server, device):
    bring_up(server)
    assert number(server, wire.VHOST_USER_GET_STATUS) == 0
    start(server, 2, 3)
    assert acked(server, wire.VHOST_USER_SET_STATUS, u64(0xF))
    assert number(server, wire.VHOST_USER_GET_STATUS) == 0xF
    device.needs_reset = True
    assert number(server, wire.VHOST_USER_GET_STATUS) == 0x4F
    device.places.update({2: 12, 3: 9})
    stop(server, 2, 3)
    assert acked(server, wire.VHOST_USER_SET_STATUS, u64(0))
    start(server, 2, base=12)
    start(server, 3, base=9)
    assert ("set_up", False) in device.calls
    assert ("reset",) not in device.calls
    assert acked(server, wire.VHOST_USER_SET_STATUS, u64(0))
    assert device.calls[-1] == ("reset",)
    assert device.places == {}


@pytest.mark.parametrize("value", [0x100, 0x200, 0x101])
def test_a_kick_needs_its_descriptor(server, value):
    bring_up(server)
    assert not acked(server, wire.VHOST_USER_SET_VRING_KICK, u64(value))
    assert not acked(server, wire.VHOST_USER_SET_VRING_KICK, u64(value), [0])


def test_interrupts_need_none(server, device):
    bring_up(server)
    assert acked(server, wire.VHOST_USER_SET_VRING_CALL, u64(3), [0])
    assert len(device.descriptors) == 1
    assert acked(server, wire.VHOST_USER_SET_VRING_CALL, u64(0x103))
    assert device.descriptors == {}


def test_a_queue_behind_the_256th_has_its_whole_number_beside_its_descriptor(device):
    device.num_queues = 400
    server = Server(device, StateMemory(bytearray(HEADER_SIZE + Server.state_size(400))))
    bring_up(server)
    start(server, 2, 3, 0x123)
    assert set(device.places) == {2, 3, 0x123}
    assert acked(server, wire.VHOST_USER_SET_VRING_CALL, u64(0x123), [0])
    assert set(device.descriptors) == {(KICK, 2), (KICK, 3), (KICK, 0x123), (CALL, 0x123)}
    assert acked(server, wire.VHOST_USER_SET_VRING_KICK, u64(2), [0])
    server.disconnected()


# Configuration, log and state


def test_the_log_is_answered_with_what_was_asked(server):
    bring_up(server)
    log = wire.pack(wire.Log(4096, 0))
    assert ask(server, wire.VHOST_USER_SET_LOG_BASE, log, [0]) == log


def test_configuration_is_read_and_written(server, device):
    bring_up(server)
    device.config[:] = bytes(range(12))
    asked = wire.CONFIG.pack(8, 8, 0) + bytes(8)
    assert ask(server, wire.VHOST_USER_GET_CONFIG, asked)[12:] == bytes((8, 9, 10, 11, 0, 0, 0, 0))
    assert acked(server, wire.VHOST_USER_SET_CONFIG, wire.CONFIG.pack(8, 1, 0) + b"x")
    assert acked(server, wire.VHOST_USER_SET_CONFIG, wire.CONFIG.pack(8, 1, 1) + b"y")
    assert [call for call in device.calls if call[0] == "write_config"] == [
        ("write_config", 8, b"x"), ("write_config", 8, b"y"),
    ]  # fmt: skip
    behind = wire.CONFIG.pack(4000, 4, 0) + bytes(4)
    assert ask(server, wire.VHOST_USER_GET_CONFIG, behind) == behind


@pytest.mark.parametrize(("offset", "length", "flags", "data"), [(0, 8, 0, 4), (0, 257, 0, 257), (0, 4, 0, 5)])
def test_a_range_that_cannot_be_is_refused(server, offset, length, flags, data):
    bring_up(server)
    assert not acked(server, wire.VHOST_USER_SET_CONFIG, wire.CONFIG.pack(offset, length, flags) + bytes(data))


def test_a_state_moves_only_while_the_device_stands_still(server, device):
    bring_up(server)
    start(server, 2, 3)
    moved = wire.pack(wire.Transfer(0, 0))
    assert number(server, wire.VHOST_USER_SET_DEVICE_STATE_FD, moved, [0]) == 0x101
    stop(server, 2, 3)
    assert number(server, wire.VHOST_USER_SET_DEVICE_STATE_FD, moved, [0]) == 0x100
    assert number(server, wire.VHOST_USER_CHECK_DEVICE_STATE) == 0


def test_a_loaded_state_goes_on_where_it_was_saved(server, device):
    bring_up(server)
    device.state = {2: 12, 3: 9 << 16 | 8}
    device.driver_features = VERSION_1 | F_MULTIPORT
    assert number(server, wire.VHOST_USER_SET_DEVICE_STATE_FD, wire.pack(wire.Transfer(1, 0)), [0]) == 0x100
    assert number(server, wire.VHOST_USER_CHECK_DEVICE_STATE) == 0
    start(server, 2, base=12)
    start(server, 3, base=8)
    assert ("set_up", False) in device.calls
    assert device.places == {2: 12, 3: 9 << 16 | 8}


# A successor


def test_a_successor_goes_on(server, make_server, device):
    bring_up(server)
    start(server, 2, 3)
    successor = make_server()
    device.places[2] = 77
    assert stop(successor, 2) == [(2, 77)]
    start(successor, 4)
    assert acked(successor, wire.VHOST_USER_SET_VRING_ADDR, addresses(4))


@pytest.mark.parametrize("after", ["progress", "stop_ring", "start_ring", "set_up"])
def test_a_request_that_a_predecessor_was_killed_over_can_be_applied_again(server, make_server, device, after):
    bring_up(server)
    start(server, 2, 3)
    device.places.update({2: 12, 3: 9})

    class KilledError(Exception):
        pass

    done = getattr(device, after)

    def killed(*arguments, **options):
        done(*arguments, **options)
        raise KilledError

    device_type = type(device)
    setattr(device, after, killed)
    with pytest.raises(KilledError):
        stop(server, 2)
        device.places.pop(2, None)
        start(server, 2, base=12)
    setattr(device, after, lambda *arguments, **options: getattr(device_type, after)(device, *arguments, **options))
    successor = make_server()
    device_start, device.start_ring = device.start_ring, lambda index, ring: (device.places.pop(index, 0),
                                                                             device_start(index, ring))
    assert stop(successor, 2) == [(2, 12)]
    start(successor, 2, base=12)
    assert device.places == {2: 12, 3: 9}


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("saekbxd")), max_size=60))
def test_rings_run_if_and_only_if_all_is_said(steps):
    """Against a model: what is said in any order."""
    device = NotingDevice()
    server = Server(device, StateMemory(bytearray(HEADER_SIZE + Server.state_size(device.num_queues))))
    bring_up(server)
    said = {index: set() for index in range(10)}
    for index, what in steps:
        if what == "s":
            acked(server, wire.VHOST_USER_SET_VRING_NUM, vring(index, 128))
        elif what == "a":
            acked(server, wire.VHOST_USER_SET_VRING_ADDR, addresses(index))
        elif what == "k":
            acked(server, wire.VHOST_USER_SET_VRING_KICK, u64(index), [0])
        elif what in "ed":
            acked(server, wire.VHOST_USER_SET_VRING_ENABLE, vring(index, int(what == "e")))
            said[index].discard("e")
        elif what == "b":
            acked(server, wire.VHOST_USER_SET_VRING_BASE, vring(index, 3))
        else:
            stop(server, index)
            said[index].discard("k")
        if what in "saek":
            said[index].add(what)
        running = {each for each, words in said.items() if words == set("saek")}
        assert {each for each, vring_ in enumerate(server.vrings) if vring_.running} == running
        assert bool(server.session.live) == ({2, 3} <= running)
        if server.session.live:
            assert set(device.places) == running
        assert set(device.places) <= running | {each for each in device.places if not server.session.live}
    server.disconnected()
    assert device.places == {}
    device.close()
