"""The device side of a packed virtqueue, with a driver written byte by byte."""

from __future__ import annotations

import pytest
from support.packed_builder import AVAIL, USED, PackedHouse
from support.ring_builder import BASE, INDIRECT, NEXT, PAGE, WRITE

from virtserial.errors import AddressError, DriverError
from virtserial.memory.state import StateMemory
from virtserial.virtio.queue import Virtqueue
from virtserial.virtio.ring.chains import MAX_CHAIN_LENGTH
from virtserial.virtio.ring.packed.access import MappedRing, RemoteRing

EVERYTHING = 1 << 20
ENABLE, DISABLE, DESC = 0, 1, 2


def content(batch):
    return b"".join(bytes(view) for view in batch.views)


@pytest.fixture
def house(memory):
    house = PackedHouse(memory)
    house.attach()
    return house


def test_mapped_memory_gets_views_and_the_others_do_not(house):
    expected = MappedRing if house.memory.kind == "mapped" else RemoteRing
    assert type(house.queue.ring._access) is expected


def test_chains_are_read_and_marked_as_used_in_place(house):
    ring = house.queue.ring
    first = house.send(b"one")
    house.describe(house.memory.buffer(b"two"), 3, NEXT, 99)
    second = house.describe(house.memory.buffer(b"three"), 5, 0, 42)
    third = house.send(b"four")
    batch = ring.readable_chains(16, EVERYTHING)
    assert (content(batch), batch.ends) == (b"onetwothreefour", [3, 11, 15])
    assert batch.heads == [first, second, third], "of a list the last descriptor has the id"
    assert house.descriptor(0)[3] == AVAIL, "looking takes nothing"
    ring.give_back(batch.heads)
    assert [house.descriptor(k)[1:] for k in (0, 1, 3)] == [(0, k, AVAIL | USED) for k in (first, second, third)]
    assert house.descriptor(2)[3] == AVAIL, "only the first descriptor of a chain is marked"
    assert ring.waiting() == 0
    assert house.queue.record.position == 0x8004


def test_writable_chains_say_how_much_was_written(house):
    ring, place = house.queue.ring, house.memory.allocate(100)
    house.describe(place, 10, WRITE)
    house.describe(place + 10, 10, WRITE)
    batch = ring.writable_chains(16, EVERYTHING)
    data = b"0123456789abc"
    for view in batch.views:
        view[: len(data)] = data[: len(view)]
        data = data[len(view) :]
    ring.store(batch, 13)
    ring.give_back(batch.heads, [10, 3])
    assert house.memory.read(place, 13) == b"0123456789abc"
    assert [house.descriptor(k)[1::2] for k in (0, 1)] == [(10, AVAIL | USED | WRITE), (3, AVAIL | USED | WRITE)]


