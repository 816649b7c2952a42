"""What a guest can reach (chains over any memory, control messages, registers, rings), and a lying device's driver."""

from __future__ import annotations

import struct

from fuzz.any_bytes import AnyBytes
from support.driver_devices import LyingDevice

from virtserial.conformance.driver import HostileDriver
from virtserial.conformance.steps import AVAIL_OFFSET, BUFFER, QUEUES, RING_STRIDE, RINGS, USED_OFFSET
from virtserial.driver.console_driver import ConsoleDriver
from virtserial.errors import DriverError, PeerError, StateError
from virtserial.memory.region import MessageRegion
from virtserial.memory.state import StateMemory
from virtserial.memory.table import MemoryTable
from virtserial.pci.function import VFIO_PCI_CONFIG_REGION_INDEX
from virtserial.testing.hostile.in_memory import InMemoryMachine
from virtserial.testing.hostile.over_legacy import LegacyMachine
from virtserial.virtio.queue import Virtqueue
from virtserial.virtio.ring.chains import MAX_CHAIN_LENGTH
from virtserial.virtio.ring.record import QueueRecord

MEMORY = 1 << 16
BASE = 0x10000
SIZE = 16
LIMIT = 1 << 20


class GuestBytes:
    """Guest memory that is filled with the fuzzer's bytes, reached by messages: nothing outside of it exists."""

    def __init__(self, data):
        self.bytes = bytearray(data[:MEMORY].ljust(MEMORY, b"\0"))
        self.used = []

    def dma_read(self, address, length):
        assert BASE <= address <= address + length <= BASE + MEMORY
        return bytes(self.bytes[address - BASE : address - BASE + length])

    def dma_write(self, address, data):
        assert BASE <= address <= address + len(data) <= BASE + MEMORY
        self.bytes[address - BASE : address - BASE + len(data)] = data


def chains(data):
    """Descriptor table, available ring and buffers are the fuzzer's; the table's first page too is memory."""
    source = AnyBytes(data)
    writable, skip, indirect, idx = source.u8() & 1, source.u8(), source.u8() & 1, source.u16() % 24
    memory = GuestBytes(b"")
    # Descriptors first, then the available ring; addresses are pulled into memory, or nearly.
    for index in range(SIZE):
        address, length, flags, following = source.u16(), source.u32(), source.u8() & 7, source.u8() % 20
        length = length if length & 0x80000000 else length & 0xFFF
        near = BASE + address if address & 7 else address << 44
        memory.bytes[16 * index : 16 * index + 16] = struct.pack("<QIHH", near, length, flags, following)
    heads = [source.u8() % 18 for _ in range(SIZE)]
    struct.pack_into(f"<HH{SIZE}H", memory.bytes, 0x200, 0, idx, *heads)
    rest = source.rest()[: MEMORY - 0x1000]
    memory.bytes[0x1000 : 0x1000 + len(rest)] = rest
    table = MemoryTable()
    table.map(MessageRegion(BASE, MEMORY, memory))
    queue = Virtqueue(5, SIZE, StateMemory(bytearray(64 + QueueRecord.SIZE)))
    queue.size, queue.desc_address, queue.avail_address, queue.used_address = SIZE, BASE, BASE + 0x200, BASE + 0x400
    queue.enable(False, bool(indirect))
    queue.attach(table)
    try:
        queue.ring.offset = skip
        batch = queue.ring.writable_chains(SIZE, LIMIT) if writable else queue.ring.readable_chains(SIZE, LIMIT)
        held = sum(map(len, batch.views))
        assert len(batch.heads) == len(batch.ends) == len(set(batch.heads)) <= SIZE
        assert list(batch.ends) == sorted(batch.ends)
        assert held <= LIMIT
        assert batch.walked <= 2 * MAX_CHAIN_LENGTH
        assert len(batch.views) <= 2 * MAX_CHAIN_LENGTH
        if batch.heads:
            assert held + (0 if writable else skip) <= batch.ends[-1] or batch.ends[-1] <= skip
        if writable and held:
            for view in batch.views:
                view[:] = b"w" * len(view)
            queue.ring.store(batch, held)
        queue.ring.give_back(batch.heads, [0] * len(batch.heads))
        assert queue.record.position == len(batch.heads) <= idx
    except DriverError:
        return


