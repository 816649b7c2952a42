"""Regions: what a map gives, on sealed files, files that may shrink, and no file."""

import fcntl
import gc
import os

import pytest
from support.huge_pages import huge_page_file, huge_page_pool

from virtserial.errors import AddressError, AddressSpaceFull, PeerError
from virtserial.memory import mapping, region
from virtserial.memory.file_status import has_huge_pages
from virtserial.memory.region import (
    FileRegion,
    MappedRegion,
    MessageRegion,
    RegionMaker,
    keeps_its_pages,
)

PAGE = 4096


@pytest.fixture
def make_file():
    made = []

    def make(size=4 * PAGE, seals=0):
        fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        made.append(fd)
        os.ftruncate(fd, size)
        if seals:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd

    yield make
    for fd in made:
        os.close(fd)


@pytest.fixture
def huge_page():
    with huge_page_pool(), huge_page_file(fcntl.F_SEAL_SHRINK) as fd:
        yield fd


def test_only_a_file_sealed_against_shrinking_keeps_its_pages(make_file, tmp_path):
    assert keeps_its_pages(make_file(seals=fcntl.F_SEAL_SHRINK))
    assert keeps_its_pages(make_file(seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW))
    assert not keeps_its_pages(make_file())
    assert not keeps_its_pages(make_file(seals=fcntl.F_SEAL_GROW))
    with (tmp_path / "file").open("wb") as file:
        assert not keeps_its_pages(file.fileno())


def test_a_mapped_region_is_its_part_of_the_file(make_file):
    fd = make_file(seals=fcntl.F_SEAL_SHRINK)
    region = MappedRegion(0x5000, PAGE, fd, PAGE)
    os.pwrite(fd, b"from the guest", PAGE + 8)
    assert region.read(8, 14) == b"from the guest"
    assert len(region.view) == PAGE
    region.write(100, b"from the device")
    region.write(0, memoryview(b"\x34\x12"))
    region.write(3, b"\x78\x56")
    assert os.pread(fd, 15, PAGE + 100) == b"from the device"
    assert os.pread(fd, 5, PAGE) == b"\x34\x12\0\x78\x56"


def test_regions_of_one_file_share_one_mapping_that_goes_with_the_last(make_file):
    def mappings():
        with open("/proc/self/maps") as maps:
            return sum("memfd:guest" in line for line in maps) - before

    before = 0
    gc.collect()
    before = mappings()
    fd = make_file(seals=fcntl.F_SEAL_SHRINK)
    regions = [MappedRegion(at, PAGE, fd, at) for at in range(0, 4 * PAGE, PAGE)]
    assert mappings() == 1
    regions.append(MappedRegion(0, PAGE, fd, 0, writable=False))
    assert mappings() == 2
    regions[1].write(7, b"shared")
    assert regions[1].read(7, 6) == b"shared"
    regions.clear()
    gc.collect()
    assert mappings() == 0


def test_a_file_that_has_grown_is_mapped_again(make_file):
    fd = make_file(PAGE, fcntl.F_SEAL_SHRINK)
    first = MappedRegion(0, PAGE, fd, 0)
    os.ftruncate(fd, 2 * PAGE)
    second = MappedRegion(PAGE, PAGE, fd, PAGE)
    second.write(0, b"grown")
    assert os.pread(fd, 5, PAGE) == b"grown"
    assert first.read(0, 2) == b"\0\0"


def test_a_map_past_the_end_of_its_file_is_refused(make_file):
    fd = make_file(PAGE, fcntl.F_SEAL_SHRINK)
    with pytest.raises(PeerError, match="ends at offset 8192 of a file of 4096 bytes"):
        MappedRegion(0, PAGE, fd, PAGE)


def test_only_ordinary_pages_stay(make_file, huge_page):
    assert not keeps_its_pages(huge_page)
    assert has_huge_pages(huge_page)
    assert not has_huge_pages(make_file())


def test_huge_pages_are_reached_by_messages_unless_the_vmm_is_trusted(huge_page):
    told = []
    region = RegionMaker(None, trust_vmm=False, slow=told.append).make(0, PAGE, huge_page, 0, writable=True)
    assert isinstance(region, MessageRegion)
    assert "huge pages" in told[0]
    region = RegionMaker(None, trust_vmm=True, slow=told.append).make(0, PAGE, huge_page, PAGE, writable=True)
    region.write(0, b"from the device")
    assert region.read(0, 15) == b"from the device"
    assert len(told) == 1


def test_a_file_that_cannot_be_looked_at_is_the_vmms_fault(make_file, monkeypatch):
    def fail(fd):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(region, "has_huge_pages", fail)
    with pytest.raises(PeerError, match="Input/output error") as caught:
        RegionMaker(None, trust_vmm=False, slow=print).make(0, PAGE, make_file(), 0, writable=True)
    assert caught.value.errno == 5


def test_a_descriptor_needs_the_right_itself_whatever_else_is_mapped(make_file):
    fd = make_file(seals=fcntl.F_SEAL_SHRINK)
    first = MappedRegion(0, PAGE, fd, 0)
    for flags, writable in ((os.O_RDONLY, True), (os.O_WRONLY, True), (os.O_WRONLY, False), (os.O_PATH, False)):
        weaker = os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)
        with pytest.raises(PeerError, match="does not allow that access") as caught:
            MappedRegion(0, PAGE, weaker, 0, writable)
        assert caught.value.errno == 13
        os.close(weaker)
    readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    region = MappedRegion(0, PAGE, readable, 0, writable=False)
    os.close(readable)
    assert region.view.readonly
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x10)
    with pytest.raises(PeerError, match="sealed against writing"):
        MappedRegion(PAGE, PAGE, fd, PAGE)
    first.write(0, b"still writable")


