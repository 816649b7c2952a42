"""A console device on a PCI bus of this machine, driven through the kernel's VFIO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.console.wire import VIRTIO_ID_CONSOLE
from virtserial.driver.console_driver import ConsoleDriver
from virtserial.driver.dma import DmaMemory
from virtserial.driver.pci_function import PciFunction
from virtserial.driver.port_queues import BufferPlan
from virtserial.driver.vfio_function import VfioFunction
from virtserial.virtio.features import VIRTIO_F_ACCESS_PLATFORM

if TYPE_CHECKING:
    from virtserial.driver.console_driver import DriverListener
    from virtserial.loop import EventLoop

PINNED_BUFFERS: Final = BufferPlan(receive_count=32, receive_size=4096, transmit_count=8, transmit_size=32768)
"""A port's buffers.  VFIO pins every page of them, used or not; behind a virtual IOMMU every page is a separate map to
the VMM, and a descriptor to a device server.  128 KiB a port, and 256 KiB more once it was open.  A transmit buffer
holds the largest write to a character device."""
REGION_SIZE: Final = 1 << 20


def open_vfio_device(
    address: str,
    loop: EventLoop,
    listener: DriverListener | None = None,
    *,
    plan: BufferPlan = PINNED_BUFFERS,
) -> ConsoleDriver:
    """Open a PCI function that vfio-pci owns and return a driver for its console device; `start` it.

    `start` refuses a device without VIRTIO_F_ACCESS_PLATFORM: its DMA bypasses the IOMMU (virtio 1.3, section 6), so it
    would access physical addresses that belong to others.

    Args:
        address: the function's full PCI address (0000:00:05.0).

    Raises:
        ConfigError: see VfioFunction.
        PeerError: it is not a virtio console, or breaks a rule.
    """
    access = VfioFunction(address)
    try:
        function = PciFunction(access, loop, VIRTIO_ID_CONSOLE)
    except BaseException:
        access.close()
        raise
    memory = DmaMemory(function, region_size=REGION_SIZE)
    return ConsoleDriver(function, listener, memory=memory, plan=plan, required=VIRTIO_F_ACCESS_PLATFORM)
