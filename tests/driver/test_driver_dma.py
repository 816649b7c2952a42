"""DMA memory: what the device is given, and what it may reach by messages."""

from __future__ import annotations

import fcntl
import os

import pytest

from virtserial.driver.dma import FIRST_IOVA, PAGE_SIZE, DmaMemory
from virtserial.errors import PeerError, StateError


class Mapper:
    def __init__(self):
        self.maps = []
        self.seals = []
        self.refuses = False

    def dma_map(self, iova, size, *, fd=None, offset=0):
        if self.refuses:
            raise PeerError("no more maps", 28)
        self.maps.append((iova, size, fd))
        self.seals.append(None if fd is None else fcntl.fcntl(fd, fcntl.F_GET_SEALS))

    def dma_unmap(self, iova, size):
        self.maps = [entry for entry in self.maps if entry[:2] != (iova, size)]


@pytest.fixture
def mapper():
    return Mapper()


def test_memory_is_mapped_when_it_is_needed_and_sealed_against_shrinking(mapper):
    memory = DmaMemory(mapper, region_size=PAGE_SIZE * 4)
    assert mapper.maps == []
    first, second = memory.allocate(PAGE_SIZE), memory.allocate(100)
    assert (first.address, second.address) == (FIRST_IOVA, FIRST_IOVA + PAGE_SIZE)
    assert [entry[:2] for entry in mapper.maps] == [(FIRST_IOVA, 4 * PAGE_SIZE)]
    assert mapper.seals[0] & fcntl.F_SEAL_SHRINK
    first.view[:5] = b"hello"
    assert os.pread(mapper.maps[0][2], 5, 0) == b"hello"
    memory.close()


def test_another_region_is_mapped_when_one_is_used_up_even_for_large_pieces(mapper):
    memory = DmaMemory(mapper, region_size=PAGE_SIZE)
    memory.allocate(PAGE_SIZE)
    large = memory.allocate(3 * PAGE_SIZE + 1)
    assert large.address == FIRST_IOVA + PAGE_SIZE
    assert len(large.view) == 3 * PAGE_SIZE + 1
    assert [entry[:2] for entry in mapper.maps] == [
        (FIRST_IOVA, PAGE_SIZE),
        (FIRST_IOVA + PAGE_SIZE, 4 * PAGE_SIZE),
    ]
    memory.close()


def test_unsealed_and_unshared_memory_are_handed_over_as_such(mapper):
    unsealed, unshared = DmaMemory(mapper, sealed=False), DmaMemory(mapper, shared=False)
    unsealed.allocate(1)
    unshared.allocate(1)
    assert mapper.seals == [0, None]
    unsealed.close()
    unshared.close()


def test_messages_reach_the_memory_and_nothing_else(mapper):
    memory = DmaMemory(mapper, shared=False, region_size=PAGE_SIZE)
    buffer = memory.allocate(PAGE_SIZE)
    memory.write(buffer.address + 10, b"index")
    memory.write(buffer.address + 2, b"\x34\x12")
    assert bytes(buffer.view[:15]) == b"\0\0\x34\x12" + bytes(6) + b"index"
    assert memory.read(buffer.address + 10, 5) == b"index"
    for address, length in (
        (buffer.address - 1, 2),
        (buffer.address + PAGE_SIZE - 1, 2),
        (0, 1),
        ((1 << 64) - 1, 1),
        (buffer.address, PAGE_SIZE + 1),
    ):
        with pytest.raises(PeerError, match="no DMA memory"):
            memory.read(address, length)
        with pytest.raises(PeerError, match="no DMA memory"):
            memory.write(address, bytes(length))
    memory.close()


def test_released_memory_is_unmapped_closed_and_begun_anew(mapper):
    memory = DmaMemory(mapper, region_size=PAGE_SIZE)
    first = memory.allocate(PAGE_SIZE)
    memory.allocate(PAGE_SIZE)
    fds = [entry[2] for entry in mapper.maps]
    memory.release()
    assert mapper.maps == []
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    again = memory.allocate(PAGE_SIZE)
    assert again.address > first.address, "an address is not used twice: a late access of the old device finds nothing"
    assert bytes(again.view) == bytes(PAGE_SIZE)
    memory.close()


def test_a_refused_map_leaves_no_descriptor_behind(mapper):
    memory = DmaMemory(mapper)
    before = sorted(os.listdir("/proc/self/fd"))
    mapper.refuses = True
    with pytest.raises(PeerError, match="no more maps"):
        memory.allocate(1)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert memory.regions == []


@pytest.mark.parametrize(("size", "alignment"), [(0, 16), (-1, 16), (1, 0), (1, 3), (1, 2 * PAGE_SIZE)])
def test_impossible_pieces_are_a_mistake(mapper, size, alignment):
    with pytest.raises(StateError):
        DmaMemory(mapper).allocate(size, alignment)