def test_laps_change_the_flags_and_chains_lie_over_the_end(memory):
    house = PackedHouse(memory, size=5)
    ring = house.attach()
    for turn in range(24):
        house.describe(memory.buffer(b"x%d" % (turn % 10)), 2, NEXT)
        house.describe(memory.buffer(b"yz"), 2, 0, turn)
        batch = ring.readable_chains(16, EVERYTHING)
        assert (content(batch), batch.heads) == (b"x%dyz" % (turn % 10), [turn])
        ring.give_back(batch.heads)
    assert house.queue.record.position == 48 % 5 | 0x8000 * (48 // 5 % 2 == 0)
    assert house.queue.record.chains == 24


def test_a_ring_of_any_size_can_be_full(memory):
    house = PackedHouse(memory, size=7)
    ring = house.attach()
    for _ in range(4):
        heads = [house.send(b"z") for _ in range(7)]
        batch = ring.readable_chains(64, EVERYTHING)
        assert batch.heads == heads
        ring.give_back(heads[:3])
        ring.give_back(heads[3:])
    assert ring.waiting() == 0


def test_an_offset_continues_a_chain(house):
    ring = house.queue.ring
    address, length = house.memory.buffer(b"abcdefghi"), 9
    house.describe(address, 4, NEXT)
    house.describe(address + 4, length - 4)
    house.send(b"JKL")
    for offset in range(9):
        ring.give_back([], None, offset)
        batch = ring.readable_chains(16, EVERYTHING)
        assert (content(batch), batch.ends) == (b"abcdefghiJKL"[offset:], [9, 12])
    ring.offset = 9
    with pytest.raises(DriverError, match="changed while it was in use"):
        ring.readable_chains(16, EVERYTHING)


def test_budgets_of_chains_and_bytes_end_a_batch(house):
    ring = house.queue.ring
    for _ in range(6):
        house.send(b"x" * 100)
    assert len(ring.readable_chains(4, EVERYTHING).heads) == 4
    assert ring.readable_chains(16, 250).ends == [100, 200, 300]
    assert ring.readable_chains(1, 0).ends == [100]


def test_descriptors_of_the_wrong_direction_are_counted_and_left_alone(house):
    house.describe(house.memory.allocate(4), 4, WRITE)
    batch = house.queue.ring.readable_chains(16, EVERYTHING)
    assert (batch.odd, batch.ends, batch.views) == (1, [0], [])


def test_chains_are_given_back_to_another_ring_object(house):
    """Its memory was unmapped and mapped in the middle of a turn."""
    house.describe(house.memory.buffer(b"ab"), 1, NEXT)
    head = house.describe(house.memory.buffer(b"b"), 1)
    batch = house.queue.ring.readable_chains(16, EVERYTHING)
    assert batch.heads == [head]
    house.attach().give_back(batch.heads)
    assert house.queue.record.position == 0x8002


def test_a_lone_message_and_the_next_buffer_are_served_without_a_list(memory):
    house = PackedHouse(memory, size=3)
    ring = house.attach()
    for turn in range(5):
        assert ring.lone_message(100) is None
        house.send(b"lone")
        message = ring.lone_message(100)
        if memory.kind != "mapped":
            assert ring.mapped or message is ring.next_buffer() is None
            return
        assert bytes(message) == b"lone"
        assert ring.lone_message(3) is ring.next_buffer() is None
        ring.give_back_one(0)
        place = house.memory.allocate(8)
        house.describe(place, 8, WRITE, 77)
        assert ring.lone_message(100) is None
        ring.next_buffer()[:2] = b"hi"
        ring.give_back_one(2)
        index = (2 * turn + 1) % 3
        assert (house.descriptor(index)[1:3], house.memory.read(place, 2)) == ((2, 77), b"hi")
    house.send(b"one")
    house.send(b"two")
    assert ring.lone_message(100) is None, "there are two"
    ring.give_back([], None, 1)
    assert ring.lone_message(100) is None, "a part of it was served"


# Notifications


def test_the_driver_says_which_interrupts_it_wants(house):
    ring = house.queue.ring
    assert not ring.take_signal(), "nothing was returned"
    for flags, wanted in ((ENABLE, True), (DISABLE, False), (DESC, True), (3, True)):
        house.set_driver_event(flags, 0x1234)
        ring.give_back([house.send(b"x")])
        assert ring.take_signal() is wanted, "without EVENT_IDX no position counts"
        assert not ring.take_signal(), "once for each"


@pytest.mark.parametrize("ahead", range(4))
def test_with_event_idx_a_position_says_it(memory, ahead):
    house = PackedHouse(memory, size=3, event_idx=True)
    ring = house.attach()
    for turn in range(8):
        at = turn + ahead
        house.set_driver_event(DESC, at % 3 | 0x8000 * (at // 3 % 2 == 0))
        ring.give_back([house.send(b"x")])
        assert ring.take_signal() is (ahead == 0)


def test_a_driver_that_waits_for_a_chain_in_the_middle_is_told_at_once(memory):
    house = PackedHouse(memory, event_idx=True)
    ring = house.attach()
    house.set_driver_event(DESC, 0x8002)
    heads = [house.send(b"x") for _ in range(3)]
    ring.give_back(ring.readable_chains(16, EVERYTHING).heads)
    assert len(heads) == 3
    assert ring.signal_is_urgent() is (memory.kind == "mapped"), "elsewhere it would cost a message to look"
    assert ring.unseen() == (1 if memory.kind == "mapped" else 0)


def test_most_of_the_ring_is_signalled_at_once(house):
    ring = house.queue.ring
    for count in range(1, 7):
        ring.give_back([house.send(b"x")])
        assert ring.signal_is_urgent() is (count == 6)


def test_doorbells_are_asked_for_and_refused(memory):
    plain = PackedHouse(memory)
    ring = plain.attach()
    assert ring.arm() is False
    assert plain.get_device_event() == (ENABLE, 0)
    ring.disarm()
    assert plain.get_device_event() == (DISABLE, 0)
    plain.send(b"late")
    assert ring.arm() is True
    house = PackedHouse(memory, size=3, event_idx=True)
    ring = house.attach()
    assert ring.arm(2) is False
    assert house.get_device_event() == (DESC, 0x8002)
    ring.arm(3)
    assert house.get_device_event() == (DESC, 0)


def test_so_much_waits(house):
    ring = house.queue.ring
    seen = []
    for _ in range(4):
        seen.append(ring.waiting())
        house.send(b"x")
    assert seen == [0, 1, 1, 2], "of 8: a quarter or more"


# Life


def test_a_successor_goes_on(house):
    for data in (b"first", b"second"):
        house.send(data)
    batch = house.queue.ring.readable_chains(16, EVERYTHING)
    house.queue.ring.give_back(batch.heads[:1], None, 2)
    successor = Virtqueue(5, 64, StateMemory(house.state.u8))
    successor.attach(house.table)
    assert content(successor.ring.readable_chains(16, EVERYTHING)) == b"cond"
    assert successor.ring.take_signal() is True


def test_rings_outside_memory_or_misaligned_are_refused(memory):
    for name, address in (("desc", 8), ("avail", 2), ("used", 2)):
        house = PackedHouse(memory)
        setattr(house.queue.record, f"{name}_address", BASE + PAGE + address)
        with pytest.raises(DriverError, match=r"queue 5: .* is not aligned"):
            house.attach()
        setattr(house.queue.record, f"{name}_address", BASE + memory.size + PAGE)
        with pytest.raises(AddressError, match="queue 5"):
            house.attach()


def test_it_knows_where_it_lies(house):
    ring = house.queue.ring
    for start in (house.desc, house.driver_event, house.device_event):
        assert ring.lies_in(start, start + 1)
    assert not ring.lies_in(house.desc - 1, house.desc)
    assert not ring.lies_in(house.device_event + 4, house.device_event + 8)


def test_one_batch_has_about_as_many_views_as_one_system_call_takes(house):
    data = house.memory.buffer(b"y")
    table = house.memory.buffer(b"".join([data.to_bytes(8, "little") + b"\1\0\0\0" + bytes(4)] * 600))
    for _ in range(4):
        house.describe(table, 600 * 16, INDIRECT)
    batch = house.queue.ring.readable_chains(64, EVERYTHING)
    assert batch.ends == [600, 1200]
    assert MAX_CHAIN_LENGTH <= len(batch.views) < 2 * MAX_CHAIN_LENGTH
