"""The vhost-user front of a device: its server, the front end's connection, and the descriptors of its queues.

The front end is the VMM.  Every descriptor that it sends goes to the keeper before the message that brought it is
answered, as an `Irq` whose index is one of these:

| index | number | descriptor |
|---|---|---|
| CHANNEL | 0 | the socket for requests of ours |
| KICK, CALL, ERR | queue | eventfds |
| LOG | 0 | the log of written pages |
"""

from __future__ import annotations

import mmap
import os
import socket
from typing import TYPE_CHECKING, Final, NoReturn

from virtserial.channel.messages import DmaMap, DropIrq, Irq
from virtserial.console.device import ConsoleDevice
from virtserial.console.wire import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    EMERG_WR_OFFSET,
    VIRTIO_CONSOLE_F_MULTIPORT,
    queue_count,
)
from virtserial.daemon.worker.guest_memory import GuestMemory
from virtserial.daemon.worker.shared_log import SharedLog
from virtserial.daemon.worker.state_transfer import StateTransfer
from virtserial.daemon.worker.vmm_connection import VmmConnection
from virtserial.daemon.worker.vring_descriptors import VringDescriptors
from virtserial.errors import AccessInterrupted, AddressError, ConfigError, PeerError, StateError
from virtserial.loop import EPOLLET, EPOLLOUT
from virtserial.state.vhost_user_state import VhostUserState
from virtserial.vhost_user.server import Server
from virtserial.vhost_user.stream import FrontEndStream
from virtserial.vhost_user.wire import MAX_VRING_SIZE, VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, message
from virtserial.virtio.features import VIRTIO_F_RING_PACKED
from virtserial.virtio.ring.packed.layout import INDEX
from virtserial.virtio.ring.packed.layout import areas as packed_areas
from virtserial.virtio.ring.split.layout import areas as split_areas
from virtserial.virtio.status import ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FEATURES_OK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from virtserial.accounting import Note
    from virtserial.channel.messages import Controller
    from virtserial.daemon.worker.front import FrontOwner
    from virtserial.memory.state import StateMemory
    from virtserial.vfio_user.dma import MessageMemory
    from virtserial.vhost_user.backend import Ring
    from virtserial.vhost_user.wire import MemoryRegion

CHANNEL: Final = 0
LOG: Final = 4
READ_WRITE: Final = 3
_CONFIG_CHANGE: Final = message(VHOST_USER_BACKEND_CONFIG_CHANGE_MSG)


def state_size(max_ports: int) -> int:
    """Bytes of state memory for a controller with this front, whole pages."""
    size = ConsoleDevice.state_size(max_ports) + Server.state_size(queue_count(max_ports))
    return (size + mmap.PAGESIZE - 1) & -mmap.PAGESIZE


