"""The driver's side of a split virtqueue, against the device's side and against one that lies."""

from __future__ import annotations

import pytest

from virtserial.errors import PeerError, StateError
from virtserial.virtio.ring.split.driver import CHAIN_LIMIT, DriverQueue, QueueLayout
from virtserial.virtio.ring.split.layout import (
    DESCRIPTOR,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    VIRTQ_USED_F_NO_NOTIFY,
)

ADDRESS = 0x10000


class DeviceSide:
    """The rings as a device sees them, written without any of the project's device code."""

    def __init__(self, size, event_idx=False):
        layout = QueueLayout.of(size)
        self.memory = memoryview(bytearray(layout.length))
        self.size = size
        self.queue = DriverQueue(self.memory, ADDRESS, size, event_idx=event_idx)
        self.avail = self.memory[layout.avail : layout.avail + 6 + 2 * size].cast("H")
        self.used16 = self.memory[layout.used : layout.used + 6 + 8 * size].cast("H")
        self.used32 = self.memory[layout.used + 4 : layout.used + 4 + 8 * size].cast("I")

    def descriptor(self, index):
        return DESCRIPTOR.unpack_from(self.memory, 16 * index)

    @property
    def used_idx(self):
        return self.used16[1]

    @used_idx.setter
    def used_idx(self, value):
        self.used16[1] = value & 0xFFFF

    @property
    def avail_event(self):
        return self.used16[2 + 4 * self.size]

    @avail_event.setter
    def avail_event(self, value):
        self.used16[2 + 4 * self.size] = value & 0xFFFF

    @property
    def used_event(self):
        return self.avail[2 + self.size]

    def use(self, head, length=0):
        slot = self.used_idx % self.size
        self.used32[2 * slot], self.used32[2 * slot + 1] = head, length
        self.used_idx += 1


@pytest.mark.parametrize("size", [1, 2, 128, 32768])
def test_areas_are_aligned_and_do_not_overlap(size):
    layout = QueueLayout.of(size)
    assert layout.avail >= 16 * size
    assert layout.avail % 2 == 0
    assert layout.used >= layout.avail + 6 + 2 * size
    assert layout.used % 4 == 0
    assert layout.length >= layout.used + 6 + 8 * size


@pytest.mark.parametrize("size", [0, 3, 65536, -4])
def test_a_size_that_is_no_power_of_two_is_refused(size):
    with pytest.raises(StateError, match="power of 2"):
        DriverQueue(memoryview(bytearray(1 << 20)), ADDRESS, size)


def test_memory_too_small_or_misaligned_is_refused():
    with pytest.raises(StateError, match="aligned"):
        DriverQueue(memoryview(bytearray(QueueLayout.of(8).length - 1)), ADDRESS, 8)
    with pytest.raises(StateError, match="aligned"):
        DriverQueue(memoryview(bytearray(QueueLayout.of(8).length)), ADDRESS + 8, 8)


def test_a_chain_has_readable_before_writable_descriptors():
    device = DeviceSide(8)
    head = device.queue.add(((0x1000, 10), (0x2000, 20)), ((0x3000, 30),), "chain")
    assert device.avail[1] == 0, "not shown before publish"
    assert device.queue.publish()
    assert device.avail[1] == 1
    assert device.avail[2] == head
    address, length, flags, following = device.descriptor(head)
    assert (address, length, flags) == (0x1000, 10, VIRTQ_DESC_F_NEXT)
    address, length, flags, following = device.descriptor(following)
    assert (address, length, flags) == (0x2000, 20, VIRTQ_DESC_F_NEXT)
    assert device.descriptor(following)[:3] == (0x3000, 30, VIRTQ_DESC_F_WRITE)


