"""Guest memory and split virtqueues written byte by byte, so that a test can break every rule of the specification.

`GuestMemory` comes in four kinds, and the device must not behave differently on any of them:

* mapped: one file that cannot shrink, reached by views;
* spanning: the same in page-sized maps, as behind an IOMMU, with every ring crossing from one map to the next;
* file: a file that may shrink, reached by pread and pwrite;
* message: no file, reached by messages.
"""

import fcntl
import mmap
import os
from struct import Struct
from typing import NamedTuple

from virtserial.memory.region import FileRegion, MappedRegion, MessageRegion

KINDS = ("mapped", "spanning", "file", "message")
PAGE = 4096
BASE = 0x4000_0000

NEXT, WRITE, INDIRECT = 1, 2, 4
DESCRIPTOR = Struct("<QIHH")
NO_INTERRUPT = 1


class GuestMemory:
    """`size` bytes at guest address BASE; what a device maps comes from `regions`."""

    def __init__(self, kind="mapped", size=1 << 20):
        self.kind = kind
        self.size = size
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        if kind in ("mapped", "spanning"):
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.view = memoryview(mmap.mmap(self.fd, size))
        self._rings = 0
        self._next = 0x40000 - 5
        self.messages = 0

    def regions(self):
        if self.kind == "mapped":
            return [MappedRegion(BASE, self.size, self.fd, 0)]
        if self.kind == "spanning":
            return [MappedRegion(BASE + at, PAGE, self.fd, at) for at in range(0, self.size, PAGE)]
        if self.kind == "file":
            return [FileRegion(BASE, self.size, os.dup(self.fd), 0)]
        return [MessageRegion(BASE, self.size, self)]

    def map_into(self, table):
        for region in self.regions():
            table.map(region)

    # The VMM's side of memory by message

    def dma_read(self, address, length):
        self.messages += 1
        return self.read(address, length)

    def dma_write(self, address, data):
        self.messages += 1
        self.write(address, bytes(data))

    # The guest's own accesses

    def read(self, address, length):
        return bytes(self.view[address - BASE : address - BASE + length])

    def write(self, address, data):
        self.view[address - BASE : address - BASE + len(data)] = data

    def ring_address(self):
        """An address for the next ring, 64 bytes before the end of a page."""
        self._rings += 1
        return BASE + self._rings * PAGE - 64

    def allocate(self, length):
        """An address for a buffer, of any alignment."""
        address = self._next
        self._next += length
        assert self._next <= self.size, "the test's guest memory is used up"
        return BASE + address

    def buffer(self, data):
        """A buffer that holds `data`."""
        address = self.allocate(len(data))
        self.write(address, data)
        return address

    def close(self):
        os.close(self.fd)


class Used(NamedTuple):
    """An element of the used ring, and what the chain's writable buffers hold up to its length."""

    head: int
    length: int
    data: bytes


def split_places(start, size, alignment=4):
    """Descriptor table, available ring and used ring of a split virtqueue in one block, as drivers lay them out."""
    avail = start + 16 * size
    return start, avail, (avail + 6 + 2 * size + alignment - 1) & -alignment


class RingBuilder:
    """A split virtqueue as a driver writes it; `places` says where its three areas are, if the memory does not."""

    def __init__(self, memory, size=16, event_idx=False, places=None):
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.desc, self.avail, self.used = places or split_places(memory.ring_address(), size)
        self.idx = 0
        self.seen = 0
        self.next_free = 0
        self._writable = {}
        self._published = 0

    # Raw fields

    def _get16(self, address):
        return int.from_bytes(self.memory.read(address, 2), "little")

    def _put16(self, address, value):
        self.memory.write(address, (value & 0xFFFF).to_bytes(2, "little"))

    def describe(self, index, address, length, flags=0, following=0):
        """Write a descriptor."""
        self.memory.write(self.desc + 16 * index, DESCRIPTOR.pack(address, length, flags, following))

    def table(self, *entries):
        """Write an indirect table, return its address and length."""
        data = b"".join(DESCRIPTOR.pack(*entry) for entry in entries)
        return self.memory.buffer(data), len(data)

    def offer(self, *heads):
        """Make heads available, whatever they are."""
        for head in heads:
            self._put16(self.avail + 4 + 2 * (self.idx % self.size), head)
            self.idx = (self.idx + 1) & 0xFFFF
        self.set_avail_idx(self.idx)

    def set_avail_idx(self, value):
        self._put16(self.avail + 2, value)

    def set_avail_flags(self, value):
        self._put16(self.avail, value)

    def set_used_event(self, value):
        self._put16(self.avail + 4 + 2 * self.size, value)

    @property
    def used_idx(self):
        return self._get16(self.used + 2)

    @property
    def used_flags(self):
        return self._get16(self.used)

    @property
    def avail_event(self):
        return self._get16(self.used + 4 + 8 * self.size)

    def used_element(self, position):
        at = self.used + 4 + 8 * (position % self.size)
        data = self.memory.read(at, 8)
        return int.from_bytes(data[:4], "little"), int.from_bytes(data[4:], "little")

    # A driver that keeps the rules

    def add(self, readable=(), writable=(), table=None):
        """Make one chain available: `readable` are bytes, `writable` lengths; return its head.

        table: how many of the buffers stand in an indirect table at the chain's end; None for a direct chain.
        """
        parts = [(self.memory.buffer(data), len(data), 0) for data in readable]
        parts += [(self.memory.allocate(length), length, WRITE) for length in writable]
        direct = len(parts) if table is None else len(parts) - table
        count = direct + (table is not None)
        indices = [(self.next_free + k) % self.size for k in range(count)]
        self.next_free = (self.next_free + count) % self.size
        for k, (address, length, flags) in enumerate(parts[:direct]):
            last = k == count - 1
            self.describe(indices[k], address, length, flags | (0 if last else NEXT), 0 if last else indices[k + 1])
        if table is not None:
            behind = parts[direct:]
            entries = [
                (address, length, flags | (NEXT if k + 1 < len(behind) else 0), k + 1)
                for k, (address, length, flags) in enumerate(behind)
            ]
            self.describe(indices[-1], *self.table(*entries), INDIRECT)
        self._writable[indices[0]] = [(address, length) for address, length, flags in parts if flags]
        self.offer(indices[0])
        return indices[0]

    def wants_bell(self):
        """Whether the device asked for a doorbell for what was made available since the last call (2.7.10)."""
        old, self._published = self._published, self.idx
        if self.event_idx:
            return (self.idx - self.avail_event - 1) & 0xFFFF < (self.idx - old) & 0xFFFF
        return not self.used_flags & 1

    def harvest(self):
        """Return what the device has used since the last call."""
        done = []
        while self.seen != self.used_idx:
            head, length = self.used_element(self.seen)
            self.seen = (self.seen + 1) & 0xFFFF
            data, left = b"", length
            for address, size in self._writable.get(head, ()):
                data += self.memory.read(address, min(size, left))
                left -= min(size, left)
            done.append(Used(head, length, data))
        return done


def join(queue, ring, memory):
    """Give a Virtqueue the ring's addresses and attach it."""
    queue.size = ring.size
    queue.desc_address, queue.avail_address, queue.used_address = ring.desc, ring.avail, ring.used
    queue.enable(ring.event_idx, True)
    queue.attach(memory)


def unsignalled(queue):
    """Chains that a split queue returned since its driver was last considered for an interrupt."""
    return (queue.record.position - queue.record.signalled) & 0xFFFF