class VhostUserFront:
    """A vhost-user back end (front.Front, vhost_user.backend.VhostDevice).

    Args:
        owner: the device.
        state: its state memory, in which the server takes the next places.
        config: what the keeper has told of the controller.
    """

    max_queue_size = MAX_VRING_SIZE

    def __init__(self, owner: FrontOwner, state: StateMemory, config: Controller) -> None:
        self._owner = owner
        self._console = owner.console
        self._console.transport = self
        self.num_queues = self._console.num_queues
        self._vmm = VmmConnection(owner, self._open_stream, self._has_left)
        self._vmm.prepare = lambda: self._log is not None and self._log.mark_on()
        self._vrings = VringDescriptors(
            owner.loop, self.num_queues, self._kicked, owner.ledger.account, self._vmm.lose
        )
        self.queue_interrupt = self._vrings.call
        self._channel: socket.socket | None = None
        self._log: SharedLog | None = None
        self._transfer: StateTransfer | None = None
        self.memory = GuestMemory(owner, config.trust_vmm, self._no_access, lambda: None, self._vmm.lose)
        self._server = Server(self, state, lambda why: owner.log.error("refused: %s", why))
        self.saved = VhostUserState(self._console)

    # The front end's connection

    def connect(self, fd: int) -> None:
        self._vmm.connect(fd)

    def finish(self, note: Note) -> None:
        self._vmm.finish(note)

    def close(self) -> None:
        """The device is unplugged."""
        self._vmm.disconnect("")

    def _open_stream(self, sock: socket.socket) -> FrontEndStream:
        return FrontEndStream(sock, self._server, self._owner.index, self._owner.ledger)

    def _has_left(self) -> None:
        self._server.disconnected()
        self._vrings.close()
        self._take_channel(None)
        self._take_log(None)
        self._end_transfer()

    # After a dead predecessor

    def restore(self, message: DmaMap | Irq, fds: Sequence[int]) -> None:
        """Take what a predecessor had from its front end."""
        match message:
            case DmaMap():
                self.memory.restore(message, fds[0] if fds else None)
            case Irq(_, purpose, _) if purpose == CHANNEL:
                self._take_channel(_stream_socket(fds[0]))
            case Irq(_, purpose, _) if purpose == LOG:
                session = self._server.session
                self._take_log(SharedLog(fds[0], session.log_offset, session.log_size))
                if self._log is not None and session.logs:
                    # What the predecessor has written last may not be noted.  It is before the next message is handled.
                    self._log.mark_everything()
            case Irq(_, purpose, index):
                self._vrings.take(purpose, index, fds[0])

    def take_over(self) -> None:
        """Look for messages, and tell of a change that a predecessor has not told."""
        self._tell_config_change()
        self._vmm.serve()

    # VhostDevice: memory

    def _no_access(self) -> MessageMemory:
        raise AccessInterrupted(f"{self._owner.name}: vhost-user has no messages for memory")

    def map_region(self, region: MemoryRegion, fd: int) -> None:
        self.memory.map(region.guest, region.size, READ_WRITE, fd, region.offset)
        if not self._console.memory.find(region.guest).is_shared:
            self.unmap_region(region)
            raise PeerError("the guest's memory has huge pages, which are used with --trust-vmm only")

    def unmap_region(self, region: MemoryRegion) -> None:
        self.memory.unmap(region.guest, region.size)

    def unmap_all(self) -> None:
        self.memory.unmap_all()

    # VhostDevice: descriptors

    def set_descriptor(self, kind: int, index: int, fd: int) -> None:
        owner = self._owner
        self._vrings.take(kind, index, fd)
        if fd < 0:
            owner.send(DropIrq(owner.index, kind, index))
        else:
            owner.send(Irq(owner.index, kind, index), [fd])

    def _kicked(self, index: int, _: int) -> None:
        self._vmm.note_work()
        try:
            self._console.notify_alone(index)
        except Exception:
            self._owner.broken()

    def set_backend_channel(self, fd: int) -> None:
        self._take_channel(_stream_socket(fd))
        self._owner.send(Irq(self._owner.index, CHANNEL, 0), [fd])
        self._tell_config_change()

    def _take_channel(self, channel: socket.socket | None) -> None:
        if self._channel is not None:
            self._owner.loop.unwatch(self._channel.fileno())
            self._channel.close()
        self._channel = channel
        if channel is not None:
            self._owner.loop.watch(channel.fileno(), EPOLLOUT | EPOLLET, self._tell_config_change)

    # Transport

    def config_interrupt(self) -> None:
        """The configuration has changed; or the driver broke a rule, which only the queues' ERR can tell."""
        if self._console.status & DEVICE_NEEDS_RESET:
            self._vrings.signal_errors()
        self._server.session.config_change = 1
        self._tell_config_change()

    def _tell_config_change(self, _: int = 0) -> None:
        """Send BACKEND_CONFIG_CHANGE_MSG if it is due; when there is room, epoll calls again."""
        session = self._server.session
        if self._channel is None or not session.config_change:
            return
        try:
            # Never waits, although its giver can make the socket a blocking one again.
            self._channel.send(_CONFIG_CHANGE, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            pass  # Nobody is there to hear of it.
        session.config_change = 0

    # VhostDevice: life

    @property
    def features(self) -> int:
        """What is offered."""
        return self._console.device_features

    @property
    def driver_features(self) -> int:
        return self._console.driver_features

    @property
    def needs_reset(self) -> bool:
        return bool(self._console.status & DEVICE_NEEDS_RESET)

    def needed_queues(self, features: int) -> Sequence[int]:
        return (CONTROL_RECEIVEQ, CONTROL_TRANSMITQ) if features & VIRTIO_CONSOLE_F_MULTIPORT else ()

    def set_up(self, features: int, fresh: bool) -> None:
        if not fresh:
            return
        self.reset()
        console = self._console
        console.set_status(ACKNOWLEDGE | DRIVER)
        console.driver_features = features
        console.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        if not console.status & FEATURES_OK:
            raise PeerError(f"the driver accepts features {features:#x}, without VIRTIO_F_VERSION_1")

    def run(self) -> None:
        console = self._console
        if not console.status & DRIVER_OK:
            console.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
        if console.paused:
            self._owner.resume()

    def stand_still(self) -> None:
        self._owner.pause()

    def reset(self) -> None:
        """Forget what the driver has said."""
        self._console.reset()
        self._vrings.forget_interrupts()
        if self._console.paused:
            self._console.resume()

    def start_ring(self, index: int, ring: Ring) -> None:
        console = self._console
        queue = console.queues[index]
        if queue.enabled:
            console.reset_queue(index)
        packed = console.has_feature(VIRTIO_F_RING_PACKED)
        areas = (packed_areas if packed else split_areas)(ring.size)
        try:
            for address, (length, alignment) in zip(ring[1:4], areas, strict=True):
                console.memory.mapped_view(address, length)
                if address % alignment:
                    raise PeerError(f"queue {index}: {address:#x} is not aligned to {alignment} bytes")
        except AddressError as error:
            raise PeerError(f"queue {index}: {error}") from error
        progress = ring.progress
        used = int.from_bytes(console.memory.read(ring.used + 2, 2), "little")
        if packed:
            if progress & INDEX >= ring.size:
                raise PeerError(f"queue {index}: position {progress & INDEX}, it has {ring.size} descriptors")
        elif 0 < (progress - used) & 0xFFFF <= ring.size:
            # Some front ends name the available index.  What is not used was not served: chains are used in order.
            progress = used
        queue.set_packed_size(ring.size)
        queue.desc_address, queue.avail_address, queue.used_address = ring.descriptor, ring.available, ring.used
        console.enable_queue(index, progress)

    def progress(self, index: int) -> int:
        return self._console.queues[index].record.progress

    def stop_ring(self, index: int) -> None:
        self._console.reset_queue(index)

    # VhostDevice: configuration, log, state

    def read_config(self, offset: int, length: int) -> bytes:
        return self._console.read_config(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        """QEMU sends the whole configuration at any write: an emerg_wr of 0 among other fields was not written."""
        if offset < EMERG_WR_OFFSET and not any(data[EMERG_WR_OFFSET - offset :]):
            return
        self._console.write_config(offset, data)

    def set_log(self, fd: int, offset: int, size: int) -> None:
        self._take_log(SharedLog(fd, offset, size))
        session = self._server.session
        session.log_offset, session.log_size = offset, size
        self._owner.send(Irq(self._owner.index, LOG, 0), [fd])

    def _take_log(self, shared: SharedLog | None) -> None:
        before, self._log = self._log, shared
        self._owner.log_writes(shared if self._server.session.logs else None)
        if before is not None:
            before.close()

    def log_writes(self, on: bool) -> None:
        session = self._server.session
        if bool(session.logs) != on:
            session.logs = on
            self._owner.log_writes(self._log if on else None)

    def transfer(self, fd: int, load: bool) -> None:
        self._end_transfer()
        if not load:
            self._server.fill_queues(self._console.queues)
        self._owner.pause()
        state = None if load else self._owner.save_state()
        if not load:
            for index in range(self.num_queues):
                self._console.reset_queue(index)
        self._transfer = StateTransfer(self._owner.loop, fd, state, self._owner.max_state_size)

    def transfer_result(self) -> Mapping[int, int]:
        transfer, self._transfer = self._transfer, None
        if transfer is None:
            raise PeerError("there was no transfer of the device's state, or a worker was killed over it")
        state = transfer.result()
        if state is None:
            return {}
        try:
            self._owner.load_state(state)
        except ConfigError as error:
            raise PeerError(str(error)) from error
        queues = self._console.queues
        progress = {queue.index: queue.record.progress for queue in queues}
        for queue in queues:
            self._console.reset_queue(queue.index)
        return progress

    def _end_transfer(self) -> None:
        if self._transfer is not None:
            self._transfer.close()
            self._transfer = None

    # What only a machine of QEMU's that moves asks for (relocation.py)

    def configuration_space(self) -> bytes:
        """The PCI function is the front end's."""
        return b""

    def hold_intx(self, held: bool) -> None:
        """So is its interrupt line."""

    def settle(self) -> None:
        """It is asked nothing."""

    def store_posted(self, stores: Sequence[tuple[int, bytes]]) -> NoReturn:
        """There is no message for that."""
        raise StateError(f"{self._owner.name}: vhost-user has no messages for memory")


def _stream_socket(fd: int) -> socket.socket:
    """Take a descriptor that should be a connected UNIX socket; it is closed if it is none.

    Raises:
        PeerError: it is none.
    """
    try:
        taken = socket.socket(fileno=fd)
    except OSError as error:
        os.close(fd)
        raise PeerError(f"the descriptor for requests of ours is no socket: {error.strerror}") from error
    if (taken.family, taken.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        taken.close()
        raise PeerError("the descriptor for requests of ours is no UNIX stream socket")
    taken.setblocking(False)
    return taken