def test_used_chains_come_back_in_the_device_s_order_and_free_their_descriptors():
    device = DeviceSide(4)
    heads = {name: device.queue.add((), ((0x1000, 100),), name) for name in "abcd"}
    device.queue.publish()
    assert device.queue.free == 0
    with pytest.raises(StateError, match="0 of 4 are free"):
        device.queue.add(((1, 1),), (), "e")
    device.use(heads["c"], 7)
    device.use(heads["a"], 100)
    assert device.queue.harvest() == [("c", 7), ("a", 100)]
    assert device.queue.harvest() == []
    assert (device.queue.free, device.queue.in_flight) == (2, 2)


def test_indices_wrap_after_65536_chains():
    device = DeviceSide(2, event_idx=True)
    for number in range(65540):
        head = device.queue.add(((0x1000, 1),), (), number)
        device.avail_event = number
        assert device.queue.publish()
        assert device.avail[1] == (number + 1) & 0xFFFF
        device.use(head)
        assert device.queue.harvest() == [(number, 0)]


def test_an_indirect_chain_is_one_descriptor_and_a_table():
    device = DeviceSide(4)
    table = memoryview(bytearray(48))
    head = device.queue.add_indirect(table, 0x9000, ((0x1000, 1), (0x2000, 2)), ((0x3000, 3),), "chain")
    assert device.descriptor(head)[:3] == (0x9000, 48, VIRTQ_DESC_F_INDIRECT)
    assert [DESCRIPTOR.unpack_from(table, at) for at in (0, 16, 32)] == [
        (0x1000, 1, VIRTQ_DESC_F_NEXT, 1),
        (0x2000, 2, VIRTQ_DESC_F_NEXT, 2),
        (0x3000, 3, VIRTQ_DESC_F_WRITE, 0),
    ]
    device.queue.publish()
    device.use(head, 3)
    assert device.queue.harvest() == [("chain", 3)]


def test_an_indirect_chain_longer_than_the_queue_is_refused():
    device = DeviceSide(2)
    with pytest.raises(StateError, match="indirect chain of 3"):
        device.queue.add_indirect(memoryview(bytearray(48)), 0x9000, ((1, 1),) * 3, (), "chain")


def test_a_chain_of_nothing_and_one_of_more_than_4_gib_are_refused():
    device = DeviceSide(4)
    with pytest.raises(StateError, match="chain of 0"):
        device.queue.add((), (), "nothing")
    with pytest.raises(StateError, match=str(CHAIN_LIMIT)):
        device.queue.add(((0, 1 << 31), (0, 1 << 31)), ((0, 1),), "too long")
    assert device.queue.free == 4


# Notifications


def test_without_event_idx_the_used_flag_says_whether_to_notify():
    device = DeviceSide(4)
    device.queue.add(((1, 1),), (), 0)
    assert device.queue.publish()
    device.used16[0] = VIRTQ_USED_F_NO_NOTIFY
    device.queue.add(((1, 1),), (), 1)
    assert not device.queue.publish()
    assert not device.queue.publish(), "nothing new is nothing to notify of"


def test_with_event_idx_a_notification_is_due_when_the_event_is_passed():
    device = DeviceSide(8, event_idx=True)
    device.avail_event = 2
    wanted = []
    for number in range(5):
        device.queue.add(((1, 1),), (), number)
        wanted.append(device.queue.publish())
    assert wanted == [False, False, True, False, False]


def test_with_event_idx_a_batch_that_jumps_over_the_event_notifies():
    device = DeviceSide(8, event_idx=True)
    device.avail_event = 2
    for number in range(5):
        device.queue.add(((1, 1),), (), number)
    assert device.queue.publish()


def test_an_interrupt_is_asked_for_after_so_many_used_chains():
    device = DeviceSide(8, event_idx=True)
    heads = [device.queue.add(((1, 1),), (), number) for number in range(6)]
    device.queue.publish()
    device.use(heads[0])
    device.queue.harvest()
    assert not device.queue.request_interrupt(3)
    assert device.used_event == 3, "used index 1, the third from there moves it past 3"
    for head in heads[1:4]:
        device.use(head)
    assert device.queue.request_interrupt(3), "they are used already: no interrupt may come"
    assert not device.queue.request_interrupt(4)


