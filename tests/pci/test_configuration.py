"""Configuration space and capability list, read the way a driver does."""

from __future__ import annotations

import struct

import pytest
from support.console_function import build_function

from virtserial.errors import ConfigError
from virtserial.memory.state import StateMemory
from virtserial.pci import layout
from virtserial.pci.capabilities import Capability
from virtserial.pci.configuration import ConfigurationSpace, Identity

CONFIG = 7


def read(function, offset, length):
    return int.from_bytes(function.region_read(CONFIG, offset, length), "little")


def write(function, offset, length, value):
    function.region_write(CONFIG, offset, value.to_bytes(length, "little"))


def capabilities(function):
    """The list as (id, bytes), walked from the pointer at 0x34."""
    found, offset = [], read(function, layout.PCI_CAPABILITY_LIST, 1)
    while offset:
        kind = read(function, offset, 1)
        size = 12 if kind == layout.PCI_CAP_ID_MSIX else read(function, offset + 2, 1)
        found.append((kind, offset, function.region_read(CONFIG, offset, size)))
        offset = read(function, offset + 1, 1)
    return found


def test_identity_is_a_modern_console(function):
    assert read(function, 0x00, 4) == 0x1043_1AF4
    assert read(function, 0x08, 4) == 0x0780_0001
    assert read(function, 0x2C, 4) == 0x1100_1AF4
    assert read(function, layout.PCI_STATUS, 2) == layout.PCI_STATUS_CAP_LIST
    assert read(function, layout.PCI_INTERRUPT_PIN, 1) == 1
    assert read(function, 0x0E, 1) == 0  # header type


def test_bars_tell_their_size_and_type(function):
    for offset in range(0x10, 0x28, 4):
        write(function, offset, 4, 0xFFFFFFFF)
    sizes = [read(function, offset, 4) for offset in range(0x10, 0x28, 4)]
    assert sizes == [0, 0xFFFFF000, 0, 0, 0xFFFFC00C, 0xFFFFFFFF]


def test_bars_keep_an_address(function):
    write(function, 0x20, 8, 0x38_0000_0000 | 0x3FFF)
    assert read(function, 0x20, 8) == 0x38_0000_000C


def test_registers_that_are_not_writable_stay(function):
    before = function.region_read(CONFIG, 0, 256)
    for offset in (0x00, 0x06, 0x08, 0x0A, 0x0E, 0x2C, 0x34, 0x3D, 0x41):
        write(function, offset, 1, 0xFF)
    assert function.region_read(CONFIG, 0, 256) == before


def test_command_has_its_writable_bits(function):
    write(function, layout.PCI_COMMAND, 2, 0xFFFF)
    assert read(function, layout.PCI_COMMAND, 2) == 0x0547


@pytest.mark.parametrize(("offset", "length"), [(255, 4), (256, 1), (300, 8)])
def test_reads_past_the_end_are_zero_and_writes_ignored(function, offset, length):
    assert function.region_read(CONFIG, offset, length) == bytes(length)
    function.region_write(CONFIG, offset, b"\xff" * length)


def test_capability_list_has_the_five_of_virtio_and_msix(function):
    found = capabilities(function)
    assert [kind for kind, _, _ in found] == [9, 9, 9, 9, 9, 0x11]
    areas = [struct.unpack("<BBBxxxII", data[2:16]) for _, _, data in found[:5]]
    assert [(kind, bar, offset, length) for _, kind, bar, offset, length in areas] == [
        (1, 4, 0x0000, 0x1000),
        (3, 4, 0x1000, 0x1000),
        (4, 4, 0x2000, 0x1000),
        (2, 4, 0x3000, 0x1000),
        (5, 0, 0, 0),
    ]
    assert [size for size, *_ in areas] == [16, 16, 16, 20, 20]
    assert found[3][2][16:] == struct.pack("<I", 4)  # notify_off_multiplier


def test_msix_capability_says_where_table_and_pending_bits_are(function):
    _, offset, data = capabilities(function)[5]
    assert struct.unpack("<HII", data[2:]) == (2, 1, 2048 | 1)
    write(function, offset + 2, 2, 0xFFFF)
    assert read(function, offset + 2, 2) == 0xC002