def address_space():
    """Bytes of this process's address space, and its mappings."""
    with open("/proc/self/statm") as statm, open("/proc/self/maps") as maps:
        return int(statm.read().split()[0]) * PAGE, sum(1 for _ in maps)


def test_a_page_of_a_huge_file_takes_a_window_only(make_file):
    before, _ = address_space()
    files = [make_file(2 << 40, fcntl.F_SEAL_SHRINK) for _ in range(100)]
    regions = [MappedRegion(0, PAGE, fd, 1 << 40) for fd in files]
    after, _ = address_space()
    assert after - before <= 100 * mapping.WINDOW
    assert regions[99].read(0, 4) == bytes(4)


def test_scattered_pages_of_a_file_share_a_few_windows(make_file):
    fd = make_file(2 << 40, fcntl.F_SEAL_SHRINK)
    _, before = address_space()
    budget = mapping.MappingBudget()
    regions = [MappedRegion(0, PAGE, fd, at, budget=budget) for at in range(0, 2 << 40, 1 << 30)]
    _, after = address_space()
    assert len(regions) == 2048
    assert after - before < 20


def test_a_vmm_that_asks_for_more_than_its_part_is_served_by_system_calls(make_file):
    told = []
    maker = RegionMaker(None, trust_vmm=False, slow=told.append)
    before, _ = address_space()
    files = [make_file(1 << 40, fcntl.F_SEAL_SHRINK) for _ in range(200)]
    regions = [maker.make(0, 1 << 40, fd, 0, writable=True) for fd in files]
    after, _ = address_space()
    assert after - before <= mapping.MAPPED_BYTES
    assert [isinstance(region, MappedRegion) for region in regions] == [True] * 4 + [False] * 196
    regions[199].write(5, b"slower")
    assert os.pread(files[199], 6, 5) == b"slower"
    assert "no room" in told[0]
    # Another VMM has a part of its own, and this one its part again once it has unmapped.
    assert isinstance(RegionMaker(None, False, told.append).make(0, PAGE, files[199], 0, writable=True), MappedRegion)
    del regions
    gc.collect()
    assert isinstance(maker.make(0, 1 << 40, files[0], 0, writable=True), MappedRegion)


def test_many_files_leave_mappings_for_the_process(make_file):
    maker = RegionMaker(None, trust_vmm=False, slow=lambda text: None)
    _, before = address_space()
    regions = [
        maker.make(0, PAGE, make_file(PAGE, fcntl.F_SEAL_SHRINK), 0, writable=True)
        for _ in range(mapping.MAX_WINDOWS + 10)
    ]
    _, after = address_space()
    assert after - before <= mapping.MAX_WINDOWS + 5
    assert isinstance(regions[-1], FileRegion)


def test_the_process_keeps_address_space_for_itself(make_file):
    files = [make_file(4 << 40, fcntl.F_SEAL_SHRINK) for _ in range(20)]
    budgets = [mapping.MappingBudget() for _ in files]
    regions = []
    with pytest.raises(AddressSpaceFull):
        for fd, budget in zip(files, budgets, strict=True):
            regions.append(MappedRegion(0, 4 << 40, fd, 0, budget=budget))
    assert len(regions) * (4 << 40) <= mapping.PROCESS_BYTES
    assert len(regions) >= 14


def test_a_file_that_cannot_be_mapped_is_refused(make_file):
    fd = make_file(PAGE, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)
    with pytest.raises(PeerError, match="cannot be mapped") as caught:
        MappedRegion(0, PAGE, fd, 0)
    assert caught.value.errno == 1
    assert MappedRegion(0, PAGE, fd, 0, writable=False).read(0, 4) == bytes(4)


def test_a_file_region_reads_and_writes_the_file(make_file):
    fd = make_file()
    region = FileRegion(0x1000, PAGE, os.dup(fd), PAGE)
    assert region.view is None
    region.write(10, memoryview(b"data"))
    assert os.pread(fd, 4, PAGE + 10) == b"data"
    assert region.read(10, 4) == b"data"


def test_a_truncated_file_is_an_address_error_and_does_not_grow_again(make_file):
    fd = make_file()
    region = FileRegion(0x1000, 2 * PAGE, os.dup(fd), PAGE)
    os.ftruncate(fd, 2 * PAGE)
    region.write(0, b"still there")
    for access in (lambda: region.read(PAGE, 4), lambda: region.write(PAGE - 2, b"1234")):
        with pytest.raises(AddressError, match="gone: its file was truncated"):
            access()
    assert os.fstat(fd).st_size == 2 * PAGE


def test_a_store_that_comes_up_short_is_an_address_error(make_file, monkeypatch):
    region = FileRegion(0, PAGE, os.dup(make_file()), 0)
    monkeypatch.setattr(os, "pwrite", lambda *_: 1)
    with pytest.raises(AddressError, match="cannot be stored"):
        region.write(0, b"1234")


def test_a_file_region_closes_its_descriptor(make_file):
    fd = os.dup(make_file())
    region = FileRegion(0, PAGE, fd, 0)
    del region
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_message_region_asks_for_guest_addresses():
    class Access:
        def __init__(self):
            self.asked = []

        def dma_read(self, address, length):
            self.asked.append((address, length))
            return bytes(length)

        def dma_write(self, address, data):
            self.asked.append((address, bytes(data)))

    access = Access()
    region = MessageRegion(0x8000, PAGE, access)
    assert region.read(16, 4) == bytes(4)
    region.write(32, b"abc")
    assert access.asked == [(0x8010, 4), (0x8020, b"abc")]
