"""A console device behind a vhost-user socket, and its driver: we are the front end, with queues and no PCI bus.

The status register is ours; a back end with STATUS is told of it.  Queues are handed over at DRIVER_OK.
DEVICE_NEEDS_RESET shows as a signal of a queue's ERR descriptor.
"""

from __future__ import annotations

import errno
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from virtserial.driver.console_driver import DRIVER_FEATURES, ConsoleDriver
from virtserial.driver.dma import DmaMemory
from virtserial.errors import PeerError
from virtserial.loop import EPOLLIN, EPOLLRDHUP
from virtserial.vhost_user import wire
from virtserial.vhost_user.client import FrontEnd, new_base
from virtserial.vhost_user.wire import MemoryRegion, VringAddress
from virtserial.virtio.status import DEVICE_NEEDS_RESET, DRIVER_OK, FEATURES_OK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.driver.console_driver import DriverListener
    from virtserial.driver.port_queues import BufferPlan
    from virtserial.driver.transport import InterruptSink
    from virtserial.loop import EventLoop
    from virtserial.virtio.ring.driver_ring import DriverRing

USER_OFFSET: Final = 0x7000_0000_0000
"""Our own address of memory less the device's: another one, so that no back end can mistake them."""
QUEUE_SIZE: Final = 128
_OF_PROTOCOL: Final = wire.VHOST_USER_F_PROTOCOL_FEATURES | wire.VHOST_F_LOG_ALL


