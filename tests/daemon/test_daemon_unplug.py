"""unplug=on over the real socket: MSI-X by messages, which guest and VMM may drive as they like."""

from __future__ import annotations

import random
import select
import signal
import struct
import time

import pytest
from support.device_process import controller_options, port_options
from support.embedded_guest import EmbeddedGuest
from support.raw_vmm import VERSION, RawVmm

from virtserial.errors import PeerError
from virtserial.pci import layout
from virtserial.vfio_user import wire
from virtserial.vfio_user.client import Client

CONFIG, MSIX = wire.VFIO_PCI_CONFIG_REGION_INDEX, wire.VFIO_PCI_MSIX_IRQ_INDEX
ADDRESS = 0xFEE00000
MASTER = layout.PCI_COMMAND_MASTER.to_bytes(2, "little")
ENABLED, MASKED_AS_A_WHOLE = b"\x00\x80", b"\x00\xc0"
NO_REPLY = wire.VFIO_USER_NO_REPLY


class Apic:
    """Notes what is written into the guest's address space."""

    def __init__(self):
        self.written = []

    def read(self, iova, length):
        raise PeerError("nobody may read there")

    def write(self, iova, data):
        self.written.append((iova, int.from_bytes(data, "little")))


class Qemu(Client):
    """A VMM that takes messages; its guest has enabled MSI-X."""

    def __init__(self, path):
        self.apic = Apic()
        super().__init__(path, dma_handler=self.apic)

    def capabilities_of_device(self):
        found, at = [], self.region_read(CONFIG, layout.PCI_CAPABILITY_LIST, 1)[0]
        while at:
            kind, following = self.region_read(CONFIG, at, 2)
            found.append((kind, at))
            at = following
        return found

    def has_msix(self):
        return layout.PCI_CAP_ID_MSIX in dict(self.capabilities_of_device())

    def boot(self, vectors=4):
        self.reset()
        self.control = next(at for kind, at in self.capabilities_of_device() if kind == layout.PCI_CAP_ID_MSIX) + 2
        for vector in range(vectors):
            self.entry(vector, ADDRESS, 0x40 + vector)
        self.region_write(CONFIG, layout.PCI_COMMAND, MASTER)
        self.region_write(CONFIG, self.control, ENABLED)
        return self

    def entry(self, vector, address, data, control=0, posted=False):
        whole = struct.pack("<QII", address, data, control)
        self.region_write(layout.MSIX_BAR, 16 * vector, whole, posted=posted)

    def mask(self, vector, masked, posted=False):
        self.region_write(layout.MSIX_BAR, 16 * vector + 12, masked.to_bytes(4, "little"), posted=posted)

    def pending(self):
        return int.from_bytes(self.region_read(layout.MSIX_BAR, 2048, 8), "little")

    def messages(self, wanted=1, seconds=60.0):
        """Wait for so many messages; return all there are."""
        deadline = time.monotonic() + seconds
        while len(self.apic.written) < wanted and time.monotonic() < deadline:
            if select.select([self], [], [], 0.05)[0]:
                self.poll()
        self.region_read(CONFIG, 0, 2)  # What was sent before that has been read now.
        written, self.apic.written = self.apic.written, []
        return written


@pytest.fixture
def device(start, folder):
    more = ",unplug=on,vectors=4"
    return start(*controller_options(folder, more=more), *port_options(folder, "a", 1), *port_options(folder, "b", 2))


@pytest.fixture
def qemu(device, folder):
    with Qemu(folder / "ser0.sock") as vmm:
        yield vmm.boot()


def test_hidden_until_the_reset_and_hidden_from_the_next(device, folder):
    for _ in range(3):
        with Qemu(folder / "ser0.sock") as vmm:
            assert not vmm.has_msix()
            vmm.reset()
            assert vmm.has_msix()


def test_a_client_that_takes_no_messages_has_it_at_once(device, folder):
    with RawVmm(folder / "ser0.sock") as vmm:
        vmm.send(VERSION)  # names no write_multiple, as Cloud Hypervisor
        vmm.reply()
        access = wire.RegionAccess(0, CONFIG, 256)
        vmm.send(wire.request(wire.VFIO_USER_REGION_READ, 2, access.pack()))
        config = vmm.reply()[1][16:]
    at, kinds = config[layout.PCI_CAPABILITY_LIST], set()
    while at:
        kinds.add(config[at])
        at = config[at + 1]
    assert layout.PCI_CAP_ID_MSIX in kinds


