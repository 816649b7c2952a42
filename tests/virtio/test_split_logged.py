"""While writes are logged, every page of guest memory that the device changes is in the log."""

from __future__ import annotations

import pytest
from support.ring_builder import BASE, KINDS, PAGE, GuestMemory, RingBuilder

from virtserial.memory.dirty_log import DirtyLog
from virtserial.memory.state import HEADER_SIZE, StateMemory
from virtserial.virtio.device import DeviceRecord, VirtioDevice
from virtserial.virtio.features import TRANSPORT_FEATURES
from virtserial.virtio.ring.record import QueueRecord

SIZE = 16


class Logged:
    """A device with one queue whose writes are logged."""

    def __init__(self, kind, event_idx):
        self.memory = GuestMemory(kind)
        state = StateMemory(bytearray(HEADER_SIZE + DeviceRecord.SIZE + QueueRecord.SIZE))
        self.device = VirtioDevice(state, 3, [SIZE], TRANSPORT_FEATURES)
        self.memory.map_into(self.device.memory)
        self.ring = RingBuilder(self.memory, SIZE, event_idx)
        self.queue = self.device.queues[0]
        self.queue.size = SIZE
        self.queue.desc_address, self.queue.avail_address = self.ring.desc, self.ring.avail
        self.queue.used_address = self.ring.used
        self.queue.enable(event_idx, True)
        self.queue.attach(self.device.memory)
        self.log = DirtyLog()
        self.device.log_writes(self.log)

    def pages(self):
        return [bytes(self.memory.view[at : at + PAGE]) for at in range(0, self.memory.size, PAGE)]

    def take(self):
        bits = int.from_bytes(self.log.take(BASE, self.memory.size, PAGE), "little")
        return {page for page in range(self.memory.size // PAGE) if bits >> page & 1}

    def fill(self, count):
        """Write into the waiting chains, as a port does."""
        batch = self.queue.ring.writable_chains(8, 1 << 20)
        left = count
        for view in batch.views:
            part = min(left, len(view))
            view[:part] = b"\xa5" * part
            left -= part
        self.queue.ring.store(batch, count)
        starts = [0, *batch.ends]
        lengths = [max(0, min(end, count) - start) for start, end in zip(starts, batch.ends, strict=False)]
        self.queue.ring.give_back(batch.heads, lengths)
        self.queue.ring.arm()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["flags", "event_idx"])
def logged(request, kind):
    logged = Logged(kind, request.param)
    yield logged
    logged.memory.close()


@pytest.mark.parametrize("table", [None, 2], ids=["direct", "indirect"])
@pytest.mark.parametrize("lengths", [[100], [3 * PAGE, 50], [10, PAGE, 10]])
def test_every_page_that_changes_is_logged(logged, lengths, table):
    for length in lengths:
        logged.ring.add(writable=[length // 2, length - length // 2], table=table)
    before = logged.pages()
    logged.fill(sum(lengths))
    changed = {page for page, (old, new) in enumerate(zip(before, logged.pages(), strict=True)) if old != new}
    dirty = logged.take()
    assert changed
    assert changed <= dirty
    assert len(dirty) <= len(changed) + 2, "the used ring may be logged without a change"
    assert logged.take() == set()


def test_what_was_not_written_is_not_logged(logged):
    logged.ring.add(writable=[64 * PAGE])
    logged.fill(10)
    assert len(logged.take()) <= 4


def test_without_a_log_the_ring_is_the_plain_one(logged):
    assert type(logged.queue.ring._access).__name__ == "LoggedRing"
    logged.device.log_writes(None)
    assert type(logged.queue.ring._access).__name__ in ("MappedRing", "RemoteRing")


def test_a_driver_that_makes_a_loop_of_a_chain_ends_the_marking(logged):
    logged.ring.add(writable=[16, 16])
    batch = logged.queue.ring.writable_chains(1, 1 << 20)
    address = logged.ring.desc
    logged.memory.write(address + 16 * batch.heads[0] + 12, (1 | 2).to_bytes(2, "little"))
    logged.memory.write(address + 16 * batch.heads[0] + 14, batch.heads[0].to_bytes(2, "little"))
    logged.queue.ring.give_back(batch.heads, [1 << 31])
    assert logged.take()
