"""Chains of a packed virtqueue that break a rule, and the limits of those that do not."""

from __future__ import annotations

import pytest
from support.packed_builder import PackedHouse
from support.ring_builder import BASE, DESCRIPTOR, INDIRECT, NEXT, WRITE

from virtserial.errors import AddressError, DriverError

OUTSIDE = BASE - (1 << 24)


def table_of(memory, *entries):
    return memory.buffer(b"".join(DESCRIPTOR.pack(*entry) for entry in entries))


def direct(*descriptors):
    def write(house):
        for address, length, flags in descriptors:
            house.describe(address, length, flags)

    return write


def indirect(*entries, length=None, flags=0):
    def write(house):
        size = 16 * len(entries) if length is None else length
        house.describe(table_of(house.memory, *entries), size, INDIRECT | flags)

    return write


ANY = BASE + 0x50000
WRONG = {
    "zero length": (direct((ANY, 0, 0)), "zero-length buffer"),
    "zero length in a table": (indirect((ANY, 0, 0, 0)), "zero-length buffer"),
    "readable behind writable": (direct((ANY, 4, WRITE | NEXT), (ANY, 4, 0)), "behind a device-writable one"),
    "the next is not available": (direct((ANY, 4, NEXT)), "its descriptor 1 is not available"),
    "no end": (direct(*[(ANY, 4, NEXT)] * 8), "more than 8 descriptors"),
    "more than 4 GiB": (direct((ANY, 0xFFFFFFFF, NEXT), (ANY, 2, 0)), "longer than"),
    "an indirect one behind others": (direct((ANY, 4, NEXT), (ANY, 16, INDIRECT)), "in a list of several"),
    "an indirect one with a next one": (indirect((ANY, 4, 0, 0), flags=NEXT), "in a list of several"),
    "an empty table": (indirect(length=0), "an indirect table of 0 bytes"),
    "a table of 17 bytes": (indirect((ANY, 4, 0, 0), length=17), "not a multiple of 16"),
    "a table in a table": (indirect((ANY, 16, 0, INDIRECT)), "inside an indirect table"),
    "a table of 1,025": (indirect(*[(ANY, 1, 0, 0)] * 1025), "1025 indirect descriptors, at most 1024"),
    "a table of 512 MiB": (indirect(length=1 << 29), "indirect descriptors, at most 1024"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_rule_is_broken(memory, name):
    house = PackedHouse(memory)
    ring = house.attach()
    write, text = WRONG[name]
    write(house)
    with pytest.raises(DriverError, match=text):
        ring.readable_chains(16, 1 << 20)


def test_a_table_needs_its_feature(memory):
    house = PackedHouse(memory, indirect=False)
    ring = house.attach()
    indirect((ANY, 4, 0, 0))(house)
    with pytest.raises(DriverError, match="VIRTIO_F_INDIRECT_DESC was not negotiated"):
        ring.readable_chains(16, 1 << 20)


@pytest.mark.parametrize("flags", [0, INDIRECT])
def test_memory_that_is_not_there(memory, flags):
    house = PackedHouse(memory)
    ring = house.attach()
    house.describe(OUTSIDE, 16, flags)
    with pytest.raises(AddressError):
        ring.readable_chains(16, 1 << 20)


def test_the_limits_themselves_are_served(memory):
    house = PackedHouse(memory)
    ring = house.attach()
    direct(*[(ANY, 4, NEXT)] * 7, (ANY, 4, 0))(house)
    ring.give_back(ring.readable_chains(1, 1 << 20).heads)
    # A table's descriptors follow each other, whatever NEXT and the place of `next` say (2.8.7).
    indirect(*[(ANY, 1, 77, NEXT)] * 1024)(house)
    batch = ring.readable_chains(1, 1 << 20)
    assert (batch.ends, batch.walked) == ([1024], 1024)


def test_any_buffer_id_is_the_drivers_own_business(memory):
    house = PackedHouse(memory)
    ring = house.attach()
    for identifier in (0xFFFF, 0xFFFF, 0):
        house.describe(ANY, 4, 0, identifier)
    batch = ring.readable_chains(16, 1 << 20)
    assert batch.heads == [0xFFFF, 0xFFFF, 0]
    ring.give_back(batch.heads)
    assert [house.descriptor(k)[2] for k in range(3)] == [0xFFFF, 0xFFFF, 0]
