"""A packed virtqueue, its device's side and its driver's, against a model, with workers killed at any store.

Whatever driver and device do, and wherever a worker dies: each chain is used once, in order, with its own length, and
the driver never sees a chain that the device does not know to be used.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress

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
from support.ring_builder import BASE, KINDS, PAGE, GuestMemory

from virtserial.memory.dirty_log import DirtyLog
from virtserial.memory.state import StateMemory
from virtserial.memory.table import MemoryTable
from virtserial.virtio.queue import Virtqueue
from virtserial.virtio.ring.packed import access as device_access
from virtserial.virtio.ring.packed.driver import PackedLayout, PackedQueue
from virtserial.virtio.ring.record import QueueRecord


class Killed(BaseException):
    """The worker dies here."""


class Fuse:
    """Ends the worker before its nth store."""

    left = -1

    def burn(self):
        if self.left == 0:
            raise Killed
        self.left -= 1


class FusedQuads:
    """Stores of used descriptors, each of which may be the last."""

    def __init__(self, quads, fuse):
        self._quads, self._fuse = quads, fuse

    def __setitem__(self, at, value):
        if not isinstance(at, slice):
            self._fuse.burn()
            self._quads[at] = value
            return
        for index, item in zip(range(*at.indices(len(self._quads))), value, strict=True):
            self._fuse.burn()
            self._quads[index] = item


class FusedRecord:
    """A queue's record, each of whose stores may be the last."""

    def __init__(self, record, fuse):
        object.__setattr__(self, "_record", record)
        object.__setattr__(self, "_fuse", fuse)

    def __getattr__(self, name):
        return getattr(self._record, name)

    def __setattr__(self, name, value):
        self._fuse.burn()
        setattr(self._record, name, value)


