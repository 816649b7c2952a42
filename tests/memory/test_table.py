"""The memory table: which addresses are reachable, and that nothing else is."""

import pytest
from support.ring_builder import BASE, KINDS, PAGE, GuestMemory

from virtserial.errors import AddressError, PeerError
from virtserial.memory import table as table_module
from virtserial.memory.region import MappedRegion, MessageRegion
from virtserial.memory.table import ADDRESS_LIMIT, MemoryTable


def region(iova, size):
    return MessageRegion(iova, size, None)


@pytest.fixture(params=KINDS)
def memory(request):
    memory = GuestMemory(request.param)
    yield memory
    memory.close()


@pytest.fixture
def table(memory):
    table = MemoryTable()
    memory.map_into(table)
    return table


@pytest.mark.parametrize(
    ("iova", "size"),
    [(0, 0), (0, -1), (-1, 2), (ADDRESS_LIMIT - 1, 2), (ADDRESS_LIMIT, 1), (0, ADDRESS_LIMIT + 1)],
)
def test_maps_outside_64_bits_are_refused(iova, size):
    table = MemoryTable()
    with pytest.raises(PeerError, match="leaves the 64-bit address space") as caught:
        table.check(iova, size)
    assert caught.value.errno == 22
    with pytest.raises(PeerError, match="leaves the 64-bit address space"):
        table.unmap(iova, size)


def test_the_whole_address_space_may_be_mapped():
    table = MemoryTable()
    table.map(region(0, ADDRESS_LIMIT))
    assert table.find(ADDRESS_LIMIT - 1).size == ADDRESS_LIMIT
    with pytest.raises(AddressError):
        list(table.pieces(ADDRESS_LIMIT - 1, 2, write=False))


@pytest.mark.parametrize(("iova", "size"), [(0x1000, 0x1000), (0x1FFF, 1), (0xFFF, 2), (0, 0x10000), (0x3000, 1)])
def test_overlapping_maps_are_refused(iova, size):
    table = MemoryTable()
    table.map(region(0x1000, 0x1000))
    table.map(region(0x3000, 0x1000))
    with pytest.raises(PeerError, match="overlaps another") as caught:
        table.map(region(iova, size))
    assert caught.value.errno == 17
    table.map(region(0x2000, 0x1000))
    table.map(region(0x0, 0x1000))
    assert [each.iova for each in table] == [0, 0x1000, 0x2000, 0x3000]
    assert len(table) == 4


def test_the_number_of_regions_is_limited(monkeypatch):
    monkeypatch.setattr(table_module, "MAX_REGIONS", 3)
    table = MemoryTable()
    for at in range(3):
        table.map(region(at, 1))
    with pytest.raises(PeerError, match="more than 3 regions") as caught:
        table.map(region(3, 1))
    assert caught.value.errno == 28


def test_unmapping_takes_whole_regions_only():
    table = MemoryTable()
    for at in range(0x1000, 0x5000, 0x1000):
        table.map(region(at, 0x1000))
    for iova, size in ((0x1800, 0x1000), (0x1800, 0x800), (0x0, 0x1800), (0x1000, 0x1800)):
        with pytest.raises(PeerError, match="cuts the region"):
            table.unmap(iova, size)
    assert table.unmap(0x5000, 0x1000) == []
    assert table.unmap(0, 0x1000) == []
    assert [each.iova for each in table.unmap(0x2000, 0x2000)] == [0x2000, 0x3000]
    assert [each.iova for each in table] == [0x1000, 0x4000]
    assert [each.iova for each in table.unmap(0, ADDRESS_LIMIT)] == [0x1000, 0x4000]
    with pytest.raises(AddressError, match="0x1000 is not mapped"):
        table.find(0x1000)


def test_clear_takes_all():
    table = MemoryTable()
    table.map(region(0, 1))
    assert len(table.clear()) == 1
    assert len(table) == 0


def test_reads_and_writes_go_where_they_should(memory, table):
    data = bytes(range(256)) * 40
    table.write(BASE + PAGE - 100, data)
    assert memory.read(BASE + PAGE - 100, len(data)) == data
    assert table.read(BASE + PAGE - 100, len(data)) == data
    assert b"".join(table.readable_views(BASE + PAGE - 100, len(data), 1 << 20)) == data


def test_a_write_that_leaves_memory_stores_nothing(memory, table):
    with pytest.raises(AddressError):
        table.write(BASE + memory.size - 4, b"12345678")
    assert memory.read(BASE + memory.size - 4, 4) == bytes(4)


@pytest.mark.parametrize("limit", [0, 1, 100, PAGE, PAGE + 1])
def test_views_end_where_the_limit_or_the_range_does(memory, table, limit):
    memory.write(BASE, bytes(range(256)) * 64)
    got = b"".join(table.readable_views(BASE + 10, 3 * PAGE, limit))
    assert got == memory.read(BASE + 10, len(got)), "a start of the range, without a gap"
    assert len(got) >= limit
    views, bounces = table.writable_views(BASE + 10, 3 * PAGE, limit)
    assert sum(map(len, views)) >= limit
    assert sum(len(view) for _, view in bounces) <= limit
    if memory.kind in ("file", "message"):
        assert len(got) == limit


def test_no_gap_where_memory_of_two_kinds_meets():
    memory = GuestMemory("mapped")
    table = MemoryTable()
    table.map(MappedRegion(BASE, PAGE, memory.fd, 0))
    table.map(MessageRegion(BASE + PAGE, PAGE, memory))
    table.map(MappedRegion(BASE + 2 * PAGE, PAGE, memory.fd, 2 * PAGE))
    whole = bytes(i % 251 for i in range(3 * PAGE))
    memory.write(BASE, whole)
    for limit in (1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE - 1, 2 * PAGE, 2 * PAGE + 1, 3 * PAGE):
        got = b"".join(table.readable_views(BASE, 3 * PAGE, limit))
        assert whole.startswith(got)
        assert len(got) >= limit
        views, bounces = table.writable_views(BASE, 3 * PAGE, limit)
        assert sum(map(len, views)) == len(got)
        assert [address for address, _ in bounces] == [BASE + PAGE] * (limit > PAGE)
    assert table.mapped_view(BASE + 8, 8) is not None
    assert table.mapped_view(BASE + PAGE - 4, 8) is None
    assert table.mapped_view(BASE + PAGE, 8) is None
    memory.close()
