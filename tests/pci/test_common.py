"""The register BAR: common configuration, device-specific configuration, notifications."""

from __future__ import annotations

import struct

import pytest
from support.console_function import build_function

from virtserial.pci import layout
from virtserial.virtio.features import TRANSPORT_FEATURES, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1
from virtserial.virtio.ring.device_ring import DETACHED

BAR = layout.REGISTER_BAR
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64


def read(function, offset, length):
    return int.from_bytes(function.region_read(BAR, offset, length), "little")


def write(function, offset, length, value):
    function.region_write(BAR, offset, value.to_bytes(length, "little"))


def negotiate(function, features=VIRTIO_F_VERSION_1):
    for status in (0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER):
        write(function, 0x14, 1, status)
    for select in (0, 1):
        write(function, 0x08, 4, select)
        write(function, 0x0C, 4, features >> 32 * select & 0xFFFFFFFF)
    write(function, 0x14, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK)
    return read(function, 0x14, 1) & FEATURES_OK


def test_device_features_are_shown_by_halves(function):
    offered = 0
    for select in (0, 1):
        write(function, 0x00, 4, select)
        assert read(function, 0x00, 4) == select
        offered |= read(function, 0x04, 4) << 32 * select
    assert offered == function.device.device_features
    assert offered & TRANSPORT_FEATURES == TRANSPORT_FEATURES


def test_each_queue_has_a_page_for_its_doorbell_if_asked_for():
    function, _ = build_function(max_ports=31, page_per_vq=True)
    rung = []
    function.ring_doorbell = rung.append
    assert function.region_size(BAR) == 1 << 19
    space = function.configuration.read(0, layout.PCI_CONFIG_SPACE_SIZE)
    at = next(at for at in function.configuration.capability_offsets if space[at + 3] == 2)
    assert struct.unpack_from("<III", space, at + 8) == (0x3000, 64 * 4096, 4096)
    write(function, 0x3000 + 4096 * 63, 2, 63)
    write(function, 0x3000 + 4 * 5, 2, 5)
    assert rung == [63]
    assert function.ignored_accesses == 1


def test_features_past_64_bits_are_none(function):
    write(function, 0x00, 4, 2)
    assert read(function, 0x04, 4) == 0
    write(function, 0x08, 4, 2)
    write(function, 0x0C, 4, 0xFFFFFFFF)
    assert function.device.driver_features == 0
    assert read(function, 0x0C, 4) == 0
    assert function.ignored_accesses == 1


def test_offered_features_are_accepted(function):
    assert negotiate(function, VIRTIO_F_VERSION_1 | 1 << 28)
    write(function, 0x08, 4, 0)
    assert read(function, 0x0C, 4) == 1 << 28


def test_features_never_offered_are_refused(function):
    assert not negotiate(function, VIRTIO_F_VERSION_1 | 1 << 27)


def test_num_queues_and_sizes(function):
    assert read(function, 0x12, 2) == 10
    sizes = []
    for index in range(11):
        write(function, 0x16, 2, index)
        assert read(function, 0x16, 2) == index
        sizes.append(read(function, 0x18, 2))
    assert sizes == [128, 128, 32, 32, 128, 128, 128, 128, 128, 128, 0]


def test_a_queue_that_does_not_exist_takes_nothing(function):
    write(function, 0x16, 2, 200)
    for offset, length in ((0x18, 2), (0x1A, 2), (0x1C, 2), (0x20, 8), (0x3A, 2)):
        write(function, offset, length, 1)
    assert read(function, 0x18, 2) == 0
    assert read(function, 0x1A, 2) == layout.VIRTIO_MSI_NO_VECTOR
    assert read(function, 0x1C, 2) == 0
    assert read(function, 0x20, 8) == 0


@pytest.mark.parametrize("size", [0, 3, 256, 65535])
def test_an_illegal_queue_size_keeps_the_old_one(function, size):
    write(function, 0x18, 2, size)
    assert read(function, 0x18, 2) == 128


def test_addresses_by_halves_and_whole(function):
    write(function, 0x18, 2, 64)
    for offset in (0x20, 0x28, 0x30):
        write(function, offset, 4, 0x1000 + offset)
        write(function, offset + 4, 4, 0x12)
        assert read(function, offset, 8) == 0x12_0000_1000 + offset
    write(function, 0x28, 8, 0xABCD_0000_5000)
    queue = function.device.queues[0]
    assert (queue.size, queue.desc_address, queue.avail_address, queue.used_address) == (
        64,
        0x12_0000_1020,
        0xABCD_0000_5000,
        0x12_0000_1030,
    )


def test_notify_offset_is_the_queue(function):
    write(function, 0x16, 2, 5)
    assert read(function, 0x1E, 2) == 5


def test_enabling_a_queue_outside_memory_fails_the_device_or_rests_the_queue(function):
    negotiate(function)
    for offset in (0x20, 0x28, 0x30):
        write(function, offset, 8, 0x1000)
    write(function, 0x1C, 2, 1)
    assert read(function, 0x1C, 2) == 1
    assert function.device.queues[0].ring is DETACHED


def test_registers_of_an_enabled_queue_are_latched(function):
    negotiate(function)
    write(function, 0x1C, 2, 1)
    write(function, 0x18, 2, 8)
    write(function, 0x20, 8, 0x7000)
    assert read(function, 0x18, 2) == 128
    assert read(function, 0x20, 8) == 0


@pytest.mark.parametrize("value", [0, 2, 0xFFFF])
def test_only_1_enables_a_queue(function, value):
    write(function, 0x1C, 2, value)
    assert read(function, 0x1C, 2) == 0
    assert function.ignored_accesses == 1


