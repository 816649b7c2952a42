"""Devices for the driver's tests: the project's own in memory, and one that a test makes lie."""

from __future__ import annotations

from virtserial.console.device import ConsoleDevice
from virtserial.console.wire import (
    CONFIG,
    CONTROL,
    CONTROL_QUEUE_SIZE,
    DATA_QUEUE_SIZE,
    VIRTIO_CONSOLE_F_EMERG_WRITE,
    VIRTIO_CONSOLE_F_MULTIPORT,
    VIRTIO_CONSOLE_F_SIZE,
    queue_count,
)
from virtserial.driver.dma import DmaMemory
from virtserial.driver.ports import PortListener
from virtserial.host_end.base import HostEnd
from virtserial.memory.state import StateMemory
from virtserial.testing.memory_driver import StepScheduler
from virtserial.virtio.features import TRANSPORT_FEATURES, VIRTIO_F_VERSION_1
from virtserial.virtio.ring.split.layout import DESCRIPTOR


class BufferEnd(HostEnd):
    """A host's end in memory: `taken` from the guest, `given` to it, with room for so many bytes."""

    def __init__(self, name="host", room=1 << 30):
        super().__init__(name)
        self.taken = bytearray()
        self.to_give = bytearray()
        self.room = room

    def start(self):
        self.connected = True
        self.readable = True
        self.listener.host_opened()

    def writev(self, buffers):
        count = 0
        for buffer in buffers:
            piece = buffer[: self.room]
            self.taken += piece
            self.room -= len(piece)
            count += len(piece)
        return count

    def readv(self, buffers):
        count = 0
        for buffer in buffers:
            piece = self.to_give[: len(buffer)]
            buffer[: len(piece)] = piece
            del self.to_give[: len(piece)]
            count += len(piece)
        return count

    def give(self, data):
        self.to_give += data
        self.readable = True
        self.listener.host_readable()

    def make_room(self, count=1 << 30):
        self.room = count
        self.listener.host_writable()

    def close(self):
        self.connected = False


class QuietEvents:
    def guest_open_changed(self, number, is_open): ...
    def guest_ready(self, port): ...
    def host_end_closed(self, number): ...
    def host_end_failed(self, number, error): ...


class Listening(PortListener):
    """Keeps what a port tells."""

    def __init__(self):
        self.told = []

    def port_readable(self):
        self.told.append("readable")

    def port_writable(self):
        self.told.append("writable")

    def port_resized(self, cols, rows):
        self.told.append((cols, rows))

    def port_unplugged(self):
        self.told.append("unplugged")


def console_device(max_ports=31, transport_features=TRANSPORT_FEATURES):
    """The project's device in memory, without ports, and its scheduler."""
    scheduler = StepScheduler()
    state = StateMemory(bytearray(ConsoleDevice.state_size(max_ports)))
    return ConsoleDevice(state, max_ports, transport_features, scheduler, QuietEvents()), scheduler


class LyingDevice:
    """A device whose every answer the test writes: it is the DriverTransport itself, and reads and writes the
    driver's rings byte by byte.

    Attributes:
        sent: control messages the driver sent, as (port, event, value).
    """

    def __init__(self, max_ports=4, max_nr_ports=None):
        self.num_queues = queue_count(max_ports)
        self.features = (
            VIRTIO_F_VERSION_1
            | VIRTIO_CONSOLE_F_MULTIPORT
            | VIRTIO_CONSOLE_F_SIZE
            | VIRTIO_CONSOLE_F_EMERG_WRITE
        )
        self.config = CONFIG.pack(80, 25, max_ports if max_nr_ports is None else max_nr_ports, 0)
        self.memory = DmaMemory(self)
        self.status = 0
        self.accepted = 0
        self.refuses_features = False
        self.queues = {}
        self.positions = {}
        self.sent = []
        self.rung = []
        self.written = []
        self.missing_queues = set()
        self.sink = None
        self.closed = False

    # DriverTransport

    def reset(self):
        self.status = 0
        self.queues.clear()
        self.positions.clear()

    def read_status(self):
        return self.status

    def write_status(self, status):
        self.status = status & ~8 if self.refuses_features else status

    def read_features(self):
        return self.features

    def write_features(self, features):
        self.accepted = features

    def queue_max_size(self, index):
        if index in self.missing_queues:
            return 0
        return CONTROL_QUEUE_SIZE if index in (2, 3) else DATA_QUEUE_SIZE

    def connect_interrupts(self, sink, queues):
        self.sink = sink

    def enable_queue(self, index, queue):
        self.queues[index] = queue
        self.positions[index] = 0

    def notify(self, index):
        self.rung.append(index)

    def read_config(self, offset, length):
        return self.config[offset : offset + length]

    def write_config(self, offset, data):
        self.written.append((offset, data))

    def dma_map(self, iova, size, *, fd=None, offset=0):
        pass

    def dma_unmap(self, iova, size):
        pass

    def close(self):
        self.closed = True

    # The device's side of the rings

    def next_chain(self, index):
        """The next available chain's head and its first buffer (address, length), or None."""
        queue, position = self.queues[index], self.positions[index]
        ring = memoryview(self.memory.read(queue.avail_address, 4 + 2 * queue.size)).cast("H")
        if ring[1] == position & 0xFFFF:
            return None
        self.positions[index] = position + 1
        head = ring[2 + position % queue.size]
        address, length, _, _ = DESCRIPTOR.unpack(self.memory.read(queue.desc_address + 16 * head, 16))
        return head, address, length

    def use(self, index, head, length, idx=None):
        """Write a used element at the used index and move that by one, or to `idx`."""
        queue = self.queues[index]
        seen = int.from_bytes(self.memory.read(queue.used_address + 2, 2), "little")
        slot = queue.used_address + 4 + 8 * (seen % queue.size)
        self.memory.write(slot, head.to_bytes(4, "little") + length.to_bytes(4, "little"))
        self.memory.write(queue.used_address + 2, ((seen + 1 if idx is None else idx) & 0xFFFF).to_bytes(2, "little"))

    def send_raw(self, data, interrupt=True):
        """Put bytes into the next control receive buffer."""
        head, address, _ = self.next_chain(2)
        self.memory.write(address, data)
        self.use(2, head, len(data))
        if interrupt:
            self.sink.queue_interrupt(2)

    def send(self, port, event, value=1, payload=b""):
        """Send a control message."""
        self.send_raw(CONTROL.pack(port, event, value) + payload)

    def take_control(self):
        """Take every control message the driver has sent."""
        while (chain := self.next_chain(3)) is not None:
            head, address, length = chain
            self.sent.append(CONTROL.unpack(self.memory.read(address, length)[:8]))
            self.use(3, head, 0)
        return self.sent
