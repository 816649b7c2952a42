"""Guest memory by a table, and region by region."""

from __future__ import annotations

import os

import pytest

from virtserial.errors import PeerError
from virtserial.memory.state import HEADER_SIZE, StateMemory
from virtserial.vhost_user import wire
from virtserial.vhost_user.regions import Regions
from virtserial.vhost_user.wire import MAX_SLOTS, MemoryRegion

LOW = MemoryRegion(0, 0xA0000, 0x7F0000000000, 0)
HIGH = MemoryRegion(1 << 32, 0x1000000, 0x7F0100000000, 0xA0000)


@pytest.fixture
def block():
    return StateMemory(bytearray(HEADER_SIZE + Regions.SIZE + 8))


@pytest.fixture
def regions(device, block):
    regions = Regions(device, block)
    yield regions
    regions.clear()


def table(*regions):
    return wire.TABLE.pack(len(regions), 0) + b"".join(map(wire.pack, regions))


def slot(region):
    return wire.SLOT_PADDING + wire.pack(region)


def call(request, payload, count=0):
    fds = [os.dup(0) for _ in range(count)]
    try:
        request(payload, fds)
    finally:
        for fd in fds:
            os.close(fd)


def test_a_table_replaces_all(regions, device):
    call(regions.set_table, table(LOW, HIGH), 2)
    assert set(device.memory) == {LOW.guest, HIGH.guest}
    call(regions.set_table, table(HIGH), 1)
    assert set(device.memory) == {HIGH.guest}
    call(regions.set_table, table())
    assert len(regions) == 0


def test_the_front_ends_addresses_become_the_guests(regions):
    call(regions.set_table, table(LOW, HIGH), 2)
    assert regions.guest_address(LOW.user + 0x123) == 0x123
    assert regions.guest_address(HIGH.user + HIGH.size - 1) == HIGH.guest + HIGH.size - 1
    for nowhere in (0, LOW.user + LOW.size, HIGH.user - 1, HIGH.user + HIGH.size):
        with pytest.raises(PeerError, match="in no region"):
            regions.guest_address(nowhere)


def test_regions_come_and_go_one_by_one(regions, device):
    call(regions.add, slot(LOW), 1)
    call(regions.add, slot(HIGH), 1)
    call(regions.add, slot(HIGH), 1)
    assert len(regions) == 2
    call(regions.remove, slot(LOW._replace(offset=77)))
    assert set(device.memory) == {HIGH.guest}
    call(regions.remove, slot(LOW))
    assert len(regions) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        LOW._replace(size=0),
        LOW._replace(guest=(1 << 64) - 4096),
        LOW._replace(user=(1 << 64) - 4096),
        LOW._replace(offset=(1 << 63) - 4096),
        HIGH._replace(user=LOW.user + 4096),
        HIGH._replace(guest=LOW.size - 1),
    ],
)
def test_a_region_that_cannot_be_is_refused_and_memory_stays(regions, device, wrong):
    call(regions.add, slot(LOW), 1)
    with pytest.raises(PeerError):
        call(regions.add, slot(wrong), 1)
    with pytest.raises(PeerError):
        call(regions.set_table, table(LOW, wrong), 2)
    assert set(device.memory) == {LOW.guest}


def test_a_table_has_a_descriptor_for_each_region(regions):
    with pytest.raises(PeerError, match="2 regions of memory came with 1"):
        call(regions.set_table, table(LOW, HIGH), 1)


@pytest.mark.parametrize("payload", [b"", bytes(7), table(LOW)[:-1], table(LOW) + b"x", wire.TABLE.pack(33, 0)])
def test_a_table_of_another_size_is_refused(regions, payload):
    with pytest.raises(PeerError, match="memory table"):
        call(regions.set_table, payload)


def test_a_table_of_which_a_part_cannot_be_mapped_leaves_none(regions, device):
    call(regions.set_table, table(LOW), 1)
    device.refuses_maps = True
    with pytest.raises(PeerError, match="no room"):
        call(regions.set_table, table(HIGH), 1)
    assert device.memory == {}
    assert len(regions) == 0


def test_regions_are_bounded(regions):
    for number in range(MAX_SLOTS):
        call(regions.add, slot(MemoryRegion(number << 20, 4096, number << 20, 0)), 1)
    with pytest.raises(PeerError, match="more than 509"):
        call(regions.add, slot(MemoryRegion(1 << 40, 4096, 1 << 40, 0)), 1)


def test_a_successor_knows_them(regions, device, block):
    call(regions.set_table, table(LOW, HIGH), 2)
    successor = Regions(device, StateMemory(block.u8))
    assert successor.guest_address(HIGH.user) == HIGH.guest
