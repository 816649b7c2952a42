"""The driver's PCI transport: on the project's own function, and on configuration spaces that lie."""

from __future__ import annotations

import gc
import os
import struct
from types import SimpleNamespace

import pytest
from support.driver_devices import BufferEnd, Listening, QuietEvents

from virtserial.console.device import ConsoleDevice
from virtserial.console.wire import VIRTIO_ID_CONSOLE
from virtserial.driver.console_driver import ConsoleDriver
from virtserial.driver.dma import DmaMemory
from virtserial.driver.legacy_function import LegacyFunction
from virtserial.driver.pci_capabilities import find_capabilities
from virtserial.driver.pci_function import PciFunction
from virtserial.errors import ConfigError, DriverError, PeerError
from virtserial.loop import EventLoop
from virtserial.memory.region import MappedRegion
from virtserial.memory.state import StateMemory
from virtserial.pci.function import VirtioPciFunction
from virtserial.state.device_state import load, save
from virtserial.state.pci_state import PciState
from virtserial.virtio.features import TRANSPORT_FEATURES


class FunctionAccess:
    """DeviceAccess to a VirtioPciFunction in this process."""

    def __init__(self, function, device):
        self.function, self.device = function, device
        self.end, self.other_end = os.pipe()
        self.polls = 0

    def region_info(self, index):
        return SimpleNamespace(size=self.function.region_size(index))

    def irq_info(self, index):
        return SimpleNamespace(count=self.function.irq_count(index))

    def region_read(self, region, offset, length):
        return bytes(self.function.region_read(region, offset, length))

    def region_write(self, region, offset, data, posted=False, more=False):
        doorbell = self.function.doorbell_offsets.get(offset) if region == self.function.doorbell_region else None
        if doorbell is not None:
            self.function.ring_doorbell(doorbell)
        else:
            self.function.region_write(region, offset, data)

    def dma_map(self, iova, size, *, fd=None, offset=0, readable=True, writable=True):
        self.device.memory.map(MappedRegion(iova, size, fd, offset))
        self.device.memory_mapped()

    def dma_unmap(self, iova, size):
        self.device.memory_unmapped(iova, size)
        self.device.memory.unmap(iova, size)

    def set_irqs(self, index, start, eventfds):
        self.function.set_irq_eventfds(index, start, [os.dup(fd) for fd in eventfds])

    def disable_irqs(self, index):
        self.function.set_irq_eventfds(index, 0, [])

    def unmask_irqs(self, index):
        self.function.unmask_irqs(index, 0, 1)

    def fileno(self):
        return self.end

    def poll(self):
        self.polls += 1

    def close(self):
        os.close(self.end)
        os.close(self.other_end)
        for index in (0, 2):
            self.function.set_irq_eventfds(index, 0, [])


@pytest.fixture
def loop():
    loop = EventLoop()
    yield loop
    loop.close()


def build(loop, vectors, max_ports=8, **interfaces):
    size = ConsoleDevice.state_size(max_ports) + VirtioPciFunction.state_size
    state = StateMemory(bytearray(size + -size % 8))
    device = ConsoleDevice(state, max_ports, TRANSPORT_FEATURES, loop, QuietEvents())
    function = VirtioPciFunction(device, state, vectors=vectors, **interfaces)
    return device, FunctionAccess(function, device)


def run_until(loop, condition):
    for _ in range(2000):
        if condition():
            return
        loop.run_once(timeout=0.01)
    raise AssertionError("it did not come to that")


@pytest.mark.parametrize("interface", [PciFunction, LegacyFunction])
@pytest.mark.parametrize("vectors", [0, 1, 2, 3, 18, 64])
def test_bytes_both_ways_with_any_number_of_vectors(loop, vectors, interface):
    legacy = interface is LegacyFunction
    device, access = build(loop, vectors, has_legacy=legacy)
    host = BufferEnd()
    device.add_port(5, "org.example", False, True).attach(host)
    driver = ConsoleDriver(interface(access, loop, VIRTIO_ID_CONSOLE), legacy=legacy)
    driver.start()
    run_until(loop, lambda: 5 in driver.ports and driver.ports[5].host_connected)
    port, listener = driver.ports[5], Listening()
    assert port.name == "org.example"
    port.open(listener)
    assert port.write(b"question") == 8
    run_until(loop, lambda: host.taken == b"question")
    assert port.read(1) == b""
    host.give(b"answer")
    run_until(loop, lambda: "readable" in listener.told)
    assert port.read(100) == b"answer"
    driver.close()


