"""The device side of a split virtqueue, with drivers that keep the rules."""

import random

import pytest
from support.ring_builder import BASE, NO_INTERRUPT, PAGE, WRITE, RingBuilder, join, unsignalled

from virtserial.errors import AddressError, DriverError
from virtserial.memory.state import StateMemory
from virtserial.memory.table import MemoryTable
from virtserial.virtio.queue import Virtqueue
from virtserial.virtio.ring.chains import MAX_CHAIN_LENGTH
from virtserial.virtio.ring.device_ring import DETACHED
from virtserial.virtio.ring.record import QueueRecord
from virtserial.virtio.ring.split.access import MappedRing, RemoteRing

EVERYTHING = 1 << 20


def content(batch):
    return b"".join(bytes(view) for view in batch.views)


def fill(house, batch, data):
    """Write `data` into a batch as a host end's readv does."""
    left = data
    for view in batch.views:
        view[: len(left)] = left[: len(view)]
        left = left[len(view) :]
    house.queue.ring.store(batch, len(data))


def test_mapped_memory_gets_views_and_the_others_do_not(house):
    expected = MappedRing if house.memory.kind == "mapped" else RemoteRing
    assert type(house.queue.ring._access) is expected


def test_an_empty_queue_gives_nothing(house):
    batch = house.queue.ring.readable_chains(16, EVERYTHING)
    assert (batch.heads, batch.ends, batch.views, house.queue.ring.waiting()) == ([], [], [], 0)
    house.queue.ring.give_back([])
    assert house.ring.used_idx == 0


def test_direct_chains_are_read_in_order_and_returned_in_order(house):
    heads = [house.ring.add([b"one"]), house.ring.add([b"two", b"three"]), house.ring.add([b"four"])]
    batch = house.queue.ring.readable_chains(16, EVERYTHING)
    assert content(batch) == b"onetwothreefour"
    assert batch.heads == heads
    assert batch.ends == [3, 11, 15]
    assert house.ring.used_idx == 0, "looking takes nothing"
    house.queue.ring.give_back(batch.heads)
    assert [(used.head, used.length) for used in house.ring.harvest()] == [(head, 0) for head in heads]
    assert house.queue.ring.waiting() == 0


@pytest.mark.parametrize("table", [None, 3, 2, 1], ids=["direct", "indirect", "one direct", "two direct"])
def test_row_13_direct_descriptors_then_an_indirect_one_are_one_chain(house, table):
    house.ring.add([b"AAAA", b"BBB", b"CC"], table=table)
    batch = house.queue.ring.readable_chains(16, EVERYTHING)
    assert content(batch) == b"AAAABBBCC"
    assert batch.ends == [9]


def test_a_chain_of_both_directions_gives_each_queue_its_own(house):
    house.ring.add([b"request"], [16, 8], table=3)
    assert content(house.queue.ring.readable_chains(16, EVERYTHING)) == b"request"
    batch = house.queue.ring.writable_chains(16, EVERYTHING)
    assert sum(map(len, batch.views)) == 24
    assert batch.odd == 1


def test_writable_chains_are_filled_where_the_driver_posted_them(house):
    for writable in ([5], [3, 4], [100]):
        house.ring.add(writable=writable)
    batch = house.queue.ring.writable_chains(16, EVERYTHING)
    assert batch.ends == [5, 12, 112]
    fill(house, batch, b"0123456789abcdef")
    house.queue.ring.give_back(batch.heads, [5, 7, 4])
    assert [used.data for used in house.ring.harvest()] == [b"01234", b"56789ab", b"cdef"]


def test_a_buffer_may_span_maps(house):
    data = random.Random(1).randbytes(3 * PAGE)
    at = BASE + 0x60000 - 17
    house.memory.write(at, data)
    house.ring.describe(0, at, len(data))
    house.ring.describe(1, BASE + 0x70000 - 9, 2 * PAGE, WRITE)
    house.ring.offer(0)
    batch = house.queue.ring.readable_chains(1, EVERYTHING)
    assert content(batch) == data
    house.queue.ring.give_back(batch.heads)
    house.ring.offer(1)
    batch = house.queue.ring.writable_chains(1, EVERYTHING)
    fill(house, batch, data[: 2 * PAGE])
    assert house.memory.read(BASE + 0x70000 - 9, 2 * PAGE) == data[: 2 * PAGE]


def test_budgets_of_chains_and_bytes_end_a_batch(house):
    for _ in range(10):
        house.ring.add([b"x" * 100])
    assert len(house.queue.ring.readable_chains(4, EVERYTHING).heads) == 4
    assert house.queue.ring.readable_chains(16, 250).ends == [100, 200, 300]
    assert house.queue.ring.readable_chains(16, 0).ends == [100]
    assert len(house.queue.ring.readable_chains(16, 0).views) <= 1, "mapped memory costs nothing to show"


