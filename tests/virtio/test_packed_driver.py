"""The driver's side of a packed virtqueue, against a device that is written here, and lies."""

from __future__ import annotations

import pytest

from virtserial.errors import PeerError, StateError
from virtserial.virtio.ring.packed.driver import CHAIN_LIMIT, PackedLayout, PackedQueue
from virtserial.virtio.ring.packed.layout import DESCRIPTOR

ADDRESS = 0x10000
NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 0x80, 0x8000
ENABLE, DISABLE, DESC = 0, 1, 2


class DeviceSide:
    """The ring as a device sees it, written without any of the project's device code."""

    def __init__(self, size, event_idx=False):
        layout = PackedLayout.of(size)
        self.memory = memoryview(bytearray(layout.length))
        self.size = size
        self.queue = PackedQueue(self.memory, ADDRESS, size, event_idx=event_idx)
        self.driver = self.memory[layout.driver :].cast("I")
        self.device = self.memory[layout.device :].cast("H")
        self.used = 0

    def descriptor(self, index):
        return DESCRIPTOR.unpack_from(self.memory, 16 * index)

    def use(self, identifier, length=0, slots=1):
        lap, at = divmod(self.used, self.size)
        flags = (0 if lap % 2 else AVAIL | USED) | (WRITE if length else 0)
        self.memory[16 * at + 8 : 16 * at + 16] = DESCRIPTOR.pack(0, length, identifier, flags)[8:]
        self.used += slots

    @property
    def driver_event(self):
        return self.driver[0] >> 16, self.driver[0] & 0xFFFF


@pytest.mark.parametrize("size", [0, 32769, -4])
def test_a_size_that_cannot_be_is_refused(size):
    with pytest.raises(StateError, match="at most 32768"):
        PackedQueue(memoryview(bytearray(1 << 20)), ADDRESS, size)


def test_memory_too_small_or_misaligned_is_refused():
    with pytest.raises(StateError, match="aligned"):
        PackedQueue(memoryview(bytearray(PackedLayout.of(8).length - 1)), ADDRESS, 8)
    with pytest.raises(StateError, match="aligned"):
        PackedQueue(memoryview(bytearray(PackedLayout.of(8).length)), ADDRESS + 8, 8)


def test_nothing_is_available_before_it_is_published():
    device = DeviceSide(4)
    device.queue.add(((0x1000, 10), (0x2000, 20)), ((0x3000, 30),), "chain")
    device.queue.add(((0x4000, 4),), (), "lone")
    assert device.descriptor(0)[3] == 0, "the device looks at nothing behind it"
    assert device.queue.publish()
    assert [device.descriptor(k) for k in range(4)] == [
        (0x1000, 10, 0, AVAIL | NEXT), (0x2000, 20, 0, AVAIL | NEXT), (0x3000, 30, 0, AVAIL | WRITE),
        (0x4000, 4, 1, AVAIL),
    ]  # fmt: skip
    assert not device.queue.publish()
    assert (device.queue.free, device.queue.in_flight) == (0, 2)


def test_chains_come_back_with_their_lengths_lap_after_lap():
    device = DeviceSide(3)
    for turn in range(10):
        device.queue.add((), ((0x1000, 64), (0x2000, 64)), turn)
        device.queue.publish()
        assert device.queue.harvest() == []
        device.use(0, 100, slots=2)
        assert device.queue.harvest() == [(turn, 100)]
        assert (device.queue.free, device.queue.in_flight) == (3, 0)
    assert device.queue.harvest() == []


def test_chains_come_back_in_any_order():
    device = DeviceSide(4)
    ids = [device.queue.add(((0x1000, 1),), (), name) for name in "abcd"]
    device.queue.publish()
    for number in (2, 0, 3, 1):
        device.use(ids[number], 77)
    assert device.queue.harvest() == [("c", 0), ("a", 0), ("d", 0), ("b", 0)], "nothing writable was there to write"


def test_an_indirect_chain_takes_one_descriptor():
    device = DeviceSide(4)
    table = memoryview(bytearray(64))
    device.queue.add_indirect(table, 0x9000, ((0x1000, 10),), ((0x2000, 20),), "x")
    device.queue.publish()
    assert device.descriptor(0) == (0x9000, 32, 0, AVAIL | INDIRECT)
    assert list(DESCRIPTOR.iter_unpack(table[:32])) == [(0x1000, 10, 0, 0), (0x2000, 20, 0, WRITE)]
    with pytest.raises(StateError, match="indirect chain of 5"):
        device.queue.add_indirect(table, 0x9000, ((1, 1),) * 5, (), "y")


def test_chains_that_cannot_be_are_refused():
    queue = DeviceSide(2).queue
    for parts in ((), ((1, 1),) * 3):
        with pytest.raises(StateError, match="2 of 2 are free"):
            queue.add(parts, (), "x")
    with pytest.raises(StateError, match="the limit is"):
        queue.add(((0, CHAIN_LIMIT), (0, 1)), (), "x")


@pytest.mark.parametrize(
    ("identifier", "length", "text"), [(1, 0, "not in flight"), (7, 0, "not in flight"), (0, 65, "its chain holds 64")]
)
def test_a_device_that_lies_is_found(identifier, length, text):
    device = DeviceSide(4)
    device.queue.add((), ((0x1000, 64),), "x")
    device.queue.publish()
    device.use(identifier, length)
    with pytest.raises(PeerError, match=text):
        device.queue.harvest()


def test_a_device_cannot_return_what_nobody_gave_it():
    device = DeviceSide(4)
    device.use(0)
    assert device.queue.harvest() == []


def test_the_device_says_which_doorbells_it_wants():
    device = DeviceSide(8, event_idx=True)
    for flags, position, wanted in (
        (ENABLE, 0, True), (DISABLE, 0, False), (DESC, 0x8002, True), (DESC, 0x8002, False), (3, 0, True),
    ):  # fmt: skip
        device.device[0], device.device[1] = position, flags
        device.queue.add(((1, 1),), (), "x")
        assert device.queue.publish() is wanted


def test_interrupts_are_asked_for_and_suppressed():
    device = DeviceSide(3, event_idx=True)
    for name in "abc":
        device.queue.add(((1, 1),), (), name)
    device.queue.publish()
    assert not device.queue.request_interrupt(2)
    assert device.driver_event == (DESC, 0x8001)
    device.use(0)
    assert not device.queue.request_interrupt(2)
    device.use(1)
    assert device.queue.request_interrupt(2)
    assert len(device.queue.harvest()) == 2
    assert not device.queue.request_interrupt(2), "one is in flight"
    assert device.driver_event == (DESC, 0)
    device.queue.suppress_interrupts()
    assert device.driver_event[0] == DISABLE
    assert device.queue.detach_all() == ["c"]
    assert (device.queue.free, device.queue.in_flight) == (3, 0)


def test_without_event_idx_interrupts_are_on_or_off():
    device = DeviceSide(3)
    device.queue.request_interrupt(2)
    assert device.driver_event == (ENABLE, 0)