@pytest.mark.parametrize("vectors", [0, 18])
@pytest.mark.parametrize("has_modern", [True, False])
def test_a_legacy_driver_goes_on_at_a_device_that_was_moved(loop, vectors, has_modern):
    old, old_access = build(loop, vectors, has_legacy=True, has_modern=has_modern)
    host = BufferEnd()
    old.add_port(5, "org.example", False, True).attach(host)
    memory = DmaMemory(old_access)
    transport = LegacyFunction(old_access, loop, VIRTIO_ID_CONSOLE)
    driver = ConsoleDriver(transport, memory=memory, legacy=True)
    driver.start()
    run_until(loop, lambda: 5 in driver.ports and driver.ports[5].host_connected)
    port = driver.ports[5]
    port.open(Listening())
    port.write(b"before")
    run_until(loop, lambda: host.taken == b"before")

    old.pause()
    state = save(old, PciState(old_access.function))
    new, new_access = build(loop, vectors, has_legacy=True, has_modern=has_modern)
    host = BufferEnd()
    new.add_port(5, "org.example", False, True).attach(host)
    for region in memory.regions:
        new_access.dma_map(region.iova, region.size, fd=region.fd)
    new.pause()
    load(new, PciState(new_access.function), state)
    transport.replace_access(new_access).close()
    new.resume()
    assert new.driver_is_legacy
    port.write(b"after")
    run_until(loop, lambda: host.taken == b"after")
    host.give(b"answer")
    answer = bytearray()
    run_until(loop, lambda: answer.extend(port.read(100)) or answer == b"answer")
    driver.close()


@pytest.mark.parametrize(
    ("interfaces", "words"),
    [
        ({}, "legacy is True there and False here: both sides need the same disable-legacy="),
        ({"has_legacy": True, "has_modern": False}, "modern is True there and False here"),
        ({"has_legacy": True, "page_per_vq": True}, "PCI configuration: byte"),
    ],
)
def test_the_state_of_a_function_with_other_interfaces_is_refused(loop, interfaces, words):
    old, old_access = build(loop, 2, has_legacy=True)
    old.pause()
    state = save(old, PciState(old_access.function))
    new, new_access = build(loop, 2, **interfaces)
    new.pause()
    with pytest.raises(ConfigError, match=words):
        load(new, PciState(new_access.function), state)
    old_access.close()
    new_access.close()


def test_a_failed_device_is_noticed_through_the_configuration_interrupt(loop):
    device, access = build(loop, 4)
    device.add_port(5, "org.example", False, True).attach(BufferEnd())
    driver = ConsoleDriver(PciFunction(access, loop, VIRTIO_ID_CONSOLE))
    driver.start()
    run_until(loop, lambda: 5 in driver.ports)
    device.fail(DriverError("for this test"))
    run_until(loop, lambda: not driver.ports)
    driver.close()


def test_the_end_of_the_connection_ends_the_driver(loop):
    device, access = build(loop, 4)
    device.add_port(5, "org.example", False, True).attach(BufferEnd())
    driver = ConsoleDriver(PciFunction(access, loop, VIRTIO_ID_CONSOLE))
    driver.start()
    run_until(loop, lambda: 5 in driver.ports)
    os.close(access.other_end)
    run_until(loop, lambda: not driver.ports)
    assert access.polls
    access.other_end = os.dup(0)
    driver.close()


def test_starting_again_leaves_no_descriptor_behind(loop):
    _, access = build(loop, 4)
    driver = ConsoleDriver(PciFunction(access, loop, VIRTIO_ID_CONSOLE))
    driver.start()
    driver.stop()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        driver.start()
        driver.stop()
    assert len(os.listdir("/proc/self/fd")) == before
    driver.close()


# Configuration spaces that lie


class ConfigurationAccess:
    """DeviceAccess to 256 bytes, with BARs of one size."""

    def __init__(self, config, bar_size=0x4000):
        self.config, self.bar_size = bytes(config), bar_size

    def region_read(self, region, offset, length):
        return self.config[offset : offset + length].ljust(length, b"\0")

    def region_info(self, index):
        return SimpleNamespace(size=self.bar_size)


def capability(following, cfg_type, bar=4, offset=0, length=0x1000, cap_length=16, tail=b""):
    return struct.pack("<BBBBBBxxII", 9, following, cap_length, cfg_type, bar, 0, offset, length) + tail


@pytest.fixture
def config():
    """A right one; tests break it."""
    config = bytearray(256)
    config[0:4] = struct.pack("<HH", 0x1AF4, 0x1043)
    config[6] = 0x10
    config[0x34] = 0x40
    config[0x40:0x50] = capability(0x50, 1)
    config[0x50:0x60] = capability(0x60, 3, offset=0x1000)
    config[0x60:0x70] = capability(0x70, 4, offset=0x2000)
    config[0x70:0x84] = capability(0x84, 2, offset=0x3000, cap_length=20, tail=struct.pack("<I", 4))
    config[0x84:0x90] = struct.pack("<BBHII", 0x11, 0, 31, 1, 0x801)
    return config


