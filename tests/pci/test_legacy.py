"""The legacy interface: a transitional function, and one that has nothing else."""

from __future__ import annotations

import struct

import pytest
from support.console_function import build_function
from support.ring_builder import BASE, GuestMemory

from virtserial.pci import layout
from virtserial.pci.function import VFIO_PCI_CONFIG_REGION_INDEX
from virtserial.virtio.features import VIRTIO_F_ANY_LAYOUT, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1
from virtserial.virtio.status import DEVICE_NEEDS_RESET, FEATURES_OK

IO = layout.LEGACY_BAR
FEATURES, DRIVER_FEATURES, QUEUE_ADDRESS, QUEUE_SIZE, QUEUE_SELECT = 0, 4, 8, 12, 14
QUEUE_NOTIFY, STATUS, ISR = 16, 18, 19
MULTIPORT = 2
TX = 5
"""The transmitq of port 1."""


@pytest.fixture
def function():
    built, _ = build_function(has_legacy=True)
    yield built
    built.interrupts.close()


@pytest.fixture
def memory(function):
    memory = GuestMemory("mapped")
    memory.map_into(function.device.memory)
    yield memory
    function.device.reset()
    memory.close()


def read(function, offset, length):
    return int.from_bytes(function.region_read(IO, offset, length), "little")


def write(function, offset, length, value):
    function.region_write(IO, offset, value.to_bytes(length, "little"))


def config(function, offset, length):
    return int.from_bytes(function.region_read(VFIO_PCI_CONFIG_REGION_INDEX, offset, length), "little")


def enable_msix(function, enabled):
    at = config(function, layout.PCI_CAPABILITY_LIST, 1)
    while config(function, at, 1) != layout.PCI_CAP_ID_MSIX:
        at = config(function, at + 1, 1)
    value = layout.PCI_MSIX_FLAGS_ENABLE if enabled else 0
    function.region_write(VFIO_PCI_CONFIG_REGION_INDEX, at + 2, value.to_bytes(2, "little"))


def acknowledge(function, features=MULTIPORT):
    for status in (0, 1, 3):
        write(function, STATUS, 1, status)
    write(function, DRIVER_FEATURES, 4, features)


def place(function, queue, address):
    write(function, QUEUE_SELECT, 2, queue)
    write(function, QUEUE_ADDRESS, 4, address >> 12)


def test_a_transitional_function_has_the_numbers_of_qemus(function):
    assert config(function, layout.PCI_DEVICE_ID, 2) == 0x1003
    assert config(function, layout.PCI_REVISION_ID, 1) == 0
    assert config(function, layout.PCI_SUBSYSTEM_VENDOR_ID, 2) == 0x1AF4
    assert config(function, layout.PCI_SUBSYSTEM_ID, 2) == 3


def test_its_first_bar_is_64_bytes_of_io_space_beside_the_modern_ones(function):
    function.region_write(VFIO_PCI_CONFIG_REGION_INDEX, layout.PCI_BASE_ADDRESS_0, b"\xff" * 24)
    bars = [config(function, layout.PCI_BASE_ADDRESS_0 + 4 * number, 4) for number in range(6)]
    assert bars == [0xFFFFFFC1, 0xFFFFF000, 0, 0, 0xFFFFC00C, 0xFFFFFFFF]
    assert function.region_size(IO) == 64


def test_without_vectors_32_bytes_are_enough():
    function, _ = build_function(vectors=0, has_legacy=True)
    assert function.region_size(IO) == 32


def test_a_function_without_modern_interface_has_one_capability():
    function, _ = build_function(has_legacy=True, has_modern=False)
    at = config(function, layout.PCI_CAPABILITY_LIST, 1)
    assert config(function, at, 1) == layout.PCI_CAP_ID_MSIX
    assert config(function, at + 1, 1) == 0
    assert function.region_size(layout.REGISTER_BAR) == 0
    assert function.doorbell_offsets == {}
    # Where other functions have VIRTIO_PCI_CAP_PCI_CFG is nothing.
    function.region_write(VFIO_PCI_CONFIG_REGION_INDEX, 0, bytes(256))
    assert len(function.region_read(VFIO_PCI_CONFIG_REGION_INDEX, 0, 256)) == 256


def test_features_are_the_low_32_bits_and_what_was_not_offered_is_not_taken(function):
    offered = read(function, FEATURES, 4)
    assert offered == function.device.device_features & 0xFFFFFFFF
    assert offered & VIRTIO_F_EVENT_IDX
    acknowledge(function, 0xFFFFFFFF)
    assert read(function, DRIVER_FEATURES, 4) == offered
    assert not offered & VIRTIO_F_ANY_LAYOUT  # The device of these tests does not offer it.


