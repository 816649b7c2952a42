"""A Virtqueue and its ring, over every kind of guest memory."""

import pytest
from support.ring_builder import KINDS, GuestMemory, RingBuilder, join

from virtserial.memory.state import StateMemory
from virtserial.memory.table import MemoryTable
from virtserial.virtio.queue import Virtqueue
from virtserial.virtio.ring.record import QueueRecord


@pytest.fixture(params=KINDS)
def memory(request):
    memory = GuestMemory(request.param)
    yield memory
    memory.close()


class QueueHouse:
    """Virtqueue and driver's ring over the same memory."""

    def __init__(self, memory, size=16, event_idx=False, start=0):
        self.memory = memory
        self.table = MemoryTable()
        memory.map_into(self.table)
        self.state = StateMemory(bytearray(64 + QueueRecord.SIZE))
        self.queue = Virtqueue(5, 64, self.state)
        self.queue.record.position = self.queue.record.signalled = start
        self.ring = RingBuilder(memory, size, event_idx)
        self.ring.idx = self.ring.seen = self.ring._published = start
        self.ring.set_avail_idx(start)
        memory.write(self.ring.used + 2, start.to_bytes(2, "little"))
        join(self.queue, self.ring, self.table)


@pytest.fixture
def house(memory):
    return QueueHouse(memory)


@pytest.fixture
def make_house(memory):
    return lambda **options: QueueHouse(memory, **options)