def test_a_right_configuration_space_is_understood(config):
    found = find_capabilities(ConfigurationAccess(config), VIRTIO_ID_CONSOLE)
    assert found.common == (4, 0, 0x1000)
    assert found.notify == (4, 0x3000, 0x1000)
    assert found.notify_multiplier == 4
    assert found.msix == (0x84, 32)


def test_a_transitional_function_is_understood_too(config):
    config[2:4] = struct.pack("<H", 0x1003)
    find_capabilities(ConfigurationAccess(config), VIRTIO_ID_CONSOLE)


def test_unusable_structures_before_usable_ones_are_skipped(config):
    config[0x34] = 0xA0
    config[0xA0:0xB0] = capability(0xB0, 1, bar=6)
    config[0xB0:0xC0] = capability(0xC0, 9)
    config[0xC0:0xC4] = bytes([0x05, 0xFC, 0, 0])
    config[0xFC:0x100] = bytes([0x09, 0x40, 0x10, 0x01])
    assert find_capabilities(ConfigurationAccess(config), VIRTIO_ID_CONSOLE).common.bar == 4


@pytest.mark.parametrize(
    ("at", "data", "text"),
    [
        (0, b"\x86\x80", "8086:1043 is not virtio"),
        (2, b"\x42\x10", "1af4:1042 is not virtio"),
        (6, b"\x00", "no virtio structure of type 1"),
        (0x34, b"\x00", "no virtio structure of type 1"),
        (0x34, b"\x3c", "inside the header"),
        (0x85, b"\x40", "seen before"),
        (0x41, b"\x40", "seen before"),
        (0x4C, struct.pack("<I", 55), "type 1 has 55 bytes"),
        (0x48, struct.pack("<I", 0x3FF0), "of BAR 4, which has 16384"),
        (0x48, struct.pack("<I", 0xFFFFFFFF), "of BAR 4, which has 16384"),
        (0x72, b"\x10", "notify capability of 16 bytes"),
        (0x80, struct.pack("<I", 3), "notify_off_multiplier 3"),
        (0x80, struct.pack("<I", 1), "notify_off_multiplier 1"),
    ],
)
def test_a_configuration_space_that_breaks_a_rule_is_refused(config, at, data, text):
    config[at : at + len(data)] = data
    with pytest.raises(PeerError, match=text):
        find_capabilities(ConfigurationAccess(config), VIRTIO_ID_CONSOLE)


# Registers that lie


class LyingRegisters(FunctionAccess):
    """Registers of the common configuration whose reads the test gives: offset -> function of the true value."""

    def __init__(self, function, device):
        super().__init__(function, device)
        self.lies = {}

    def region_read(self, region, offset, length):
        true = super().region_read(region, offset, length)
        lie = self.lies.get(offset) if region == 4 else None
        return true if lie is None else lie(int.from_bytes(true, "little")).to_bytes(length, "little")


@pytest.mark.parametrize(
    ("offset", "lie", "text"),
    [
        (0x10, lambda value: 0xFFFF, "configuration does not take MSI-X vector 0"),
        (0x1A, lambda value: 0xFFFF, "does not take MSI-X vector"),
        (0x1C, lambda value: 0, "does not enable"),
        (0x1E, lambda value: 0xFFFF, "doorbell of queue 0 is at"),
        (0x18, lambda value: 0, "queue 0 does not exist"),
    ],
)
def test_a_register_that_lies_ends_the_start(loop, offset, lie, text):
    device, plain = build(loop, 4)
    access = LyingRegisters(plain.function, device)
    access.lies[offset] = lie
    driver = ConsoleDriver(PciFunction(access, loop, VIRTIO_ID_CONSOLE))
    with pytest.raises(PeerError, match=text):
        driver.start()
    access.lies.clear()
    driver.start()
    driver.close()


def test_a_device_that_does_not_come_out_of_reset_is_given_up(loop, monkeypatch):
    monkeypatch.setattr("virtserial.driver.pci_transport.RESET_TIME_LIMIT", 0.05)
    device, plain = build(loop, 4)
    access = LyingRegisters(plain.function, device)
    access.lies[0x14] = lambda value: 1
    function = PciFunction(access, loop, VIRTIO_ID_CONSOLE)
    with pytest.raises(PeerError, match="after a reset"):
        function.reset()
    function.close()


def test_a_configuration_that_never_rests_is_given_up(loop):
    device, plain = build(loop, 4)
    access = LyingRegisters(plain.function, device)
    counter = iter(range(1000))
    access.lies[0x15] = lambda value: next(counter) & 0xFF
    function = PciFunction(access, loop, VIRTIO_ID_CONSOLE)
    with pytest.raises(PeerError, match="changes faster"):
        function.read_config(0, 4)
    access.lies.clear()
    assert function.read_config(1 << 20, 4) == b""
    with pytest.raises(PeerError, match="no field at"):
        function.write_config(1 << 20, b"\0")
    function.close()
