"""A virtqueue against a model of it: whatever driver and device do, each chain is used once, in order, whole."""

from collections import deque

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.ring_builder import KINDS, GuestMemory, RingBuilder, join, unsignalled

from virtserial.memory.state import StateMemory
from virtserial.memory.table import MemoryTable
from virtserial.virtio.queue import Virtqueue
from virtserial.virtio.ring.record import QueueRecord

SIZE = 8


class Model(RuleBasedStateMachine):
    """A transmitq whose host end takes any number of bytes at a time."""

    kind = "mapped"

    @initialize(start=st.sampled_from((0, 1, 0x7FFC, 0xFFF8, 0xFFFF)), event_idx=st.booleans())
    def set_up(self, start, event_idx):
        self.memory = GuestMemory(self.kind, 1 << 19)
        self.table = MemoryTable()
        self.memory.map_into(self.table)
        self.state = StateMemory(bytearray(64 + QueueRecord.SIZE))
        self.queue = Virtqueue(5, SIZE, self.state)
        self.queue.record.position = self.queue.record.signalled = start
        self.ring = RingBuilder(self.memory, SIZE, event_idx)
        self.ring.idx = self.ring.seen = self.ring._published = start
        self.ring.set_avail_idx(start)
        self.memory.write(self.ring.used + 2, start.to_bytes(2, "little"))
        join(self.queue, self.ring, self.table)
        self.armed = False
        self.waiting = deque()
        self.returned = deque()
        self.free = SIZE
        self.sent = bytearray()
        self.taken = bytearray()
        self.serial = 0

    @precondition(lambda self: self.free)
    @rule(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4), shape=st.integers(0, 4))
    def make_available(self, lengths, shape):
        table = None if shape > len(lengths) or shape == 0 else shape
        needed = len(lengths) if table is None else len(lengths) - table + 1
        if needed > self.free:
            return
        parts = []
        for length in lengths:
            self.serial += 1
            parts.append(bytes((self.serial + k) & 0xFF for k in range(length)))
        head = self.ring.add(parts, table=table)
        self.free -= needed
        self.waiting.append((head, needed, sum(lengths)))
        self.sent += b"".join(parts)
        if self.armed:
            assert self.ring.wants_bell(), "the device had asked to hear of it"
            self.armed = False
        if self.memory._next > 0x70000:
            self.memory._next = 0x40000 - 5

    @rule(chains=st.integers(1, 10), budget=st.integers(0, 200), room=st.integers(0, 200))
    def serve(self, chains, budget, room):
        queue = self.queue
        batch = queue.ring.readable_chains(chains, budget)
        assert batch.heads == [head for head, _, _ in self.waiting][: len(batch.heads)]
        assert bool(batch.heads) is bool(self.waiting)
        data = b"".join(batch.views)[:room]
        self.taken += data
        done = queue.record.offset + len(data)
        ready = [head for head, end in zip(batch.heads, batch.ends, strict=True) if end <= done]
        queue.ring.give_back(ready, None, done - (batch.ends[len(ready) - 1] if ready else 0))
        for _ in ready:
            self.returned.append(self.waiting.popleft())
        self.armed = False

    @rule()
    def arm(self):
        self.armed = not self.queue.ring.arm()
        assert self.armed is not bool(self.waiting)
        self.ring._published = self.ring.idx

    @rule(after=st.integers(0, 3))
    def signal(self, after):
        wanted = (self.queue.record.position - 1 - after) & 0xFFFF
        self.ring.set_used_event(wanted)
        count = unsignalled(self.queue)
        expected = after < count if self.ring.event_idx else count > 0
        assert self.queue.ring.take_signal() is expected
        assert unsignalled(self.queue) == 0

    @rule()
    def harvest(self):
        for used in self.ring.harvest():
            head, needed, _ = self.returned.popleft()
            assert (used.head, used.length) == (head, 0)
            self.free += needed
        assert not self.returned

    @rule()
    def succeed(self):
        self.queue = Virtqueue(5, SIZE, StateMemory(self.state.u8))
        self.queue.attach(self.table)

    @invariant()
    def bytes_are_in_order_and_none_is_twice(self):
        if hasattr(self, "queue"):
            assert self.sent.startswith(self.taken)
            assert self.queue.ring.waiting() == len(self.waiting)
            left = sum(length for _, _, length in self.waiting) - self.queue.record.offset
            assert len(self.taken) + left == len(self.sent)

    def teardown(self):
        if hasattr(self, "memory"):
            self.memory.close()


@pytest.mark.parametrize("kind", KINDS)
def test_any_driver_any_device(kind):
    machine = type("Model", (Model,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