class VhostUserFunction:
    """The driver's transport over a front end (transport.DriverTransport).

    Args:
        front_end: connected; closed by `close`.
        loop: watches the interrupts.

    Raises:
        PeerError: the back end lacks what a driver needs.
    """

    def __init__(self, front_end: FrontEnd, loop: EventLoop) -> None:
        needed = wire.VHOST_USER_PROTOCOL_F_MQ | wire.VHOST_USER_PROTOCOL_F_CONFIG
        needed |= wire.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS
        if needed & ~front_end.protocol_features:
            raise PeerError(f"device: protocol features {front_end.protocol_features:#x}, {needed:#x} are needed")
        self._front_end = front_end
        self._loop = loop
        self._status = 0
        self._features = 0
        self._sink: InterruptSink | None = None
        self._queues: dict[int, DriverRing[Any]] = {}
        self._kicks: dict[int, int] = {}
        self._calls: dict[int, int] = {}
        self._regions: dict[int, MemoryRegion] = {}
        self._err = self._eventfd(self._failed)
        self.num_queues = front_end.get(wire.VHOST_USER_GET_QUEUE_NUM)
        self._channel: socket.socket | None = None
        if front_end.protocol_features & wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ:
            self._channel, theirs = socket.socketpair()
            with theirs:
                front_end.set(wire.VHOST_USER_SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
            loop.watch(self._channel.fileno(), EPOLLIN, self._channel_ready)
        loop.watch(front_end.fileno(), EPOLLIN | EPOLLRDHUP, self._front_end_ready)

    def _eventfd(self, handler: Callable[[], None]) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

        def ready(_: int) -> None:
            try:
                os.eventfd_read(fd)
            except BlockingIOError:
                return
            handler()

        self._loop.watch(fd, EPOLLIN, ready)
        return fd

    def _close_eventfds(self, fds: dict[int, int]) -> None:
        for fd in fds.values():
            self._loop.unwatch(fd)
            os.close(fd)
        fds.clear()

    # Status and features

    def reset(self) -> None:
        """Stop all rings, and reset the device."""
        for index in self._kicks:
            self._front_end.stop_vring(index)
        if self._front_end.protocol_features & wire.VHOST_USER_PROTOCOL_F_RESET_DEVICE:
            self._front_end.set(wire.VHOST_USER_RESET_DEVICE)
        self._close_eventfds(self._kicks)
        self._queues.clear()
        self._status = self._features = 0

    def read_status(self) -> int:
        return self._status

    def write_status(self, status: int) -> None:
        """Set the status: features are told with FEATURES_OK, queues with DRIVER_OK."""
        added = status & ~self._status
        if added & FEATURES_OK:
            features = self._features | wire.VHOST_USER_F_PROTOCOL_FEATURES
            self._front_end.set(wire.VHOST_USER_SET_FEATURES, wire.U64.pack(features))
        self._status |= status
        if added & DRIVER_OK:
            for index, queue in self._queues.items():
                self._start(index, queue)
        if self._front_end.protocol_features & wire.VHOST_USER_PROTOCOL_F_STATUS:
            self._front_end.set(wire.VHOST_USER_SET_STATUS, wire.U64.pack(self._status))

    def read_features(self) -> int:
        return self._front_end.get(wire.VHOST_USER_GET_FEATURES) & ~_OF_PROTOCOL

    def write_features(self, features: int) -> None:
        self._features = features

    # Queues

    def queue_max_size(self, index: int) -> int:
        """The front end chooses."""
        return QUEUE_SIZE if index < self.num_queues else 0

    def connect_interrupts(self, sink: InterruptSink, queues: Sequence[int]) -> None:
        self._sink = sink
        self._close_eventfds(self._calls)
        for index in queues:
            self._calls[index] = self._eventfd(partial(sink.queue_interrupt, index))

    def enable_queue(self, index: int, queue: DriverRing[Any]) -> None:
        self._queues[index] = queue
        self._kicks[index] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def _start(self, index: int, queue: DriverRing[Any]) -> None:
        front_end = self._front_end
        front_end.set_vring(wire.VHOST_USER_SET_VRING_NUM, index, queue.size)
        front_end.set_vring(wire.VHOST_USER_SET_VRING_BASE, index, new_base(self._features))
        descriptor, used, available = (
            place + USER_OFFSET for place in (queue.desc_address, queue.used_address, queue.avail_address)
        )
        address = VringAddress(index, 0, descriptor, used, available, queue.used_address)
        front_end.set(wire.VHOST_USER_SET_VRING_ADDR, wire.pack(address))
        front_end.set_vring_descriptor(wire.VHOST_USER_SET_VRING_KICK, index, self._kicks[index])
        front_end.set_vring_descriptor(wire.VHOST_USER_SET_VRING_CALL, index, self._calls[index])
        front_end.set_vring_descriptor(wire.VHOST_USER_SET_VRING_ERR, index, self._err)
        front_end.set_vring(wire.VHOST_USER_SET_VRING_ENABLE, index, 1)

    def notify(self, index: int) -> None:
        os.eventfd_write(self._kicks[index], 1)

    # Configuration and memory

    def read_config(self, offset: int, length: int) -> bytes:
        return self._front_end.get_config(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        self._front_end.set_config(offset, data)

    def dma_map(self, iova: int, size: int, *, fd: int | None = None, offset: int = 0) -> None:
        if fd is None:
            raise PeerError("device: vhost-user shares memory by its file", errno.EINVAL)
        region = self._regions[iova] = MemoryRegion(iova, size, iova + USER_OFFSET, offset)
        self._front_end.add_region(region, fd)

    def dma_unmap(self, iova: int, size: int) -> None:
        self._front_end.remove_region(self._regions.pop(iova))

    # The connection

    def _failed(self) -> None:
        self._status |= DEVICE_NEEDS_RESET
        if self._sink is not None:
            self._sink.config_interrupt()

    def _channel_ready(self, _: int) -> None:
        """A request of the back end's: the one that we agree to is that the configuration has changed."""
        assert self._channel is not None
        data = self._channel.recv(4096, socket.MSG_DONTWAIT)
        if not data:
            self._loop.unwatch(self._channel.fileno())
        elif self._sink is not None:
            self._sink.config_interrupt()

    def _front_end_ready(self, events: int) -> None:
        """Nobody has asked: the back end has closed the connection, or lies."""
        self._loop.unwatch(self._front_end.fileno())
        closed = events & EPOLLRDHUP  # Our keeper says goodbye by SHUT_WR: EPOLLHUP comes later.
        why = "its process has closed the connection" if closed else "it answers what nobody has asked"
        if self._sink is not None:
            self._sink.device_gone(PeerError(f"device: {why}", errno.ECONNRESET))

    def close(self) -> None:
        self._loop.unwatch(self._front_end.fileno())
        if self._channel is not None:
            self._loop.unwatch(self._channel.fileno())
            self._channel.close()
        self._close_eventfds(self._calls)
        self._close_eventfds(self._kicks)
        self._close_eventfds({0: self._err})
        self._front_end.close()


def open_vhost_user_device(
    path_or_socket: str | os.PathLike[str] | socket.socket,
    loop: EventLoop,
    listener: DriverListener | None = None,
    *,
    plan: BufferPlan | None = None,
    features: int = DRIVER_FEATURES,
    sealed: bool = True,
    timeout: float = 5.0,
) -> ConsoleDriver:
    """Connect to a vhost-user back end and return a driver for its console device; `start` it.

    Args:
        sealed: seal the DMA memory against shrinking, so that the device may map it.
        timeout: seconds to wait for any answer.

    Raises:
        PeerError: no back end listens there, or it breaks the protocol.
    """
    try:
        front_end = FrontEnd(path_or_socket, timeout=timeout)
    except OSError as error:
        raise PeerError(f"{path_or_socket}: {error.strerror or error}", error.errno or errno.EIO) from error
    try:
        function = VhostUserFunction(front_end, loop)
    except BaseException:
        front_end.close()
        raise
    memory = DmaMemory(function, sealed=sealed)
    return ConsoleDriver(function, listener, memory=memory, plan=plan, features=features)
