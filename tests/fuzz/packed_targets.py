"""What a guest can write into a packed ring, and what a lying device can write into ours."""

from __future__ import annotations

import struct

from fuzz.any_bytes import AnyBytes
from fuzz.device_targets import BASE, LIMIT, MEMORY, SIZE, GuestBytes

from virtserial.conformance.packed_driver import PackedHostileDriver
from virtserial.conformance.steps import AVAIL_OFFSET, BUFFER, QUEUES, RING_STRIDE, RINGS, USED_OFFSET
from virtserial.errors import DriverError, PeerError
from virtserial.memory.region import MessageRegion
from virtserial.memory.state import StateMemory
from virtserial.memory.table import MemoryTable
from virtserial.testing.hostile.in_memory import InMemoryMachine
from virtserial.virtio.queue import Virtqueue
from virtserial.virtio.ring.chains import MAX_CHAIN_LENGTH
from virtserial.virtio.ring.packed.driver import PackedLayout, PackedQueue
from virtserial.virtio.ring.record import QueueRecord


def packed_chains(data):
    """The descriptor ring and the buffers are the fuzzer's, over and over; a worker is killed now and then."""
    source = AnyBytes(data)
    writable, indirect = source.u8() & 1, source.u8() & 1
    memory = GuestBytes(b"")
    table = MemoryTable()
    table.map(MessageRegion(BASE, MEMORY, memory))
    state = StateMemory(bytearray(64 + QueueRecord.SIZE))
    queue = Virtqueue(5, SIZE, state)
    queue.set_packed_size(1 + source.u8() % SIZE)
    queue.desc_address, queue.avail_address, queue.used_address = BASE, BASE + 0x200, BASE + 0x204
    queue.enable(bool(source.u8() & 1), bool(indirect), True)
    try:
        queue.attach(table)
        while source.left():
            for _ in range(source.u8() % 8):
                at, address, length, word = source.u8() % SIZE, source.u16(), source.u32(), source.u8()
                length = length if length & 0x80000000 else length & 0xFFF
                near = BASE + address if address & 7 else address << 44
                flags = word & 7 | (word & 8) << 4 | (word & 16) << 11
                struct.pack_into("<QIHH", memory.bytes, 16 * at, near, length, word, flags)
            memory.bytes[0x200:0x204] = source.take(4).ljust(4, b"\0")
            ring = queue.ring
            batch = ring.writable_chains(SIZE, LIMIT) if writable else ring.readable_chains(SIZE, LIMIT)
            assert len(batch.heads) == len(batch.ends) <= queue.size
            assert list(batch.ends) == sorted(batch.ends)
            assert sum(map(len, batch.views)) <= LIMIT
            assert batch.walked <= 2 * MAX_CHAIN_LENGTH
            assert len(batch.views) <= 2 * MAX_CHAIN_LENGTH
            count = source.u8() % (len(batch.heads) + 1)
            if source.u8() & 1:
                # A predecessor was killed behind its commit point; the driver has changed the ring since.
                queue.record.began = source.u16() % queue.size | source.u8() << 15 & 0x8000
                queue.attach(table)
                continue
            ring.give_back(batch.heads[:count], [0] * count if writable else None)
            ring.take_signal()
            ring.signal_is_urgent()
            ring.arm(source.u8())
            assert queue.record.position & 0x7FFF < queue.size
    except DriverError:
        return


def packed_rings(data):
    """A live device whose rings and event structures are overwritten at random, with doorbells between."""
    source = AnyBytes(data)
    machine = InMemoryMachine()
    try:
        driver = PackedHostileDriver(machine)
        driver.start()
        while source.left():
            queue = source.u8() % QUEUES
            base = RINGS + queue * RING_STRIDE
            place = (base, base + AVAIL_OFFSET, base + USED_OFFSET, BUFFER)[source.u8() % 4]
            machine.write(place + source.u8(), source.take(1 + source.u8() % 32))
            machine.function.region_write(4, 0x3000 + 4 * queue, queue.to_bytes(2, "little"))
            machine.step()
        machine.settle()
        driver.start()
        machine.settle()
        machine.heard()
        assert driver.good_message_arrives(), "it does not work after a reset"
    finally:
        machine.close()


def packed_lying_device(data):
    """The driver's side of a ring into which its device writes what it likes."""
    source = AnyBytes(data)
    size = 1 + source.u8() % SIZE
    memory = memoryview(bytearray(PackedLayout.of(size).length))
    queue = PackedQueue(memory, 0x1000, size, event_idx=bool(source.u8() & 1))
    try:
        while source.left():
            if queue.free and source.u8() & 1:
                queue.add(((0x2000, 1),), ((0x3000, 64),) if queue.free > 1 and source.u8() & 1 else (), object())
                queue.publish()
            at, piece = source.u8() % len(memory), source.take(1 + source.u8() % 16)
            piece = piece[: len(memory) - at]
            memory[at : at + len(piece)] = piece
            before = queue.in_flight
            done = queue.harvest()
            assert len(done) == before - queue.in_flight
            assert all(0 <= length <= 64 for _, length in done)
            queue.request_interrupt(1 + source.u8() % 20)
    except PeerError:
        return
    finally:
        assert 0 <= queue.free <= size
