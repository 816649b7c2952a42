"""A console device behind a vfio-user socket, and its driver."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from virtserial.console.wire import VIRTIO_ID_CONSOLE
from virtserial.driver.console_driver import DRIVER_FEATURES, ConsoleDriver
from virtserial.driver.dma import DmaMemory
from virtserial.driver.legacy_function import LegacyFunction
from virtserial.driver.pci_capabilities import check_identity, has_modern_interface
from virtserial.driver.pci_function import PciFunction
from virtserial.errors import PeerError
from virtserial.vfio_user.client import Client

if TYPE_CHECKING:
    import os
    import socket

    from virtserial.driver.console_driver import DriverListener
    from virtserial.driver.port_queues import BufferPlan
    from virtserial.loop import EventLoop


class _MessageMemory:
    """Breaks the circle between a server's memory requests and the driver's memory: each needs the other first."""

    def __init__(self) -> None:
        self.memory: DmaMemory | None = None

    def read(self, iova: int, length: int) -> bytes:
        return self._known().read(iova, length)

    def write(self, iova: int, data: bytes) -> None:
        self._known().write(iova, data)

    def _known(self) -> DmaMemory:
        if self.memory is None:
            raise PeerError("device: access to memory before any was mapped", errno.EFAULT)
        return self.memory


def open_vfio_user_device(
    path_or_socket: str | os.PathLike[str] | socket.socket,
    loop: EventLoop,
    listener: DriverListener | None = None,
    *,
    plan: BufferPlan | None = None,
    features: int = DRIVER_FEATURES,
    sealed: bool = True,
    shared: bool = True,
    legacy: bool | None = None,
    timeout: float = 5.0,
) -> ConsoleDriver:
    """Connect to a vfio-user server and return a driver for its console device; `start` it.

    Args:
        sealed: seal the DMA memory against shrinking, so that the device may map it.
        shared: hand the DMA memory's file to the device; else the device accesses it by messages.
        legacy: use the legacy interface; None: only if there is no other.
        timeout: seconds to wait for any answer.

    Raises:
        PeerError: no server listens there, it breaks vfio-user, or its device is not a virtio console.
    """
    messages = _MessageMemory()
    try:
        client = Client(path_or_socket, timeout=timeout, dma_handler=messages)
    except OSError as error:
        raise PeerError(f"{path_or_socket}: {error.strerror or error}", error.errno or errno.EIO) from error
    try:
        if legacy is None:
            legacy = check_identity(client, VIRTIO_ID_CONSOLE) and not has_modern_interface(client)
        interface = LegacyFunction if legacy else PciFunction
        function = interface(client, loop, VIRTIO_ID_CONSOLE)
    except BaseException:
        loop.unwatch(client.fileno())
        client.close()
        raise
    messages.memory = DmaMemory(function, sealed=sealed, shared=shared)
    return ConsoleDriver(
        function, listener, memory=messages.memory, plan=plan, features=features, legacy=legacy
    )
