"""What both interfaces of a virtio PCI function have in common for its driver: DMA, interrupts, the connection.

An event loop watches interrupts as eventfds: with MSI-X one vector for the configuration and others that the queues
share, else INTx.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from virtserial.errors import PeerError
from virtserial.loop import EPOLLHUP, EPOLLIN
from virtserial.pci.layout import (
    PCI_COMMAND,
    PCI_COMMAND_IO,
    PCI_COMMAND_MASTER,
    PCI_COMMAND_MEMORY,
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
    from virtserial.driver.pci_capabilities import Msix
    from virtserial.driver.transport import InterruptSink
    from virtserial.loop import EventLoop

MAX_VECTORS: Final = 64
"""The most vectors to use: each costs a descriptor, and queues can share one."""
RESET_TIME_LIMIT: Final = 5.0


class PciTransport:
    """The part of a driver's transport that knows no virtio register.

    Args:
        access: registers, DMA and interrupts of the function; closed by `close`.
        loop: watches the interrupts.
        msix: the function's MSI-X capability.
    """

    def __init__(self, access: DeviceAccess, loop: EventLoop, msix: Msix) -> None:
        self._access = access
        self._loop = loop
        self._msix = msix
        self._vector_of: dict[int, int] = {}
        self._queues: tuple[int, ...] = ()
        self._eventfds: list[int] = []
        self._irq_index = VFIO_PCI_INTX_IRQ_INDEX
        self._sink: InterruptSink | None = None
        command = (PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER).to_bytes(2, "little")
        access.region_write(VFIO_PCI_CONFIG_REGION_INDEX, PCI_COMMAND, command)
        loop.watch(access.fileno(), EPOLLIN, self._access_ready)

    # What an interface provides

    def _take_isr(self) -> int:
        """Read the ISR status, which clears it and lowers the interrupt line (4.1.4.5)."""
        raise NotImplementedError

    def _set_config_vector(self, vector: int) -> None:
        """Map changes of the configuration to a vector.

        Raises:
            PeerError: the device does not take it.
        """
        raise NotImplementedError

    def read_status(self) -> int:
        """The device status."""
        raise NotImplementedError

    def write_status(self, status: int) -> None:
        """Set the device status."""
        raise NotImplementedError

    def reset(self) -> None:
        """Write 0 to the status and wait until it reads 0 (4.1.4.3.2)."""
        self.write_status(0)
        limit = time.monotonic() + RESET_TIME_LIMIT
        while status := self.read_status():
            if time.monotonic() > limit:
                raise PeerError(f"device: status is {status:#x} {RESET_TIME_LIMIT:.0f} s after a reset")
            time.sleep(0.001)

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
        self._sink, self._queues = sink, tuple(queues)
        available = self._access.irq_info(VFIO_PCI_MSIX_IRQ_INDEX).count if self._msix.offset else 0
        count = min(available, self._msix.vectors, len(queues) + 1, MAX_VECTORS)
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
        self._set_config_vector(0)

    def _enable_msix(self) -> None:
        offset = self._msix.offset + PCI_MSIX_FLAGS
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
        try:
            status = self._take_isr()
            self._access.unmask_irqs(VFIO_PCI_INTX_IRQ_INDEX)
        except PeerError as error:
            self._gone(error)
            return
        if status & VIRTIO_PCI_ISR_CONFIG:
            sink.config_interrupt()
        if status & VIRTIO_PCI_ISR_QUEUE:
            for index in self._queues:
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