def test_without_event_idx_interrupts_are_switched():
    device = DeviceSide(8)
    device.queue.suppress_interrupts()
    assert device.avail[0] == VIRTQ_AVAIL_F_NO_INTERRUPT
    device.queue.request_interrupt()
    assert device.avail[0] == 0


def test_with_event_idx_suppressed_interrupts_are_as_far_away_as_can_be():
    device = DeviceSide(8, event_idx=True)
    device.queue.suppress_interrupts()
    assert device.used_event == 0xFFFF
    assert device.avail[0] == 0, "2.7.7.1: with EVENT_IDX the driver must leave flags at 0"


# A device that lies


def test_more_used_elements_than_chains_in_flight():
    device = DeviceSide(8)
    device.queue.add(((1, 1),), (), 0)
    device.queue.publish()
    device.used_idx = 2
    with pytest.raises(PeerError, match="2 elements, 1 are in flight"):
        device.queue.harvest()


def test_a_used_index_that_goes_back():
    device = DeviceSide(8)
    head = device.queue.add(((1, 1),), (), 0)
    device.queue.publish()
    device.use(head)
    device.queue.harvest()
    device.used_idx = 0
    with pytest.raises(PeerError, match="65535 elements"):
        device.queue.harvest()


@pytest.mark.parametrize("head", [8, 0xFFFFFFFF, 3])
def test_a_used_id_that_is_no_head_in_flight(head):
    device = DeviceSide(8)
    device.queue.add(((1, 1), (2, 2)), (), 0)
    device.queue.publish()
    device.use(head)
    with pytest.raises(PeerError, match=f"id {head}, not in flight"):
        device.queue.harvest()


def test_a_used_id_of_the_middle_of_a_chain():
    device = DeviceSide(8)
    head = device.queue.add(((1, 1), (2, 2)), (), 0)
    device.queue.publish()
    device.use(device.descriptor(head)[3])
    with pytest.raises(PeerError, match="not in flight"):
        device.queue.harvest()


def test_the_same_chain_used_twice():
    device = DeviceSide(8)
    heads = [device.queue.add(((1, 1),), (), number) for number in range(2)]
    device.queue.publish()
    device.use(heads[0])
    device.use(heads[0])
    with pytest.raises(PeerError, match="not in flight"):
        device.queue.harvest()


def test_more_bytes_written_than_the_chain_holds():
    device = DeviceSide(8)
    head = device.queue.add((), ((1, 100),), 0)
    device.queue.publish()
    device.use(head, 101)
    with pytest.raises(PeerError, match="says 101 bytes were written, its chain holds 100"):
        device.queue.harvest()


def test_the_written_length_of_a_chain_without_writable_part_is_ignored():
    device = DeviceSide(8)
    head = device.queue.add(((1, 100),), (), "sent")
    device.queue.publish()
    device.use(head, 100)
    assert device.queue.harvest() == [("sent", 0)]


def test_a_descriptor_table_rewritten_by_the_device_changes_nothing():
    device = DeviceSide(4)
    head = device.queue.add(((1, 1), (2, 2)), (), "chain")
    device.queue.publish()
    device.memory[:64] = b"\xff" * 64
    device.use(head)
    assert device.queue.harvest() == [("chain", 0)]
    assert sorted(device.queue.add(((1, 1),), (), n) for n in range(4)) == [0, 1, 2, 3]


def test_after_a_reset_every_chain_is_taken_back():
    device = DeviceSide(4)
    for number in range(3):
        device.queue.add(((1, 1),), (), number)
    assert sorted(device.queue.detach_all()) == [0, 1, 2]
    assert (device.queue.free, device.queue.in_flight) == (4, 0)
