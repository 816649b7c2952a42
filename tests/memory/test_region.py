"""Regions: what a map gives, on sealed files, files that may shrink, and no file."""

import fcntl
import gc
import os

import pytest

from virtserial.errors import AddressError, PeerError
from virtserial.memory.region import FileRegion, MappedRegion, MessageRegion, cannot_shrink

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


def test_only_a_file_sealed_against_shrinking_cannot_shrink(make_file, tmp_path):
    assert cannot_shrink(make_file(seals=fcntl.F_SEAL_SHRINK))
    assert cannot_shrink(make_file(seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW))
    assert not cannot_shrink(make_file())
    assert not cannot_shrink(make_file(seals=fcntl.F_SEAL_GROW))
    with (tmp_path / "file").open("wb") as file:
        assert not cannot_shrink(file.fileno())


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
