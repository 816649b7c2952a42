"""A packed virtqueue written descriptor by descriptor, so that a test can break every rule of the specification."""

from __future__ import annotations

from support.ring_builder import BASE, DESCRIPTOR, Used

from virtserial.memory.state import StateMemory
from virtserial.memory.table import MemoryTable
from virtserial.virtio.queue import Virtqueue
from virtserial.virtio.ring.packed.driver import PackedLayout, PackedQueue
from virtserial.virtio.ring.record import QueueRecord

AVAIL, USED = 0x80, 0x8000


class PackedHouse:
    """A device's queue and the ring of its driver, in one memory; `ring` is at its begin, of `size` descriptors."""

    def __init__(self, memory, size=8, event_idx=False, indirect=True):
        self.memory = memory
        self.size = size
        self.table = MemoryTable()
        memory.map_into(self.table)
        self.desc = memory.ring_address()
        self.driver_event = self.desc + 16 * size
        self.device_event = self.driver_event + 4
        self.state = StateMemory(bytearray(64 + QueueRecord.SIZE))
        self.queue = Virtqueue(5, 64, self.state)
        self.queue.set_packed_size(size)
        self.queue.desc_address = self.desc
        self.queue.avail_address, self.queue.used_address = self.driver_event, self.device_event
        self.queue.enable(event_idx, indirect, True)
        self.next = 0

    def attach(self):
        self.queue.attach(self.table)
        return self.queue.ring

    def describe(self, address, length, flags=0, identifier=None):
        """Write the next descriptor, available; return its buffer id."""
        lap, index = divmod(self.next, self.size)
        self.next += 1
        identifier = index if identifier is None else identifier
        flags |= USED if lap % 2 else AVAIL
        self.memory.write(self.desc + 16 * index, DESCRIPTOR.pack(address, length, identifier, flags))
        return identifier

    def send(self, data):
        """A chain of one descriptor that the device reads."""
        return self.describe(self.memory.buffer(data), len(data))

    def descriptor(self, index):
        return DESCRIPTOR.unpack(self.memory.read(self.desc + 16 * index, 16))

    def set_driver_event(self, flags, position=0):
        self.memory.write(self.driver_event, (flags << 16 | position).to_bytes(4, "little"))

    def get_device_event(self):
        """(flags, position) by which the device says when it wants a doorbell."""
        value = int.from_bytes(self.memory.read(self.device_event, 4), "little")
        return value >> 16, value & 0xFFFF


class PackedRingBuilder:
    """A packed queue of a driver that keeps the rules, in the words of RingBuilder."""

    def __init__(self, memory, size=16, event_idx=False):
        self.memory = memory
        self.desc = memory.ring_address() - 16 * size & ~15
        layout = PackedLayout.of(size)
        view = memory.view[self.desc - BASE : self.desc - BASE + layout.length]
        self._queue = PackedQueue(view, self.desc, size, event_idx=event_idx)
        self.avail, self.used = self._queue.avail_address, self._queue.used_address
        self._wants_bell = False

    def add(self, readable=(), writable=()):
        """Make one chain available: `readable` are bytes, `writable` lengths."""
        sent = [(self.memory.buffer(data), len(data)) for data in readable]
        posted = [(self.memory.allocate(length), length) for length in writable]
        self._queue.add(sent, posted, posted)
        self._wants_bell |= self._queue.publish()

    def wants_bell(self):
        """Whether the device asked for a doorbell for what was made available since the last call."""
        wanted, self._wants_bell = self._wants_bell, False
        return wanted

    def harvest(self):
        """Return what the device has used since the last call."""
        done = []
        for posted, length in self._queue.harvest():
            data = b"".join(self.memory.read(*part) for part in posted)[:length]
            done.append(Used(None, length, data))
        return done