def test_a_queue_has_one_size_and_is_placed_by_pages(function):
    write(function, QUEUE_SELECT, 2, TX)
    assert read(function, QUEUE_SIZE, 2) == function.device.queues[TX].max_size
    write(function, QUEUE_SIZE, 2, 4)
    assert read(function, QUEUE_SIZE, 2) == function.device.queues[TX].max_size
    place(function, TX, 0x7_FFFF_F000)
    assert read(function, QUEUE_ADDRESS, 4) == 0x7FFFFF
    queue = function.device.queues[TX]
    assert queue.desc_address == 0x7_FFFF_F000
    assert queue.avail_address == queue.desc_address + 16 * queue.size
    assert queue.used_address % 4096 == 0
    assert 0 <= queue.used_address - queue.avail_address - 6 - 2 * queue.size < 4096


def test_a_queue_that_does_not_exist_has_size_0(function):
    write(function, QUEUE_SELECT, 2, 500)
    assert read(function, QUEUE_SIZE, 2) == 0
    assert read(function, QUEUE_ADDRESS, 4) == 0
    write(function, QUEUE_ADDRESS, 4, 1)
    assert function.ignored_accesses == 1


def test_status_shows_no_features_ok(function, memory):
    acknowledge(function)
    write(function, STATUS, 1, 15)
    assert read(function, STATUS, 1) == 7
    assert function.device.live
    assert function.device.driver_is_legacy


def test_a_driver_may_use_the_device_before_driver_ok(function, memory):
    acknowledge(function)
    place(function, TX, BASE)
    assert not function.device.live
    write(function, QUEUE_NOTIFY, 2, TX)
    assert function.device.live
    assert function.device.multiport
    assert read(function, STATUS, 1) == 3
    assert function.device.queues[TX].ring.attached


def test_a_doorbell_after_a_reset_begins_nothing(function, memory):
    acknowledge(function)
    place(function, TX, BASE)
    write(function, STATUS, 1, 0)
    write(function, QUEUE_NOTIFY, 2, TX)
    assert not function.device.live
    assert function.device.queues[TX].desc_address == 0


def test_a_queue_may_be_placed_while_the_device_runs_but_not_moved(function, memory):
    acknowledge(function)
    write(function, STATUS, 1, 7)
    place(function, TX, BASE)
    assert function.device.queues[TX].ring.attached
    place(function, TX, BASE + 0x10000)
    assert read(function, QUEUE_ADDRESS, 4) == BASE >> 12
    place(function, TX, 0)
    assert not function.device.queues[TX].enabled
    place(function, TX, BASE + 0x10000)
    assert function.device.queues[TX].ring.attached


def test_rings_outside_memory_stop_the_device(function, memory):
    acknowledge(function)
    place(function, TX, 0x7_0000_0000)
    write(function, STATUS, 1, 7)
    assert read(function, STATUS, 1) == 7 | DEVICE_NEEDS_RESET


def test_status_bits_may_be_taken_back(function, memory):
    acknowledge(function)
    write(function, STATUS, 1, 7)
    write(function, STATUS, 1, 3)
    assert read(function, STATUS, 1) == 3
    write(function, STATUS, 1, 0)
    assert read(function, STATUS, 1) == 0
    assert not function.device.live


def test_features_are_fixed_by_the_first_use(function, memory):
    acknowledge(function)
    write(function, QUEUE_NOTIFY, 2, 0)
    write(function, DRIVER_FEATURES, 4, 0)
    assert read(function, DRIVER_FEATURES, 4) == MULTIPORT


def test_the_configuration_moves_with_msix(function):
    max_ports = struct.pack("<I", function.device.max_ports)
    assert function.region_read(IO, 24, 4) == max_ports
    enable_msix(function, True)
    assert function.region_read(IO, 28, 4) == max_ports
    assert read(function, 20, 4) == 0xFFFFFFFF
    write(function, 20, 2, 1)
    write(function, QUEUE_SELECT, 2, TX)
    write(function, 22, 2, 2)
    assert read(function, 20, 4) == 0x20001
    assert function.device.queues[TX].vector == 2
    write(function, 22, 2, 3)
    assert read(function, 22, 2) == layout.VIRTIO_MSI_NO_VECTOR
    enable_msix(function, False)
    assert function.region_read(IO, 24, 4) == max_ports


def test_without_msix_the_vectors_registers_are_configuration(function):
    write(function, 20, 2, 1)
    assert function.common.config_vector == layout.VIRTIO_MSI_NO_VECTOR