@pytest.mark.parametrize(
    ("vectors", "pba_offset", "pba_size", "bar_size"),
    [
        (0, 0, 0, 0),
        (1, 2048, 8, 4096),
        (64, 2048, 8, 4096),
        (129, 2064, 24, 4096),
        (256, 4096, 32, 8192),
        (2048, 32768, 256, 65536),
    ],
)
def test_msix_bar_is_as_large_as_qemus(vectors, pba_offset, pba_size, bar_size):
    assert layout.MsixLayout.of(vectors) == (vectors, pba_offset, pba_size, bar_size)
    function, _ = build_function(vectors)
    assert function.region_size(layout.MSIX_BAR) == bar_size
    assert function.irq_count(2) == vectors


def test_without_vectors_there_is_no_msix():
    function, _ = build_function(vectors=0)
    assert [kind for kind, _, _ in capabilities(function)] == [9] * 5
    write(function, 0x14, 4, 0xFFFFFFFF)
    assert read(function, 0x14, 4) == 0
    assert function.region_flags(layout.MSIX_BAR) == 0
    assert function.irq_flags(2) == 0


@pytest.mark.parametrize("vectors", [-1, 2049])
def test_too_many_vectors_are_refused(vectors):
    with pytest.raises(ConfigError, match="0 to 2048 vectors"):
        build_function(vectors)


def test_too_many_queues_are_refused(function):
    function.device.queues *= 110
    with pytest.raises(ConfigError, match="1024"):
        type(function)(function.device, StateMemory(bytearray(4096)), vectors=0)


def test_capabilities_that_do_not_fit_are_refused():
    state = StateMemory(bytearray(1024))
    with pytest.raises(ConfigError, match="256 bytes"):
        ConfigurationSpace(state, Identity(0, 0, 0, 0, 0), [], [Capability(bytes(100), bytes(100))] * 3)


def test_a_space_without_capabilities_says_so():
    space = ConfigurationSpace(StateMemory(bytearray(1024)), Identity(0, 0, 0, 0, 0), [], [])
    assert space.word(layout.PCI_STATUS) == 0


def test_reset_restores_it(function):
    before = function.region_read(CONFIG, 0, 256)
    write(function, layout.PCI_COMMAND, 2, 7)
    write(function, 0x20, 4, 0xFE000000)
    function.reset()
    assert function.region_read(CONFIG, 0, 256) == before


class TestWindow:
    """VIRTIO_PCI_CAP_PCI_CFG: registers without a mapped BAR."""

    def aim(self, function, bar, offset, length):
        window = capabilities(function)[4][1]
        write(function, window + 4, 1, bar)
        write(function, window + 8, 4, offset)
        write(function, window + 12, 4, length)
        return window + 16

    def test_it_reads_a_register(self, function):
        data = self.aim(function, 4, 0x12, 2)
        assert read(function, data, 4) == function.device.num_queues

    def test_it_writes_a_register(self, function):
        data = self.aim(function, 4, 0x14, 1)
        write(function, data, 4, 1)
        assert function.device.status == 1

    def test_it_reads_the_msix_table(self, function):
        function.region_write(1, 8, b"\x12\x34\x56\x78")
        assert read(function, self.aim(function, 1, 8, 4), 4) == 0x78563412

    @pytest.mark.parametrize(
        ("bar", "offset", "length"),
        [(0, 0, 4), (7, 0, 4), (4, 1, 2), (4, 0, 3), (4, 0, 8), (4, 0, 0), (4, 0x4000, 4), (4, 0xFFFFFFFC, 4)],
    )
    def test_nonsense_does_nothing(self, function, bar, offset, length):
        data = self.aim(function, bar, offset, length)
        before = function.ignored_accesses
        write(function, data, 4, 0xFFFFFFFF)
        assert read(function, data, 4) == 0xFFFFFFFF
        assert function.device.status == 0
        assert function.ignored_accesses == before + 2

    def test_a_read_beside_its_data_touches_nothing(self, function):
        window = self.aim(function, 4, 0x1000, 1) - 16
        function.config_interrupt()
        assert read(function, window, 8) != 0
        assert function.record.isr == layout.VIRTIO_PCI_ISR_CONFIG