class Model(RuleBasedStateMachine):
    """A queue of both directions' chains; the device fills or sends as many bytes as it likes."""

    kind = "mapped"
    writable = False

    @initialize(size=st.sampled_from((1, 3, 4, 7, 8)), event_idx=st.booleans(), logged=st.booleans())
    def set_up(self, size, event_idx, logged):
        self.memory = GuestMemory(self.kind, 1 << 19)
        self.table = MemoryTable()
        self.memory.map_into(self.table)
        if logged:
            self.table.log = DirtyLog()
        # The ring lies over the end of a page.
        start = 2 * PAGE - 32
        layout = PackedLayout.of(size)
        view = self.memory.view[start : start + layout.length]
        self.driver = PackedQueue(view, BASE + start, size, event_idx=event_idx)
        self.size = size
        self.state = StateMemory(bytearray(64 + QueueRecord.SIZE))
        self.queue = Virtqueue(5, 8, self.state)
        self.queue.set_packed_size(size)
        self.queue.desc_address = self.driver.desc_address
        self.queue.avail_address, self.queue.used_address = self.driver.avail_address, self.driver.used_address
        self.queue.enable(event_idx, True, True)
        self.queue.attach(self.table)
        self.added = deque()
        self.waiting = deque()
        self.returned = deque()
        self.armed = False
        self.wanted = None
        self.number = 0
        self.place = PAGE * 8

    def _allocate(self, length):
        self.place = PAGE * 8 if self.place + length > len(self.memory.view) else self.place
        self.place += length
        return BASE + self.place - length

    @precondition(lambda self: self.driver.free)
    @rule(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4), indirect=st.booleans())
    def add(self, lengths, indirect):
        if len(lengths) > (self.size if indirect else self.driver.free):
            return
        parts = []
        for length in lengths:
            address = self._allocate(length)
            self.number += 1
            self.memory.write(address, bytes((self.number + k) & 0xFF for k in range(length)))
            parts.append((address, length))
        readable, writable = ((), parts) if self.writable else (parts, ())
        if indirect:
            at = self._allocate(16 * len(parts)) - BASE
            table = self.memory.view[at : at + 16 * len(parts)]
            self.driver.add_indirect(table, BASE + at, readable, writable, self.number)
        else:
            self.driver.add(readable, writable, self.number)
        self.added.append((self.number, parts))

    @rule()
    def publish(self):
        rings = self.driver.publish()
        if self.added and self.armed:
            assert rings, "the device had asked to hear of it"
            self.armed = False
        self.waiting += self.added
        self.added.clear()

    def _content(self, chains):
        return b"".join(self.memory.read(*part) for _, parts in chains for part in parts)

    def _serve(self, chains, budget, room):
        """Look, and give back; return what is given back, and the bytes of the last chain that remain served."""
        ring = self.queue.ring
        offset = ring.offset
        batch = ring.writable_chains(chains, budget) if self.writable else ring.readable_chains(chains, budget)
        assert bool(batch.heads) is bool(self.waiting)
        seen = list(self.waiting)[: len(batch.heads)]
        sizes = [sum(length for _, length in parts) for _, parts in seen]
        data = b"".join(batch.views)
        if not self.writable:
            assert self._content(seen)[offset:].startswith(data)
        count = min(room, len(data))
        if not self.writable:
            done = offset + count
            used = sum(end <= done for end in batch.ends)
            rest = done - (batch.ends[used - 1] if used else 0)
            return seen[:used], [0] * used, rest, (batch.heads[:used], None, rest)
        if not count:
            return [], [], 0, ([], [])
        self.number += 1
        for view in batch.views:
            view[:] = bytes([self.number & 0xFF]) * len(view)
        ring.store(batch, count)
        left, lengths = count, []
        while left:
            lengths.append(min(left, sizes[len(lengths)]))
            left -= lengths[-1]
        return seen[: len(lengths)], lengths, 0, (batch.heads[: len(lengths)], lengths)

    @rule(chains=st.integers(1, 10), budget=st.integers(1, 200), room=st.integers(0, 200))
    def serve(self, chains, budget, room):
        before = bytes(self.memory.view) if self.table.log else b""
        used, lengths, rest, arguments = self._serve(chains, budget, room)
        self.queue.ring.give_back(*arguments)
        self._given(used, lengths)
        assert self.queue.record.offset == self.queue.ring.offset == rest
        if self.table.log:
            for at in range(0, len(before), PAGE):
                if self.memory.view[at : at + PAGE] != before[at : at + PAGE]:
                    assert self.table.log.take(BASE + at, PAGE, PAGE)[0] & 1, f"page {at:#x} was written"

    def _given(self, used, lengths):
        for chain, length in zip(used, lengths, strict=True):
            assert self.waiting.popleft() == chain
            self.returned.append((chain[0], length))
        if used:
            self.armed = False

    @rule(chains=st.integers(1, 10), room=st.integers(1, 200), stores=st.integers(0, 14))
    def be_killed_while_giving_back(self, chains, room, stores):
        """At any store: then either nothing has happened, or all of it has."""
        used, lengths, rest, arguments = self._serve(chains, 1 << 20, room)
        ring, before = self.queue.ring, self.queue.record.progress
        fuse = Fuse()
        ring._record = FusedRecord(ring._record, fuse)
        raw = getattr(ring._access, "_ring", ring._access)
        if isinstance(raw, device_access.MappedRing):
            raw._quads = FusedQuads(raw._quads, fuse)
        else:
            write = self.table.write
            self.table.write = lambda *words: (fuse.burn(), write(*words))
        fuse.left = stores
        with suppress(Killed):
            ring.give_back(*arguments)
        self.table.__dict__.pop("write", None)
        committed = self.queue.record.progress != before
        if not committed:
            assert not self.driver._is_used(self.driver._used) or self.returned
        fuse.left = -1
        self.succeed()
        if committed:
            self._given(used, lengths)
            assert self.queue.ring.offset == rest

    @rule()
    def succeed(self):
        self.queue = Virtqueue(5, 8, StateMemory(self.state.u8))
        self.queue.attach(self.table)

    @rule(ahead=st.integers(0, 3))
    def arm(self, ahead):
        came = self.queue.ring.arm(ahead)
        assert came is bool(self.waiting)
        self.armed = not came and ahead == 0

    @rule()
    def disarm(self):
        self.queue.ring.disarm()
        self.armed = False

    @rule(after=st.integers(1, 8))
    def ask_for_an_interrupt(self, after):
        used = self.driver.request_interrupt(after)
        assert used is (len(self.returned) >= after)
        self.wanted = None if used else after

    @rule()
    def signal(self):
        """If as many chains as the driver named have come back, it is interrupted now or was before."""
        signals = self.queue.ring.take_signal()
        if self.wanted is not None and len(self.returned) >= self.wanted:
            assert signals or not self.driver._event_idx
            self.wanted = None

    @rule()
    def harvest(self):
        assert self.driver.harvest() == list(self.returned)
        self.returned.clear()
        self.wanted = None

    @invariant()
    def what_waits_is_known(self):
        if hasattr(self, "queue"):
            assert (self.queue.ring.waiting() > 0) is bool(self.waiting)
            assert self.queue.record.began == self.queue.record.position
            assert self.driver.in_flight == len(self.added) + len(self.waiting) + len(self.returned)

    def teardown(self):
        if hasattr(self, "memory"):
            self.memory.close()


@pytest.mark.parametrize("writable", [False, True], ids=["transmitq", "receiveq"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_driver_any_device_killed_anywhere(kind, writable):
    machine = type("Model", (Model,), {"kind": kind, "writable": writable})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=40,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("stores", range(12))
@pytest.mark.parametrize(
    ("shape", "size"), [("direct", 1), ("direct", 4), ("in two", 4), ("indirect", 1), ("indirect", 4)]
)
@pytest.mark.parametrize("writable", [False, True], ids=["transmitq", "receiveq"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_that_is_half_marked(kind, writable, shape, size, stores):
    """Where a ring is not mapped, the first chain of a batch is marked in two steps: a successor takes the second."""
    model = type("Model", (Model,), {"kind": kind, "writable": writable})()
    model.set_up(size=size, event_idx=False, logged=False)
    try:
        lengths = [5, 9] if shape == "in two" else [9]
        for _ in range(model.size // len(lengths)):
            model.add(lengths=lengths, indirect=shape == "indirect")
        model.publish()
        # Not even all of the last chain.
        model.be_killed_while_giving_back(chains=4, room=9 * size - 4, stores=stores)
        model.what_waits_is_known()
        model.serve(4, 1000, 1000)
        model.harvest()
    finally:
        model.teardown()