def test_what_is_left_out_of_a_long_chain_is_its_end_never_its_middle(house):
    house.ring.add([bytes([65 + k]) * 1000 for k in range(8)], table=8)
    batch = house.queue.ring.readable_chains(1, 2500)
    assert batch.ends == [8000], "a chain counts with all its bytes"
    got = content(batch)
    assert len(got) >= 2500
    assert b"".join(bytes([65 + k]) * 1000 for k in range(8)).startswith(got)


def test_an_offset_continues_a_chain_and_offset_zero_is_one_too(house):
    queue = house.queue
    house.ring.add([b"abc", b"defg", b"hi"], table=2)
    house.ring.add([b"JKL"])
    whole = b"abcdefghiJKL"
    for offset in range(9):
        queue.ring.offset = offset
        batch = queue.ring.readable_chains(16, EVERYTHING)
        assert content(batch) == whole[offset:]
        assert batch.ends == [9, 12]
        assert content(queue.ring.readable_chains(16, 1))[:1] == whole[offset : offset + 1]
    queue.ring.offset = 9
    with pytest.raises(DriverError, match="changed while it was in use"):
        queue.ring.readable_chains(16, EVERYTHING)


@pytest.mark.parametrize("event_idx", [False, True])
def test_indices_wrap_at_65536(make_house, event_idx):
    house = make_house(start=0xFFF9, event_idx=event_idx)
    queue, ring = house.queue, house.ring
    for turn in range(12):
        sent = [ring.add([bytes([turn, k])]) for k in range(5)]
        batch = queue.ring.readable_chains(16, EVERYTHING)
        assert batch.heads == sent
        assert content(batch) == b"".join(bytes([turn, k]) for k in range(5))
        queue.ring.give_back(batch.heads, [turn] * 5)
        assert [(used.head, used.length) for used in ring.harvest()] == [(head, turn) for head in sent]
    assert queue.record.position == ring.used_idx == (0xFFF9 + 60) & 0xFFFF
    assert queue.record.chains + queue.record.position == 0xFFF9 + 60


def test_chains_that_are_given_back_one_by_one_are_counted_over_the_wrap(make_house):
    house = make_house(start=0xFFFE)
    ring = house.queue.ring
    for count in range(1, 5):
        house.ring.add([b"x"])
        if ring.lone_message(100) is None:
            ring.give_back(ring.readable_chains(16, EVERYTHING).heads)
        else:
            ring.give_back_one(0)
        assert house.queue.record.chains + house.queue.record.position == 0xFFFE + count
    house.queue.reset()
    assert house.queue.record.chains == 0


def test_a_full_ring_at_every_position(make_house):
    house = make_house(start=0xFFFD)
    for _ in range(20):
        sent = [house.ring.add([b"z"]) for _ in range(16)]
        batch = house.queue.ring.readable_chains(64, EVERYTHING)
        assert batch.heads == sent
        house.queue.ring.give_back(batch.heads[:3])
        house.queue.ring.give_back(batch.heads[3:], list(range(13)))
        lengths = [used.length for used in house.ring.harvest()]
        assert lengths == [0, 0, 0, *range(13)]


# Notifications


def test_without_event_idx_the_flags_say_who_wants_to_be_told(house):
    queue, ring = house.queue, house.ring
    assert queue.ring.take_signal() is False, "nothing was returned"
    ring.add([b"x"])
    queue.ring.give_back([0])
    assert queue.ring.take_signal() is True
    assert queue.ring.take_signal() is False, "once for each"
    ring.set_avail_flags(NO_INTERRUPT)
    ring.add([b"x"])
    queue.ring.give_back([1])
    assert unsignalled(queue) == 1
    assert queue.ring.take_signal() is False
    queue.ring.disarm()
    assert ring.used_flags == 1
    assert queue.ring.arm() is False
    assert ring.used_flags == 0


def test_with_event_idx_the_events_say_it(make_house):
    house = make_house(event_idx=True)
    queue, ring = house.queue, house.ring
    ring.set_avail_flags(0xFFFF)
    ring.set_used_event(1)
    ring.add([b"x"])
    queue.ring.give_back([0])
    assert queue.ring.take_signal() is False
    ring.add([b"x"])
    ring.add([b"x"])
    queue.ring.give_back([1, 2])
    assert queue.ring.take_signal() is True
    assert queue.ring.arm() is False
    assert ring.avail_event == 3
    assert queue.ring.arm(ahead=5) is False
    assert ring.avail_event == 8
    queue.ring.disarm()
    assert ring.used_flags == 0, "the flags have no meaning with EVENT_IDX"


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_chain_that_comes_before_notifications_are_armed_is_seen(make_house, event_idx):
    house = make_house(event_idx=event_idx)
    assert not house.queue.ring.readable_chains(16, EVERYTHING).heads
    house.ring.add([b"late"])
    assert house.queue.ring.arm() is True


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_chain_that_comes_after_notifications_are_armed_rings(make_house, event_idx):
    house = make_house(event_idx=event_idx, start=0xFFFF)
    for _ in range(4):
        assert house.queue.ring.arm() is False
        head = house.ring.add([b"late"])
        assert house.ring.wants_bell()
        house.queue.ring.give_back([head])


