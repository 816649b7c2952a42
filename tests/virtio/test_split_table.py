"""Rows of the hostile driver's table that break the virtqueue itself: a DriverError each, on every kind of memory."""

from random import Random

import pytest
from support.ring_builder import BASE, INDIRECT, NEXT, PAGE, WRITE

from virtserial.errors import AddressError, DriverError
from virtserial.memory.region import MessageRegion
from virtserial.memory.table import MemoryTable
from virtserial.virtio.ring.chains import MAX_CHAIN_LENGTH
from virtserial.virtio.ring.split.access import LOADS_AT_MOST, RemoteRing

BUFFER = BASE + 0x50000
LIMIT = 1 << 20


def refused(house, match, error=DriverError, writable=False):
    look = house.queue.ring.writable_chains if writable else house.queue.ring.readable_chains
    with pytest.raises(error, match=match):
        look(16, LIMIT)
    assert house.ring.used_idx == 0, "nothing is returned of what was refused"


@pytest.mark.parametrize("jump", [17, 0x8000, 0xFFFF])
def test_row_1_available_index_further_ahead_than_the_queue_is_long(house, jump):
    house.ring.describe(0, BUFFER, 1)
    house.ring.set_avail_idx(jump)
    refused(house, f"{jump} ahead of 0, the queue has 16 entries")


@pytest.mark.parametrize("head", [16, 17, 0xFFFF])
def test_row_2_head_outside_the_table(house, head):
    house.ring.offer(head)
    refused(house, f"head {head} is outside the descriptor table of 16")


@pytest.mark.parametrize("following", [16, 99, 0xFFFF])
def test_row_3_next_outside_the_table(house, following):
    house.ring.describe(0, BUFFER, 1, NEXT, following)
    house.ring.offer(0)
    refused(house, f"next descriptor {following} is outside a table of 16")


def test_row_4_loop(house):
    house.ring.describe(0, BUFFER, 1, NEXT, 1)
    house.ring.describe(1, BUFFER, 1, NEXT, 0)
    house.ring.offer(0)
    refused(house, "more than 16 descriptors, a loop")


@pytest.mark.parametrize("table", [None, 1])
@pytest.mark.parametrize("writable", [False, True])
def test_row_5_zero_length(house, table, writable):
    house.ring.add([] if writable else [b""], [0] if writable else [], table=table)
    refused(house, "zero-length buffer", writable=writable)


@pytest.mark.parametrize("writable", [False, True])
def test_row_6_huge_length(house, writable):
    house.ring.describe(0, BUFFER, 0xFFFFFFFF, WRITE if writable else 0)
    house.ring.offer(0)
    house.memory.messages = 0
    refused(house, "is not mapped", AddressError, writable)
    assert house.memory.messages < 16, "it is refused before any of it is read"


@pytest.mark.parametrize("writable", [False, True])
def test_row_6_no_more_of_a_buffer_is_copied_than_the_budget(house, writable):
    house.ring.describe(0, BASE, house.memory.size, WRITE if writable else 0)
    house.ring.offer(0)
    house.memory.messages = 0
    look = house.queue.ring.writable_chains if writable else house.queue.ring.readable_chains
    held = sum(map(len, look(1, PAGE).views))
    assert held == (house.memory.size if house.memory.kind == "mapped" else PAGE)
    assert house.memory.messages < 16


def test_descriptors_without_a_byte_for_us_end_a_batch(house):
    # 16 chains of 1,000 writable descriptors in a queue that is only read: 16,000 steps, but not in one turn.
    entries = [(BUFFER, 1, WRITE | (NEXT if index < 999 else 0), index + 1) for index in range(1000)]
    table = house.ring.table(*entries)
    for index in range(16):
        house.ring.describe(index, *table, INDIRECT)
    house.ring.offer(*range(16))
    turns = 0
    while heads := (batch := house.queue.ring.readable_chains(16, LIMIT)).heads:
        assert batch.walked <= 2 * MAX_CHAIN_LENGTH
        assert batch.views == []
        house.queue.ring.give_back(heads)
        turns += 1
    assert turns == 8