def test_reading_the_isr_clears_it(function):
    function.config_interrupt()
    function.queue_interrupt(TX)
    assert read(function, ISR, 1) == 3
    assert read(function, ISR, 1) == 0
    function.queue_interrupt(TX)
    assert function.region_read(IO, STATUS, 2) == b"\x00\x01"
    assert read(function, ISR, 1) == 0


@pytest.mark.parametrize("length", [1, 2, 3, 4, 8])
def test_any_access_is_answered_and_the_ignored_ones_are_counted(function, length):
    for offset in range(64 - length + 1):
        assert len(function.region_read(IO, offset, length)) == length
    assert function.region_read(IO, 64 - length, length) == bytes(length)
    before = function.ignored_accesses
    write(function, QUEUE_ADDRESS, length, 1) if length != 4 else write(function, 6, 4, 1)
    assert function.ignored_accesses == before + 1


def test_an_emergency_write_needs_no_driver(function):
    write(function, 28, 4, 0x41)
    assert function.ignored_accesses == 0


class TestBothInterfaces:
    def modern(self, function, offset, length, value):
        function.region_write(layout.REGISTER_BAR, offset, value.to_bytes(length, "little"))

    def negotiate(self, function):
        for status in (1, 3):
            self.modern(function, 0x14, 1, status)
        self.modern(function, 0x08, 4, 1)
        self.modern(function, 0x0C, 4, VIRTIO_F_VERSION_1 >> 32)
        self.modern(function, 0x14, 1, 3 | FEATURES_OK)
        self.modern(function, 0x14, 1, 7 | FEATURES_OK)

    def test_a_modern_driver_uses_a_transitional_function(self, function):
        self.negotiate(function)
        assert function.device.live
        assert not function.device.driver_is_legacy
        assert not function.device.multiport

    def test_features_ok_without_version_1_is_refused_there(self, function):
        self.modern(function, 0x14, 1, 3)
        self.modern(function, 0x14, 1, 3 | FEATURES_OK)
        assert function.device.status == 3

    def test_a_driver_changes_to_the_other_interface_by_a_reset_of_either(self, function, memory):
        self.negotiate(function)
        write(function, STATUS, 1, 0)
        acknowledge(function)
        write(function, STATUS, 1, 7)
        assert function.device.driver_is_legacy
        self.modern(function, 0x14, 1, 0)
        assert not function.device.driver_is_legacy
        self.negotiate(function)
        assert function.device.live
        assert not function.device.driver_is_legacy

    def test_bits_above_31_do_not_count_for_a_legacy_driver(self, function, memory):
        acknowledge(function)
        self.modern(function, 0x08, 4, 1)
        self.modern(function, 0x0C, 4, VIRTIO_F_VERSION_1 >> 32)
        write(function, QUEUE_NOTIFY, 2, 0)
        assert function.device.driver_features == MULTIPORT

    def test_a_live_modern_driver_is_not_harmed_by_legacy_writes(self, function):
        self.negotiate(function)
        write(function, STATUS, 1, 3)
        write(function, DRIVER_FEATURES, 4, 0)
        assert function.device.live
        assert function.device.driver_features == VIRTIO_F_VERSION_1


def test_a_successor_of_one_that_was_killed_over_the_first_doorbell_begins(memory, monkeypatch):
    first, block = build_function(has_legacy=True)
    memory.map_into(first.device.memory)
    acknowledge(first)
    place(first, TX, BASE)
    place(first, TX - 1, BASE + 0x10000)
    monkeypatch.setattr(first.device, "enable_queue", lambda index: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(first, QUEUE_NOTIFY, 2, TX)
    second, _ = build_function(block=block, has_legacy=True)
    memory.map_into(second.device.memory)
    second.device.take_over()
    write(second, QUEUE_NOTIFY, 2, TX)
    assert second.device.live
    assert second.device.queues[TX].ring.attached
    assert second.device.queues[TX - 1].enabled
    second.device.reset()


def test_a_successor_goes_on_with_a_legacy_driver(function, memory):
    first, block = build_function(has_legacy=True)
    memory.map_into(first.device.memory)
    acknowledge(first)
    place(first, TX, BASE)
    write(first, QUEUE_NOTIFY, 2, TX)
    second, _ = build_function(block=block, has_legacy=True)
    memory.map_into(second.device.memory)
    second.device.take_over()
    assert second.device.live
    assert second.device.driver_is_legacy
    assert second.device.queues[TX].ring.attached
    assert read(second, STATUS, 1) == 3
    first.device.reset()
    second.device.reset()
