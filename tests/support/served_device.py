"""A virtio device with guest memory behind a PCI function: what a server serves, and nothing in it is pretended."""

from __future__ import annotations

import fcntl
import os

from virtserial.memory.region import FileRegion, MappedRegion, MessageRegion, keeps_its_pages
from virtserial.memory.state import HEADER_SIZE, StateMemory
from virtserial.pci.function import VirtioPciFunction
from virtserial.vfio_user import wire
from virtserial.vfio_user.server import Server
from virtserial.virtio.device import VirtioDevice
from virtserial.virtio.features import TRANSPORT_FEATURES

NOTIFY = 0x3000
QUEUES = 4


class DoorbellDevice(VirtioDevice):
    """Notes its doorbells."""

    def __init__(self, state):
        super().__init__(state, 3, [16] * QUEUES, TRANSPORT_FEATURES)
        self.doorbells = []

    def notify(self, index):
        self.doorbells.append(index)


class ServedDevice(VirtioPciFunction):
    """The function, with a memory table that DMA maps fill."""

    def __init__(self, state, vectors=32):
        super().__init__(DoorbellDevice(state), state, vectors=vectors)
        self.memory = self.device.memory
        self.access = None

    @property
    def doorbells(self):
        return self.device.doorbells

    def dma_map(self, iova, size, prot, fd, offset):
        writable = bool(prot & wire.VFIO_DMA_MAP_FLAG_WRITE)
        try:
            self.memory.check(iova, size)
            if fd is None:
                region = MessageRegion(iova, size, self.access, writable)
            elif keeps_its_pages(fd):
                region = MappedRegion(iova, size, fd, offset, writable)
            else:
                region = FileRegion(iova, size, os.dup(fd), offset, writable)
            self.memory.map(region)
        finally:
            if fd is not None:
                os.close(fd)

    def dma_unmap(self, iova, size):
        self.memory.unmap(iova, size)

    def dma_unmap_all(self):
        self.memory.clear()


def state_block():
    """State memory for one such device and its server."""
    return bytearray(HEADER_SIZE + 4096 + Server.state_size)


def build_server(block=None, vectors=32):
    """A server and its device over a block of state, a new one or a predecessor's."""
    state = StateMemory(state_block() if block is None else block)
    return Server(ServedDevice(state, vectors), state)


def sealed_memory(size):
    """A memfd that cannot shrink, as memory-backend-memfd makes it."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def message(command, payload=b"", message_id=1, flags=0):
    return wire.request(command, message_id, payload, flags)


def version(data=b'{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"write_multiple":true}}\0'):
    return message(wire.VFIO_USER_VERSION, wire.Version(0, 0).pack() + data)


def doorbell(queue, message_id=7):
    payload = wire.RegionAccess(NOTIFY + 4 * queue, 4, 2).pack() + queue.to_bytes(2, "little")
    return message(wire.VFIO_USER_REGION_WRITE, payload, message_id, wire.VFIO_USER_NO_REPLY)


def region_read(region, offset, count, message_id=1):
    return message(wire.VFIO_USER_REGION_READ, wire.RegionAccess(offset, region, count).pack(), message_id)


def region_write(region, offset, data, message_id=1, flags=0):
    payload = wire.RegionAccess(offset, region, len(data)).pack() + data
    return message(wire.VFIO_USER_REGION_WRITE, payload, message_id, flags)


def dma_map(iova, size, flags=3, offset=0, argsz=32):
    return message(wire.VFIO_USER_DMA_MAP, wire.DmaMap(argsz, flags, offset, iova, size).pack())


def dma_unmap(iova, size, flags=0, argsz=24):
    return message(wire.VFIO_USER_DMA_UNMAP, wire.DmaUnmap(argsz, flags, iova, size).pack())


def set_irqs(index, flags, start, count, data=b"", argsz=None):
    argsz = 20 + len(data) if argsz is None else argsz
    return message(wire.VFIO_USER_DEVICE_SET_IRQS, wire.IrqSet(argsz, flags, index, start, count).pack() + data)


def handle(server, whole, fds=()):
    """Hand one whole message to the server; returns (errno or 0, payload) of its reply, None for none."""
    header = wire.Header.unpack_from(whole)
    answer = server.handle(header, memoryview(whole)[16:], list(fds))
    server.journal.record_consumed()
    if answer is None:
        return None
    got = wire.Header.unpack_from(answer)
    assert (got.id, got.command, got.size) == (header.id, header.command, len(answer))
    if got.flags & wire.VFIO_USER_ERROR:
        assert got.flags == wire.VFIO_USER_REPLY | wire.VFIO_USER_ERROR
        assert len(answer) == 16
        assert got.error
        return got.error, b""
    assert got.flags == wire.VFIO_USER_REPLY
    return 0, answer[16:]
