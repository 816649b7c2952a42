"""A virtio PCI function seen from its driver: registers, doorbells, interrupts (virtio 1.3, section 4.1).

An event loop watches interrupts as eventfds: with MSI-X one vector for the configuration and others that the queues
share, else INTx.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from virtserial.driver.pci_capabilities import find_capabilities
from virtserial.errors import PeerError
from virtserial.loop import EPOLLHUP, EPOLLIN
from virtserial.pci.layout import (
    PCI_COMMAND,
    PCI_MSIX_FLAGS,
    PCI_MSIX_FLAGS_ENABLE,
    VIRTIO_PCI_ISR_CONFIG,
    VIRTIO_PCI_ISR_QUEUE,
)
from virtserial.vfio_user.wire import (
    VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.driver.access import DeviceAccess
    from virtserial.driver.transport import InterruptSink
    from virtserial.loop import EventLoop
    from virtserial.virtio.ring.split.driver import DriverQueue

# struct virtio_pci_common_cfg: (offset, width in bytes)
DEVICE_FEATURE_SELECT: Final = (0x00, 4)
DEVICE_FEATURE: Final = (0x04, 4)
DRIVER_FEATURE_SELECT: Final = (0x08, 4)
DRIVER_FEATURE: Final = (0x0C, 4)
CONFIG_MSIX_VECTOR: Final = (0x10, 2)
NUM_QUEUES: Final = (0x12, 2)
DEVICE_STATUS: Final = (0x14, 1)
CONFIG_GENERATION: Final = (0x15, 1)
QUEUE_SELECT: Final = (0x16, 2)
QUEUE_SIZE: Final = (0x18, 2)
QUEUE_MSIX_VECTOR: Final = (0x1A, 2)
QUEUE_ENABLE: Final = (0x1C, 2)
QUEUE_NOTIFY_OFF: Final = (0x1E, 2)
QUEUE_DESC: Final = 0x20
QUEUE_DRIVER: Final = 0x28
QUEUE_DEVICE: Final = 0x30

PCI_COMMAND_MEMORY_AND_MASTER: Final = 0x06
MAX_VECTORS: Final = 64
"""The most vectors to use: each costs a descriptor, and queues can share one."""
RESET_TIME_LIMIT: Final = 5.0


class PciFunction:
    """The driver's transport to one function.

    Args:
        access: registers, DMA and interrupts of the function; closed by `close`.
        loop: watches the interrupts.
        device_id: the expected virtio device type.

    Raises:
        PeerError: the function has another type, or its capability list breaks the rules.
    """

    def __init__(self, access: DeviceAccess, loop: EventLoop, device_id: int) -> None:
        self._access = access
        self._loop = loop
        self._capabilities = find_capabilities(access, device_id)
        self._doorbells: dict[int, tuple[int, bytes]] = {}
        self._vector_of: dict[int, int] = {}
        self._eventfds: list[int] = []
        self._irq_index = VFIO_PCI_INTX_IRQ_INDEX
        self._sink: InterruptSink | None = None
        command = PCI_COMMAND_MEMORY_AND_MASTER.to_bytes(2, "little")
        access.region_write(VFIO_PCI_CONFIG_REGION_INDEX, PCI_COMMAND, command)
        self.num_queues = self._read(NUM_QUEUES)
        loop.watch(access.fileno(), EPOLLIN, self._access_ready)

    # Registers of the common configuration

    def _read(self, register: tuple[int, int]) -> int:
        offset, width = register
        common = self._capabilities.common
        return int.from_bytes(self._access.region_read(common.bar, common.offset + offset, width), "little")

    def _write(self, register: tuple[int, int], value: int, more: bool = False) -> None:
        # Posted: the device handles messages in order, so a later read sees what these did.
        offset, width = register
        common = self._capabilities.common
        data = value.to_bytes(width, "little")
        self._access.region_write(common.bar, common.offset + offset, data, posted=True, more=more)

    def reset(self) -> None:
        """Write 0 to the status and wait until it reads 0 (4.1.4.3.2)."""
        self._write(DEVICE_STATUS, 0)
        limit = time.monotonic() + RESET_TIME_LIMIT
        while status := self._read(DEVICE_STATUS):
            if time.monotonic() > limit:
                raise PeerError(f"device: status is {status:#x} {RESET_TIME_LIMIT:.0f} s after a reset")
            time.sleep(0.001)
        self._doorbells.clear()

    def read_status(self) -> int:
        """The device status."""
        return self._read(DEVICE_STATUS)

    def write_status(self, status: int) -> None:
        """Set the device status."""
        self._write(DEVICE_STATUS, status)

    def read_features(self) -> int:
        """The 64 feature bits the device offers."""
        features = 0
        for word in range(2):
            self._write(DEVICE_FEATURE_SELECT, word)
            features |= self._read(DEVICE_FEATURE) << (32 * word)
        return features

    def write_features(self, features: int) -> None:
        """Accept features."""
        for word in range(2):
            self._write(DRIVER_FEATURE_SELECT, word)
            self._write(DRIVER_FEATURE, features >> (32 * word) & 0xFFFFFFFF)

    # Queues

    def queue_max_size(self, index: int) -> int:
        """The size the device suggests before it is written: its maximum (4.1.4.3)."""
        self._write(QUEUE_SELECT, index, more=True)
        return self._read(QUEUE_SIZE)

    def enable_queue(self, index: int, queue: DriverQueue[Any]) -> None:
        """Set the rings of a queue, assign its vector, enable it."""
        self._write(QUEUE_SELECT, index, more=True)
        self._write(QUEUE_SIZE, queue.size, more=True)
        for offset, address in (
            (QUEUE_DESC, queue.desc_address),
            (QUEUE_DRIVER, queue.avail_address),
            (QUEUE_DEVICE, queue.used_address),
        ):
            # 4.1.3.1: 64-bit fields are written as two 32-bit halves.
            self._write((offset, 4), address & 0xFFFFFFFF, more=True)
            self._write((offset + 4, 4), address >> 32, more=True)
        vector = self._vector_of.get(index)
        if vector is not None:
            self._write(QUEUE_MSIX_VECTOR, vector, more=True)
            if self._read(QUEUE_MSIX_VECTOR) != vector:
                raise PeerError(f"device: queue {index} does not take MSI-X vector {vector}")
        notify = self._capabilities.notify
        offset = self._read(QUEUE_NOTIFY_OFF) * self._capabilities.notify_multiplier
        if offset + 2 > notify.length:
            raise PeerError(f"device: the doorbell of queue {index} is at {offset:#x} of {notify.length:#x} bytes")
        self._doorbells[index] = (notify.offset + offset, index.to_bytes(2, "little"))
        self._write(QUEUE_ENABLE, 1, more=True)
        if self._read(QUEUE_ENABLE) != 1:
            raise PeerError(f"device: queue {index} of {queue.size} entries does not enable")

    def notify(self, index: int) -> None:
        """Ring the doorbell of a queue."""
        offset, data = self._doorbells[index]
        self._access.region_write(self._capabilities.notify.bar, offset, data, posted=True)

    # Device-specific configuration

    def read_config(self, offset: int, length: int) -> bytes:
        """Read bytes of one generation; less than `length` at the structure's end."""
        device = self._capabilities.device
        length = min(length, device.length - offset)
        if length <= 0:
            return b""
        for _ in range(100):
            generation = self._read(CONFIG_GENERATION)
            data = self._access.region_read(device.bar, device.offset + offset, length)
            if self._read(CONFIG_GENERATION) == generation:
                return data
        raise PeerError("device: its configuration changes faster than it can be read")

    def write_config(self, offset: int, data: bytes) -> None:
        """Write configuration fields that a driver may write."""
        device = self._capabilities.device
        if offset + len(data) > device.length:
            raise PeerError(f"device: configuration of {device.length} bytes has no field at {offset}")
        self._access.region_write(device.bar, device.offset + offset, data)

    # DMA

    def dma_map(self, iova: int, size: int, *, fd: int | None = None, offset: int = 0) -> None:
        """Map memory of ours for the device."""
        self._access.dma_map(iova, size, fd=fd, offset=offset)

    def dma_unmap(self, iova: int, size: int) -> None:
        """Unmap memory from the device."""
        self._access.dma_unmap(iova, size)

    # Interrupts

    def connect_interrupts(self, sink: InterruptSink, queues: Sequence[int]) -> None:
        """Make eventfds for a sensible number of vectors and assign them; see DriverTransport."""
        self._disconnect_interrupts()
        self._sink = sink
        available = self._access.irq_info(VFIO_PCI_MSIX_IRQ_INDEX).count if self._capabilities.msix else 0
        count = min(available, self._capabilities.msix_vectors, len(queues) + 1, MAX_VECTORS)
        if not count:
            self._irq_index = VFIO_PCI_INTX_IRQ_INDEX
            self._watch_eventfd(self._intx)
            self._access.set_irqs(VFIO_PCI_INTX_IRQ_INDEX, 0, self._eventfds)
            return
        self._irq_index = VFIO_PCI_MSIX_IRQ_INDEX
        members: list[list[int]] = [[] for _ in range(count)]
        for position, index in enumerate(queues):
            vector = 1 + position % (count - 1) if count > 1 else 0
            members[vector].append(index)
            self._vector_of[index] = vector
        for vector in range(count):
            self._watch_eventfd(self._handler_of_vector(members[vector], with_config=vector == 0))
        self._access.set_irqs(VFIO_PCI_MSIX_IRQ_INDEX, 0, self._eventfds)
        self._enable_msix()
        self._write(CONFIG_MSIX_VECTOR, 0)
        if self._read(CONFIG_MSIX_VECTOR) != 0:
            raise PeerError("device: the configuration does not take MSI-X vector 0")

    def _enable_msix(self) -> None:
        offset = self._capabilities.msix + PCI_MSIX_FLAGS
        control = self._access.region_read(VFIO_PCI_CONFIG_REGION_INDEX, offset, 2)
        value = int.from_bytes(control, "little") | PCI_MSIX_FLAGS_ENABLE
        self._access.region_write(VFIO_PCI_CONFIG_REGION_INDEX, offset, value.to_bytes(2, "little"))

    def _watch_eventfd(self, handler: Callable[[], None]) -> None:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._eventfds.append(fd)

        def ready(_events: int) -> None:
            try:
                os.eventfd_read(fd)
            except BlockingIOError:
                return
            handler()

        self._loop.watch(fd, EPOLLIN, ready)

    def _handler_of_vector(self, queues: Sequence[int], with_config: bool) -> Callable[[], None]:
        sink = self._sink
        assert sink is not None
        if not with_config and len(queues) == 1:
            index = queues[0]
            return lambda: sink.queue_interrupt(index)

        def handler() -> None:
            if with_config:
                sink.config_interrupt()
            for index in queues:
                sink.queue_interrupt(index)

        return handler

    def _intx(self) -> None:
        sink = self._sink
        assert sink is not None
        isr = self._capabilities.isr
        try:
            # A read clears it and lowers the interrupt line (4.1.4.5).
            status = self._access.region_read(isr.bar, isr.offset, 1)[0]
            self._access.unmask_irqs(VFIO_PCI_INTX_IRQ_INDEX)
        except PeerError as error:
            self._gone(error)
            return
        if status & VIRTIO_PCI_ISR_CONFIG:
            sink.config_interrupt()
        if status & VIRTIO_PCI_ISR_QUEUE:
            for index in tuple(self._doorbells):
                sink.queue_interrupt(index)

    def _disconnect_interrupts(self) -> None:
        for fd in self._eventfds:
            self._loop.unwatch(fd)
            os.close(fd)
        self._eventfds.clear()
        self._vector_of.clear()

    # The connection

    def replace_access(self, access: DeviceAccess) -> DeviceAccess:
        """Switch to another access of the same device, which was moved there with its registers; return the old access.

        Interrupts use the same eventfds.  The caller has mapped the device's memory there already.
        """
        old, self._access = self._access, access
        self._loop.unwatch(old.fileno())
        self._loop.watch(access.fileno(), EPOLLIN, self._access_ready)
        access.set_irqs(self._irq_index, 0, self._eventfds)
        return old

    def _access_ready(self, events: int) -> None:
        try:
            self._access.poll()
            if events & EPOLLHUP:
                raise PeerError("device: its process has closed the connection", 104)
        except PeerError as error:
            self._gone(error)

    def _gone(self, error: PeerError) -> None:
        self._loop.unwatch(self._access.fileno())
        if self._sink is not None:
            self._sink.device_gone(error)

    def close(self) -> None:
        """Stop interrupts and close the access."""
        self._loop.unwatch(self._access.fileno())
        self._disconnect_interrupts()
        self._access.close()