def test_row_6_more_than_four_gib_in_a_chain(house):
    table = house.ring.table(*((BUFFER, 0xFFFFFFFF, NEXT, 1), (BUFFER, 2, 0, 0)))
    house.ring.describe(0, *table, INDIRECT)
    house.ring.offer(0)
    refused(house, "longer than 4294967296 bytes")
    refused(house, "longer than 4294967296 bytes", writable=True)


@pytest.mark.parametrize("address", [0, BASE - 1, BASE + (1 << 20), 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("writable", [False, True])
def test_row_7_address_outside_memory(house, address, writable):
    house.ring.describe(0, address, 1, WRITE if writable else 0)
    house.ring.offer(0)
    refused(house, "is not mapped", AddressError, writable)


@pytest.mark.parametrize("writable", [False, True])
def test_row_7_buffer_that_leaves_memory(house, writable):
    house.ring.describe(0, BASE + house.memory.size - 8, 16, WRITE if writable else 0)
    house.ring.offer(0)
    refused(house, "is not mapped", AddressError, writable)


def test_row_8_address_and_length_wrap_64_bits(house):
    house.ring.describe(0, (1 << 64) - 8, 16)
    house.ring.offer(0)
    refused(house, "leave the 64-bit address space", AddressError)


@pytest.mark.parametrize("length", [0, 1, 15, 17, 24])
def test_row_9_indirect_table_of_a_wrong_length(house, length):
    house.ring.describe(0, BUFFER, length, INDIRECT)
    house.ring.offer(0)
    refused(house, f"an indirect table of {length} bytes")


def test_row_10_indirect_inside_indirect(house):
    inner = house.ring.table((BUFFER, 4, 0, 0))
    outer = house.ring.table((*inner, INDIRECT, 0))
    house.ring.describe(0, *outer, INDIRECT)
    house.ring.offer(0)
    refused(house, "an indirect descriptor inside an indirect table")


def test_row_11_indirect_with_next(house):
    house.ring.describe(0, *house.ring.table((BUFFER, 4, 0, 0)), INDIRECT | NEXT, 1)
    house.ring.offer(0)
    refused(house, "an indirect descriptor with a next one")


def test_row_12_indirect_not_negotiated(house):
    house.queue.ring._table._indirect = False
    house.ring.add([b"x"], table=1)
    refused(house, "VIRTIO_F_INDIRECT_DESC was not negotiated")


def test_row_14_loop_in_an_indirect_table(house):
    house.ring.describe(0, *house.ring.table((BUFFER, 1, NEXT, 1), (BUFFER, 1, NEXT, 0)), INDIRECT)
    house.ring.offer(0)
    refused(house, "a loop")


@pytest.mark.parametrize("entries", [1025, 2000, 32 << 20])
def test_row_14_indirect_table_too_long_is_not_even_read(house, entries):
    house.ring.describe(0, 0xDEAD0000, entries * 16 & 0xFFFFFFFF, INDIRECT)
    house.ring.offer(0)
    refused(house, f"{entries} indirect descriptors, at most 1024")


def test_row_14_the_limit_itself_is_served(house):
    data = [b"x"] * 1024
    house.ring.add(data, table=1024)
    assert house.queue.ring.readable_chains(1, LIMIT).ends == [1024]


def test_row_14_indirect_table_outside_memory(house):
    house.ring.describe(0, 0xDEAD0000, 16, INDIRECT)
    house.ring.offer(0)
    refused(house, "is not mapped", AddressError)


def test_row_14_next_outside_an_indirect_table(house):
    house.ring.describe(0, *house.ring.table((BUFFER, 1, NEXT, 5), (BUFFER, 1, 0, 0)), INDIRECT)
    house.ring.offer(0)
    refused(house, "next descriptor 5 is outside a table of 2")


def test_row_15_writable_before_readable(house):
    house.ring.describe(0, BUFFER, 4, WRITE | NEXT, 1)
    house.ring.describe(1, BUFFER, 4)
    house.ring.offer(0)
    refused(house, "a device-readable descriptor behind a device-writable one")


def test_row_16_and_17_buffers_of_the_wrong_direction_are_neither_read_nor_written(house):
    house.ring.describe(0, 0xDEAD0000, 4, WRITE)
    house.ring.describe(1, 0xDEAD0000, 4)
    house.ring.offer(0)
    batch = house.queue.ring.readable_chains(1, LIMIT)
    assert (batch.ends, batch.views, batch.odd) == ([0], [], 1)
    house.queue.ring.give_back(batch.heads, [0])
    house.ring.offer(1)
    batch = house.queue.ring.writable_chains(1, LIMIT)
    assert (batch.ends, batch.views, batch.odd) == ([0], [], 1)


def test_row_23_a_head_twice_while_the_first_is_in_flight(house):
    house.ring.describe(0, BUFFER, 4)
    house.ring.offer(0, 0)
    refused(house, "made available again before it was used")


def test_row_23_a_head_again_after_it_was_returned_is_legal(house):
    house.ring.describe(0, BUFFER, 4)
    for _ in range(20):
        house.ring.offer(0)
        assert house.queue.ring.readable_chains(16, LIMIT).heads == [0]
        house.queue.ring.give_back([0])


@pytest.mark.parametrize("writable", [False, True])
def test_row_37_a_descriptor_rewritten_after_the_look_changes_nothing(house, writable):
    house.ring.describe(0, BUFFER, 4, WRITE if writable else 0)
    house.ring.offer(0)
    look = house.queue.ring.writable_chains if writable else house.queue.ring.readable_chains
    batch = look(1, LIMIT)
    house.ring.describe(0, 0xDEAD0000, 0xFFFFFFFF, NEXT, 77)
    assert [len(view) for view in batch.views] == [4]
    house.queue.ring.store(batch, 4 if writable else 0)
    house.queue.ring.give_back(batch.heads, [4])
    assert house.ring.used_element(0) == (0, 4)


def test_row_37_an_index_that_never_stops_changing_does_not_hold_the_device():
    class Racing:
        reads = 0

        def dma_read(self, address, length):
            self.reads += 1
            return self.reads.to_bytes(length, "little")

        def dma_write(self, address, data):
            raise AssertionError("nothing is to be stored")

    access, table = Racing(), MemoryTable()
    table.map(MessageRegion(BASE, PAGE, access))
    ring = RemoteRing(table, 16, BASE, BASE + 256, BASE + 512)
    assert ring.avail_idx() == LOADS_AT_MOST
    assert access.reads == LOADS_AT_MOST


def test_memory_mapped_read_only_is_not_written(memory):
    region = memory.regions()[0]
    region.writable = False
    table = MemoryTable()
    table.map(region)
    with pytest.raises(AddressError, match="read-only"):
        table.writable_views(BASE, 4, LIMIT)
    with pytest.raises(AddressError, match="read-only"):
        table.mapped_view(BASE, 4)
    with pytest.raises(AddressError, match="read-only"):
        table.write(BASE, b"1234")
    assert b"".join(table.readable_views(BASE, 4, LIMIT)) == bytes(4)


def test_random_tables_never_raise_anything_but_driver_errors(house):
    chance = Random(7)
    for _ in range(300):
        for index in range(16):
            mapped = chance.random() < 0.8
            house.ring.describe(
                index,
                BUFFER + chance.randrange(4096) if mapped else chance.getrandbits(64),
                chance.choice((0, 1, 16, 32, 4096)),
                chance.randrange(8),
                chance.randrange(18),
            )
        house.ring.offer(chance.randrange(17))
        try:
            batch = house.queue.ring.readable_chains(16, LIMIT)
        except DriverError:
            house.queue.ring.give_back([0] * house.queue.ring.waiting())
        else:
            assert sum(map(len, batch.views)) <= batch.ends[-1]
            house.queue.ring.give_back(batch.heads)