def test_a_driver_that_knows_nothing_of_it_works(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        guest.check_port("a", folder / "a", 100_000)


def test_without_unplug_nothing_changes(start, folder):
    start(*controller_options(folder), *port_options(folder, "a", 1))
    with Qemu(folder / "ser0.sock") as vmm:
        assert vmm.has_msix()


def test_messages_go_where_the_table_says(qemu):
    qemu.trigger_irqs(MSIX, 0, 4)
    assert qemu.messages(4) == [(ADDRESS, 0x40 + vector) for vector in range(4)]


@pytest.mark.parametrize("address", [0, 0x1000, 0xFEDFF000, 0xFEF00000, 1 << 32 | ADDRESS, (1 << 64) - 4, ADDRESS + 1])
def test_a_table_with_addresses_that_are_no_interrupts(qemu, address):
    qemu.entry(1, address, 0xBAD)
    qemu.trigger_irqs(MSIX, 1, 1)
    qemu.trigger_irqs(MSIX, 0, 1)
    assert qemu.messages() == [(ADDRESS, 0x40)]
    assert qemu.pending() == 0b10
    qemu.entry(1, ADDRESS + 0xFFFFC, 0x41)
    assert qemu.messages() == [(ADDRESS + 0xFFFFC, 0x41)]


def test_masks_and_bus_mastering_hold_messages_back(qemu):
    for close, reopen in (
        (lambda: qemu.mask(2, 1), lambda: qemu.mask(2, 0)),
        (lambda: qemu.region_write(CONFIG, qemu.control, MASKED_AS_A_WHOLE),
         lambda: qemu.region_write(CONFIG, qemu.control, ENABLED)),
        (lambda: qemu.region_write(CONFIG, layout.PCI_COMMAND, b"\0\0"),
         lambda: qemu.region_write(CONFIG, layout.PCI_COMMAND, MASTER)),
    ):  # fmt: skip
        close()
        for _ in range(3):
            qemu.trigger_irqs(MSIX, 2, 1)
        assert (qemu.messages(1, 0.1), qemu.pending()) == ([], 0b100)
        reopen()
        assert (qemu.messages(), qemu.pending()) == ([(ADDRESS, 0x42)], 0)


def test_a_successor_sends_what_its_predecessor_could_not(device, qemu):
    qemu.mask(0, 1)
    qemu.mask(3, 1)
    qemu.trigger_irqs(MSIX, 0, 4)
    assert qemu.messages(2) == [(ADDRESS, 0x41), (ADDRESS, 0x42)]
    device.wait_for_new_worker(device.kill_worker())
    assert qemu.has_msix()
    assert qemu.pending() == 0b1001
    qemu.mask(3, 0)
    assert qemu.messages() == [(ADDRESS, 0x43)]
    qemu.trigger_irqs(MSIX, 1, 1)
    assert qemu.messages() == [(ADDRESS, 0x41)]


def test_a_storm_of_unmasking_and_table_writes_during_traffic(device, folder):
    """Another controller of the process is served meanwhile; messages are no more than signals."""
    chance = random.Random(7)
    with Qemu(folder / "ser0.sock") as vmm:
        vmm.boot()
        signals, deadline = 0, time.monotonic() + 3
        while time.monotonic() < deadline:
            for _ in range(200):
                vector = chance.randrange(4)
                vmm.mask(vector, 1, posted=True)
                vmm.entry(vector, chance.choice([ADDRESS, 0, 1 << 40, 0xFEF00000]), 1, posted=True)
                vmm.mask(vector, 0, posted=True)
            vmm.trigger_irqs(MSIX, chance.randrange(4), 1)
            signals += 1
        messages = vmm.messages(0)
        assert 0 < len(messages) <= signals
        assert {address for address, _ in messages} == {ADDRESS}
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        guest.check_port("a", folder / "a", 100_000)


def test_a_vmm_that_does_not_read_gets_each_message_once_it_does(device, folder):
    with Qemu(folder / "ser0.sock") as vmm:
        vmm.boot()
        vmm.trigger_irqs(MSIX, 0, 1)
        assert vmm.messages() == [(ADDRESS, 0x40)]  # so its form of a message is known
        trigger = wire.VFIO_IRQ_SET_DATA_NONE | wire.VFIO_IRQ_SET_ACTION_TRIGGER
        burst = wire.request(
            wire.VFIO_USER_DEVICE_SET_IRQS, 0, wire.IrqSet(20, trigger, MSIX, 0, 4).pack(), NO_REPLY
        )  # fmt: skip
        sock = vmm._sock
        sock.setblocking(True)
        for _ in range(2000):
            sock.sendall(burst)
        time.sleep(0.3)
        sock.setblocking(False)
        messages = vmm.messages(2000 * 4, 1)
        assert 4 <= len(messages) <= 2000 * 4
        assert {data for _, data in messages} == {0x40, 0x41, 0x42, 0x43}
        assert vmm.pending() == 0
        vmm.trigger_irqs(MSIX, 2, 1)
        assert vmm.messages() == [(ADDRESS, 0x42)]


def test_answers_to_messages_are_ignored(device, qemu, folder):
    qemu.trigger_irqs(MSIX, 0, 1)
    qemu.messages()
    header = wire.Header(0, wire.VFIO_USER_DMA_WRITE, 16, 0, 0)
    for answer in (wire.reply(header), wire.error_reply(header, 14), wire.reply(header, bytes(16))):
        qemu._sock.sendall(answer * 100)
    qemu.trigger_irqs(MSIX, 1, 1)
    assert qemu.messages() == [(ADDRESS, 0x41)]
    assert "connection is closed" not in device.log


def test_a_renewed_process_knows_the_table_and_that_it_can_be_unplugged(device, qemu):
    qemu.mask(0, 1)
    qemu.trigger_irqs(MSIX, 0, 2)
    assert qemu.messages() == [(ADDRESS, 0x41)]
    worker = device.worker
    device.process.send_signal(signal.SIGUSR2)
    device.wait_for_new_worker(worker)
    assert qemu.has_msix()
    assert qemu.pending() == 0b1
    qemu.mask(0, 0)
    assert qemu.messages() == [(ADDRESS, 0x40)]
    qemu.trigger_irqs(MSIX, 3, 1)
    assert qemu.messages() == [(ADDRESS, 0x43)]