def control(data):
    """Anything on the control queues and on data queues of a device that is up, message after message."""
    source = AnyBytes(data)
    machine = InMemoryMachine()
    try:
        driver = HostileDriver(machine)
        driver.start()
        sent = 0
        while source.left() and sent < 64:
            length = source.u8() % 12
            message = source.take(length)
            if length == 8 and source.u8() & 1:
                # Sensible more often than not: a small port, a known event.
                message = struct.pack("<IHH", message[0] % 6, message[4] % 9, message[6])
            machine.write(BUFFER, message)
            driver.send(3, BUFFER, max(len(message), 1), source.u8() & 2)
            machine.settle()
            if source.u8() & 1:
                driver.send(2, BUFFER + 0x2000, 1 + source.u8(), 2)
                machine.settle()
            sent += 1
        for slot in machine.device.slots:
            assert slot.record.pending < 64
            assert slot.record.guest_open in (0, 1)
        for queue in (2, 3):
            assert driver.used_index(queue) <= driver.offered(queue)
    finally:
        machine.close()


def registers(data):
    """Reads and writes of any size anywhere in the regions, doorbells, resets; rings may come to lie anywhere."""
    _registers(data, InMemoryMachine(), (1, 4, 4, 4, 7), b"\xf4\x1a\x43\x10")


def legacy_registers(data):
    """The same where a legacy interface is beside the modern one, and both are used in any order."""
    _registers(data, LegacyMachine(), (0, 0, 0, 4, 7), b"\xf4\x1a\x03\x10")


def _registers(data, machine, regions, identity):
    source = AnyBytes(data)
    try:
        function = machine.function
        sizes = {index: function.region_size(index) for index in range(function.num_regions)}
        while source.left():
            what, index = source.u8(), regions[source.u8() % 5]
            length = (1, 2, 4, 8, 3, 16, 64)[source.u8() % 7]
            offset = max(0, min(source.u16() % (0x60 if what & 4 else sizes[index]), sizes[index] - length))
            if what & 1:
                function.region_write(index, offset, source.take(length).ljust(length, b"\0"))
            else:
                assert len(function.region_read(index, offset, length)) == length
            machine.step()
        assert function.region_read(VFIO_PCI_CONFIG_REGION_INDEX, 0, 4) == identity
        function.reset()
        assert machine.device.status == 0
        driver = HostileDriver(machine)
        driver.start()
        machine.settle()
        machine.heard()
        assert driver.good_message_arrives(), "it does not work after a reset"
    finally:
        machine.close()


def rings(data):
    """A live device whose rings and tables are overwritten at random, with doorbells between."""
    source = AnyBytes(data)
    machine = InMemoryMachine()
    try:
        driver = HostileDriver(machine)
        driver.start()
        while source.left():
            queue = source.u8() % QUEUES
            base = RINGS + queue * RING_STRIDE
            place = (base, base + AVAIL_OFFSET, base + USED_OFFSET, BUFFER)[source.u8() % 4]
            machine.write(place + source.u8(), source.take(1 + source.u8() % 32))
            function = machine.function
            function.region_write(4, 0x3000 + 4 * queue, queue.to_bytes(2, "little"))
            machine.step()
        machine.settle()
        driver.start()
        machine.settle()
        machine.heard()
        assert driver.good_message_arrives(), "it does not work after a reset"
    finally:
        machine.close()


class _Told:
    """A DriverListener that only notes that its device has failed."""

    failed = False

    def port_added(self, port): ...
    def port_changed(self, port): ...
    def port_removed(self, port): ...

    def device_failed(self, error):
        assert isinstance(error, PeerError)
        self.failed = True


def lying_device(data):
    """The driver of a device that says what it likes: control messages, used rings, interrupts, configuration."""
    source = AnyBytes(data)
    device = LyingDevice()
    told = _Told()
    driver = ConsoleDriver(device, told, memory=device.memory)
    try:
        driver.start()
        while source.left() and not told.failed:
            what = source.u8() % 4
            if what == 0:
                payload = source.take(source.u8() % 40)
                message = struct.pack("<IHH", source.u8() % 6, source.u8() % 9, source.u16()) + payload
                if device.next_chain(2) is not None:
                    device.positions[2] -= 1
                    device.send_raw(message[: len(message) if source.u8() & 7 else source.u8()], source.u8() & 1)
            elif what == 1:
                index = source.u8() % device.num_queues
                if index in device.queues:
                    device.use(index, source.u8(), source.u16(), source.u16() if source.u8() & 1 else None)
            elif what == 2:
                driver.queue_interrupt(source.u8() % (device.num_queues + 2))
            else:
                device.config = source.take(source.u8() % 16)
                driver.config_interrupt()
            assert len(driver.ports) <= 4
            for port in driver.ports.values():
                port.read(100)
    except (PeerError, StateError):
        return
    finally:
        driver.close()