def test_queue_reset_needs_its_feature(function):
    negotiate(function)
    write(function, 0x1C, 2, 1)
    write(function, 0x3A, 2, 1)
    assert read(function, 0x1C, 2) == 1
    assert function.ignored_accesses == 1


def test_queue_reset_returns_the_queue(function):
    negotiate(function, VIRTIO_F_VERSION_1 | VIRTIO_F_RING_RESET)
    write(function, 0x18, 2, 16)
    write(function, 0x1C, 2, 1)
    write(function, 0x3A, 2, 1)
    assert read(function, 0x3A, 2) == 0
    assert read(function, 0x1C, 2) == 0
    assert read(function, 0x18, 2) == 128


def test_vectors_read_back_only_if_they_exist(function):
    for offset in (0x10, 0x1A):
        for vector, expected in ((2, 2), (3, 0xFFFF), (1, 1), (0xFFFF, 0xFFFF)):
            write(function, offset, 2, vector)
            assert read(function, offset, 2) == expected


def test_reset_by_status_clears_the_transports_registers(function):
    negotiate(function)
    write(function, 0x10, 2, 1)
    write(function, 0x1A, 2, 2)
    function.config_interrupt()
    write(function, 0x14, 1, 0)
    assert read(function, 0x14, 1) == 0
    assert read(function, 0x10, 2) == 0xFFFF
    assert read(function, 0x1A, 2) == 0xFFFF
    assert read(function, layout.ISR_AREA, 1) == 0


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0x00, 1), (0x00, 8), (0x01, 4), (0x04, 4), (0x12, 2), (0x14, 2), (0x15, 1), (0x21, 4), (0x38, 2), (0x3C, 2)],
)
def test_writes_that_fit_no_register_change_nothing(function, offset, length):
    before = function.region_read(BAR, 0, 64)
    write(function, offset, length, 0)
    function.region_write(BAR, offset, b"\xff" * length)
    assert function.region_read(BAR, 0, 64) == before
    assert function.ignored_accesses == 2


@pytest.mark.parametrize(("offset", "length"), [(0, 3), (0x13, 5), (0x3E, 8), (0xFFF, 2), (0x40, 4), (0, 0)])
def test_odd_reads_are_served(function, offset, length):
    assert len(function.region_read(BAR, offset, length)) == length


def test_device_configuration(function):
    assert function.region_read(BAR, layout.DEVICE_AREA, 12) == b"\0\0\0\0\x04\0\0\0\0\0\0\0"
    assert function.region_read(BAR, layout.DEVICE_AREA + 10, 4) == bytes(4)
    assert function.region_read(BAR, layout.DEVICE_AREA + 12, 4) == bytes(4)
    write(function, layout.DEVICE_AREA + 4, 4, 77)
    write(function, layout.DEVICE_AREA + 12, 4, 77)
    assert read(function, layout.DEVICE_AREA + 4, 4) == 4
    assert function.ignored_accesses == 2


def test_config_generation_is_shown(function):
    function.device.config_changed()
    assert read(function, 0x15, 1) == 1


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (layout.NOTIFY_AREA + 4 * 10, b"\x0a\0"),
        (layout.NOTIFY_AREA + 0xFFC, b"\xff\xff"),
        (layout.NOTIFY_AREA + 1, b"\0\0"),
        (layout.NOTIFY_AREA, b"\0"),
        (layout.NOTIFY_AREA, b"\0\0\0\0"),
        (layout.ISR_AREA, b"\1"),
    ],
)
def test_notifications_of_nothing_are_counted(function, offset, data):
    function.region_write(BAR, offset, data)
    assert function.ignored_accesses == 1


def test_a_notification_gives_its_queue_a_turn(function):
    negotiate(function)
    write(function, 0x14, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    turns = function.device._scheduler.waiting
    turns.clear()
    function.device._turn_asked = False
    write(function, layout.NOTIFY_AREA + 4 * 3, 2, 3)
    assert turns == [function.device.turns.turn]


@pytest.mark.parametrize("offset", [layout.NOTIFY_AREA, layout.ISR_AREA + 1, layout.DEVICE_AREA + 100])
def test_reads_of_nothing_are_zero(function, offset):
    assert read(function, offset, 4) == 0
    assert function.ignored_accesses == 1


@pytest.mark.parametrize("index", [0, 2, 3, 5, 6, 8])
def test_regions_that_do_not_exist(function, index):
    assert function.region_size(index) == 0
    assert function.region_flags(index) == 0
    assert function.region_read(index, 0, 4) == bytes(4)
    function.region_write(index, 0, b"1234")


def test_regions_that_do(function):
    assert {index: function.region_size(index) for index in (1, 4, 7)} == {1: 4096, 4: 0x4000, 7: 256}
    assert {function.region_flags(index) for index in (1, 4, 7)} == {3}


def test_a_successor_finds_every_register(function):
    first, block = build_function()
    negotiate(first)
    first.region_write(7, 0x04, b"\x06\0")
    write(first, 0x16, 2, 3)
    write(first, 0x1A, 2, 1)
    write(first, 0x20, 8, 0x5000)
    write(first, 0x10, 2, 2)
    first.interrupts.set_intx(False)
    first._raise_isr(1)
    second, _ = build_function(block=block)
    assert second.region_read(BAR, 0, 64) == first.region_read(BAR, 0, 64)
    assert second.region_read(7, 0, 256) == first.region_read(7, 0, 256)
    assert read(second, layout.ISR_AREA, 1) == 1