@pytest.mark.parametrize("garbage", [0, 1, 7, 0x7FFF, 0x8000, 0xFFFF])
def test_row_36_garbage_events_and_flags_are_lived_with(make_house, garbage):
    house = make_house(event_idx=True, start=0xFFFE)
    house.ring.set_used_event(garbage)
    house.ring.set_avail_flags(0xFFFF)
    for _ in range(6):
        head = house.ring.add([b"x"])
        position = house.queue.record.position
        house.queue.ring.give_back([head])
        assert house.queue.ring.take_signal() is (position == garbage)


# Life


def test_registers_take_only_legal_values_and_none_once_enabled(house):
    queue = house.queue
    registers = (queue.size, queue.desc_address, queue.avail_address, queue.used_address)
    queue.size, queue.desc_address, queue.avail_address, queue.used_address = 8, 0, 0, 0
    assert (queue.size, queue.desc_address, queue.avail_address, queue.used_address) == registers
    assert queue.enabled
    queue.vector = 3
    assert queue.vector == 3
    queue.reset()
    assert (queue.enabled, queue.size, queue.vector, queue.desc_address) == (False, 64, 0xFFFF, 0)
    for refused in (0, 3, 65, 128, 65535):
        queue.size = refused
        assert queue.size == 64
    queue.size = 1
    assert queue.size == 1


def test_without_a_ring_there_is_nothing_and_no_error(house):
    house.ring.add([b"x"])
    house.queue.detach()
    assert house.queue.ring.waiting() == 0
    assert house.queue.ring.readable_chains(4, 100).heads == []
    assert house.queue.ring.arm() is False
    assert house.queue.ring.take_signal() is False
    house.queue.ring.disarm()
    assert not house.queue.ring.lies_in(0, 1 << 64)


def test_another_object_over_the_same_state_goes_on(house):
    ring = house.ring
    for data in (b"first", b"second", b"third"):
        ring.add([data])
    batch = house.queue.ring.readable_chains(1, EVERYTHING)
    house.queue.ring.give_back(batch.heads)
    house.queue.record.offset = 2
    successor = Virtqueue(5, 64, StateMemory(house.state.u8))
    successor.attach(house.table)
    assert unsignalled(successor) == 1
    batch = successor.ring.readable_chains(16, EVERYTHING)
    assert content(batch) == b"condthird"


def test_who_was_cut_short_before_the_used_index_publishes_it_when_it_attaches_again(house, monkeypatch):
    head = house.ring.add([b"x"])

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(house.queue.ring._access), "publish_used_idx", killed)
        with pytest.raises(KeyboardInterrupt):
            house.queue.ring.give_back([head], [7])
    assert house.ring.used_idx == 0
    successor = Virtqueue(5, 64, StateMemory(house.state.u8))
    successor.attach(house.table)
    assert [(used.head, used.length) for used in house.ring.harvest()] == [(head, 7)]
    assert successor.ring.waiting() == 0
    assert unsignalled(successor) == 1


def test_attaching_to_unmapped_or_misaligned_rings_is_refused(memory):
    table = MemoryTable()
    memory.map_into(table)
    ring = RingBuilder(memory)
    for name, address in (("desc", 8), ("avail", 1), ("used", 2)):
        queue = Virtqueue(5, 64, StateMemory(bytearray(64 + QueueRecord.SIZE)))
        broken = RingBuilder(memory)
        setattr(broken, name, BASE + PAGE + address)
        with pytest.raises(DriverError, match=r"queue 5: .* is not aligned"):
            join(queue, broken, table)
        assert queue.ring is DETACHED
        setattr(broken, name, BASE + memory.size - 16)
        queue = Virtqueue(5, 64, StateMemory(bytearray(64 + QueueRecord.SIZE)))
        with pytest.raises(AddressError, match="queue 5"):
            join(queue, broken, table)
    queue = Virtqueue(5, 64, StateMemory(bytearray(64 + QueueRecord.SIZE)))
    join(queue, ring, table)
    assert queue.ring.lies_in(ring.used, ring.used + 1)
    assert queue.ring.lies_in(ring.desc, ring.desc + 1)
    assert not queue.ring.lies_in(ring.desc - 1, ring.desc)


def test_one_batch_has_about_as_many_views_as_one_system_call_takes(make_house):
    house = make_house(size=64)
    for _ in range(4):
        house.ring.add([b"y"] * 600, table=600)
    batch = house.queue.ring.readable_chains(64, EVERYTHING)
    assert batch.ends == [600, 1200]
    assert MAX_CHAIN_LENGTH <= len(batch.views) < 2 * MAX_CHAIN_LENGTH
