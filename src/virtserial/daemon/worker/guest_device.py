"""One controller in the worker: the console device, its PCI function, its VMM's connection and guest memory.

Every part lives over the controller's state memory; every descriptor that the VMM sends goes to the keeper before the
message that brought it is answered.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import resource
import socket
from functools import partial
from typing import TYPE_CHECKING

from virtserial.accounting import READ, WRITE
from virtserial.channel.messages import ConnectionEnded, DmaMap, DropDma, DropIrq, GuestOpen, Irq, VmmGone
from virtserial.console.device import ConsoleDevice
from virtserial.daemon.worker.limited_log import LimitedLog
from virtserial.errors import AccessInterrupted, ConfigError, DriverError, PeerError
from virtserial.loop import EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from virtserial.memory.file_status import status_of
from virtserial.memory.region import FileRegion, RegionMaker
from virtserial.memory.state import StateMemory
from virtserial.pci.function import VirtioPciFunction
from virtserial.state.device_state import load, save, size_limit
from virtserial.state.pci_state import PciState
from virtserial.vfio_user.dma import MessageMemory
from virtserial.vfio_user.server import Server
from virtserial.vfio_user.stream import MessageStream
from virtserial.vfio_user.wire import VFIO_DMA_MAP_FLAG_WRITE
from virtserial.virtio.features import TRANSPORT_FEATURES
from virtserial.virtio.features import VIRTIO_F_ACCESS_PLATFORM as ACCESS_PLATFORM
from virtserial.virtio.features import VIRTIO_F_EVENT_IDX as EVENT_IDX
from virtserial.virtio.features import VIRTIO_F_INDIRECT_DESC as INDIRECT_DESC
from virtserial.virtio.features import VIRTIO_F_RING_RESET as RING_RESET

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.accounting import Ledger, Note
    from virtserial.channel.channel import Send
    from virtserial.channel.messages import Controller, FromWorker
    from virtserial.console.port import Port
    from virtserial.errors import BackendError
    from virtserial.loop import EventLoop, Timer
    from virtserial.memory.dirty_log import DirtyLog
    from virtserial.memory.region import Buffer

log = logging.getLogger("virtserial.device")

VMM_EVENTS = EPOLLIN | EPOLLRDHUP | EPOLLET
FAULT_GRACE = 0.02
"""Seconds for a DMA map that is on its way when the driver already uses the memory; then the driver is at fault."""


DESCRIPTOR_SHARE = 4
"""A VMM's maps may hold one in so many of the descriptors that a process may have; the keeper holds one for each."""


def state_size(max_ports: int) -> int:
    """Bytes of state memory for one controller, whole pages."""
    size = ConsoleDevice.state_size(max_ports) + VirtioPciFunction.state_size + Server.state_size
    return (size + mmap.PAGESIZE - 1) & -mmap.PAGESIZE


def _features(config: Controller) -> int:
    features = TRANSPORT_FEATURES
    for offered, bit in (
        (config.iommu_platform, ACCESS_PLATFORM),
        (config.event_idx, EVENT_IDX),
        (config.indirect_desc, INDIRECT_DESC),
        (config.queue_reset, RING_RESET),
    ):
        if not offered:
            features &= ~bit
    return features


class GuestDevice(VirtioPciFunction):
    """A controller, as its VMM sees it.

    Args:
        config: what the keeper has told of the controller.
        state_fd: the controller's state memory; owned.
        loop: the worker's loop.
        send: to the keeper.
        ledger: where the batch and the message that are under way are noted.
    """

    def __init__(
        self, config: Controller, state_fd: int, loop: EventLoop, send: Send[FromWorker], ledger: Ledger
    ) -> None:
        self.index = config.controller
        self.name = config.name
        self._loop = loop
        self._send = send
        self._log = LimitedLog(log, loop, self.name)
        self._account = ledger.account
        self._guarded_turns: dict[Callable[[], None], Callable[[], None]] = {}
        self._regions = RegionMaker(self, config.trust_vmm, self._tell_slow_path, ledger.account)
        self._slow_path_told = False
        self.port_serials: dict[Port, int] = {}
        self.connection_serials: dict[Port, int] = {}
        self._stream: MessageStream | None = None
        self._half_done: Note | None = None
        self._interrupted_batch: Note | None = None
        self._access: MessageMemory | None = None
        self._fault_timer: Timer | None = None
        self._restored_maps: set[tuple[int, int, int, int]] = set()
        self._maps_with_descriptor: set[int] = set()
        self._most_descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // DESCRIPTOR_SHARE
        state = StateMemory(memoryview(mmap.mmap(state_fd, status_of(state_fd).size)))
        os.close(state_fd)
        console = ConsoleDevice(
            state,
            config.max_ports,
            _features(config),
            scheduler=self,
            port_events=self,
            name=self.name,
            emergency_write=config.emergency_write,
            resize_rows_first=config.resize_rows_first,
            controller=self.index,
            ledger=ledger,
        )
        console.on_failure = self._device_failed
        console.on_address_fault = self._address_fault
        self.console = console
        super().__init__(console, state, vectors=config.vectors, account=ledger.account)
        self._server = Server(self, state, migratable=self)
        self._server.controller, self._server.ledger = self.index, ledger

    # console.seams.Scheduler: turns of this device, in which nothing may end the process

    def now(self) -> float:
        """The loop's clock."""
        return self._loop.now()

    def add_turn(self, callback: Callable[[], None]) -> None:
        """Give the device a turn."""
        guarded = self._guarded_turns.get(callback)
        if guarded is None:
            guarded = self._guarded_turns[callback] = partial(self._guarded, callback)
        self._loop.add_turn(guarded)

    def call_at(self, due: float, callback: Callable[[], None]) -> Timer:
        """Call the device back at a time."""
        return self._loop.call_at(due, lambda: self._guarded(callback))

    def _guarded(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            self._broken()

    def _broken(self) -> None:
        """A mistake of ours: this device stops, the process and its other devices go on."""
        self._log.error("internal error; the device stops until the guest resets it", with_traceback=True)
        self.console.fail(DriverError("internal error of the device"))

    def _device_failed(self, error: DriverError) -> None:
        self._log.error("the guest's driver broke a rule, the device needs a reset: %s", error)

    def _address_fault(self) -> None:
        if self._fault_timer is None:
            self._fault_timer = self._loop.call_later(FAULT_GRACE, self._retry_faulted)

    def _retry_faulted(self) -> None:
        self._fault_timer = None
        self._guarded(self.console.turns.retry)

    # Ports

    def port_plugged(self, port: Port, serial: int, keeper_says_open: bool) -> None:
        """A port was plugged in, or is there from a predecessor, who may not have told all it knew."""
        self.port_serials[port] = serial
        if port.guest_open != keeper_says_open:
            self.guest_open_changed(port.number, port.guest_open)

    def port_unplugged(self, port: Port) -> None:
        """A port is gone."""
        self.port_serials.pop(port, None)
        self.connection_serials.pop(port, None)

    def remove(self) -> None:
        """The device is unplugged: let go of the VMM, and so of the guest's memory."""
        self._disconnect("")
        if self._fault_timer is not None:
            self._fault_timer.cancel()

    # console.seams.PortEvents

    def guest_open_changed(self, number: int, is_open: bool) -> None:
        """The guest opened or closed a port."""
        port = self.console.slots[number].port
        self._send(GuestOpen(self.index, number, self.port_serials.get(port, 0) if port else 0, is_open))

    def host_end_closed(self, number: int) -> None:
        """A host end is over; the keeper may open the next."""
        port = self.console.slots[number].port
        if port is not None and port.chardev is not None:
            self._send(ConnectionEnded(port.chardev, self.connection_serials.pop(port, 0)))

    def host_end_failed(self, number: int, error: BackendError) -> None:
        """A host end failed; its port is closed towards the guest."""
        self._log.error("port %d: %s; the port is closed", number, error)

    # The VMM's connection

    def connect(self, fd: int) -> None:
        """Serve a VMM; a predecessor's goes on where that was killed."""
        if self._stream is not None:
            self._disconnect("a new VMM has come")
        self._stream = MessageStream(socket.socket(fileno=fd), self._server)
        half_done, self._half_done = self._half_done, None
        if half_done is not None:
            self._stream.finish(half_done)
        self._loop.watch(fd, VMM_EVENTS, self._serve)
        log.info("%s: VMM connected", self.name)

    def _serve(self, events: int | None = None) -> None:
        stream = self._stream
        if stream is None:
            return
        try:
            had_to_send = stream.wants_to_send
            if stream.serve(events):
                self._loop.add_turn(self._serve)
            if stream.wants_to_send != had_to_send:
                self._loop.rewatch(stream.fileno(), VMM_EVENTS | (EPOLLOUT if stream.wants_to_send else 0))
        except PeerError as error:
            self._disconnect(str(error))
        except Exception:
            self._broken()
            self._disconnect("internal error")
        else:
            if stream.at_end:
                self._disconnect("")

    def _disconnect(self, reason: str) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        self._access = None
        if reason:
            self._log.error("VMM's connection is closed: %s", reason)
        else:
            log.info("%s: VMM has left", self.name)
        self._loop.unwatch(stream.fileno())
        # The keeper holds the socket too: it says goodbye and closes it without leaving bytes unread.
        stream.abandon()
        self._server.disconnected()
        # "the device state should otherwise be retained" (vfio-user): for a guest whose VMM is gone there is none.
        self.reset()
        self._send(VmmGone(self.index))

    # Standing still, and moving to another process (vfio_user.migration.MigratableDevice)

    @property
    def max_state_size(self) -> int:
        """The most bytes of a saved state."""
        return size_limit(self.console, PciState(self))

    def pause(self) -> None:
        """Stand still."""
        self.console.pause()

    def resume(self) -> None:
        """Run again, in a turn of its own: it may take messages to the VMM, and one of the VMM's is being handled."""
        self.console.record.paused = 0
        self._loop.add_turn(lambda: self._guarded(self._resume))

    def _resume(self) -> None:
        # Unless it was paused again before its turn.
        if self.console.paused and not self.console.record.paused:
            self.console.resume()

    def save_state(self) -> bytes:
        """The state of the device, which stands still."""
        return save(self.console, PciState(self))

    def load_state(self, data: bytes) -> None:
        """Take a state over; the device stands still.

        Raises:
            ConfigError: it is none of a device like this one.
        """
        try:
            load(self.console, PciState(self), data)
        except ConfigError as error:
            self._log.error("the state is refused: %s", error)
            raise

    def log_writes(self, dirty: DirtyLog | None) -> None:
        """Note in `dirty` what is written into guest memory."""
        self.console.log_writes(dirty)

    def reset(self) -> None:
        """The VMM resets the function; it runs after that, whatever it did before."""
        super().reset()
        if self.console.paused:
            self.resume()

    def finish(self, note: Note) -> None:
        """A predecessor was killed over this; before `connect` and `take_over`."""
        if note.kind in (WRITE, READ):
            self._interrupted_batch = note
        else:
            self._half_done = note

    def take_over(self) -> None:
        """Everything is in place, perhaps from a predecessor: find out what is to be done."""
        interrupted, self._interrupted_batch = self._interrupted_batch, None
        self._guarded(lambda: self.console.take_over(interrupted))
        self._serve()

    # Guest memory

    def dma_map(self, iova: int, size: int, prot: int, fd: int | None, offset: int) -> None:
        """Map guest memory (VfioDevice)."""
        memory = self.console.memory
        if (iova, size, prot, offset) in self._restored_maps:
            # A predecessor was killed between handing the map to the keeper and recording the request: a repetition.
            self._restored_maps.discard((iova, size, prot, offset))
            if fd is not None:
                os.close(fd)
            return
        try:
            memory.check(iova, size)
            if fd is not None and len(self._maps_with_descriptor) >= self._most_descriptors:
                raise PeerError(f"DMA map: more than {self._most_descriptors} with a descriptor", errno.ENOSPC)
            region = self._regions.make(iova, size, fd, offset, bool(prot & VFIO_DMA_MAP_FLAG_WRITE))
            self._send(DmaMap(self.index, iova, size, prot, offset), [] if fd is None else [fd])
        except BaseException:
            if fd is not None:
                os.close(fd)
            raise
        memory.map(region)
        if fd is not None:
            self._maps_with_descriptor.add(iova)
            if not isinstance(region, FileRegion):
                os.close(fd)
        self.console.memory_mapped()

    def restore_dma(self, message: DmaMap, fds: Sequence[int]) -> None:
        """Map what a predecessor had mapped."""
        iova, size, prot, offset = message.iova, message.size, message.prot, message.offset
        fd = fds[0] if fds else None
        region = self._regions.make(iova, size, fd, offset, bool(prot & VFIO_DMA_MAP_FLAG_WRITE))
        self.console.memory.map(region)
        if self.console.memory.log is not None:
            # What the predecessor has written there is not known.
            self.console.memory.log.mark(iova, size)
        self._restored_maps.add((iova, size, prot, offset))
        if fd is not None:
            self._maps_with_descriptor.add(iova)
            if not isinstance(region, FileRegion):
                os.close(fd)

    def _tell_slow_path(self, why: str) -> None:
        if not self._slow_path_told:
            self._slow_path_told = True
            log.warning("%s: slower path: %s", self.name, why)

    def dma_unmap(self, iova: int, size: int) -> None:
        """Let go of a range (VfioDevice)."""
        self._restored_maps.clear()
        for region in self.console.memory.unmap(iova, size):
            self._maps_with_descriptor.discard(region.iova)
            self._send(DropDma(self.index, region.iova))
        self.console.memory_unmapped(iova, size)

    def dma_unmap_all(self) -> None:
        """Let go of all guest memory (VfioDevice)."""
        self._restored_maps.clear()
        self.console.memory.clear()
        self._maps_with_descriptor.clear()
        self._send(DropDma(self.index, None))
        self.console.memory_unmapped(0, 1 << 64)

    # memory.region.MessageAccess: by messages, during which the VMM may reset the device or leave

    def dma_read(self, address: int, length: int) -> bytes:
        """Read guest memory by messages."""
        access, epoch = self._message_access(), self.console.epoch
        try:
            data = access.dma_read(address, length)
        except PeerError as error:
            raise self._interrupted(error) from error
        self._check_epoch(epoch)
        return data

    def dma_write(self, address: int, data: Buffer) -> None:
        """Write guest memory by messages."""
        access, epoch = self._message_access(), self.console.epoch
        try:
            access.dma_write(address, memoryview(data))
        except PeerError as error:
            raise self._interrupted(error) from error
        self._check_epoch(epoch)

    def _message_access(self) -> MessageMemory:
        if self._stream is None:
            raise AccessInterrupted(f"{self.name}: the VMM has left")
        if self._access is None:
            self._tell_slow_path("the VMM does not share its memory (share=on): every access is a message")
            self._access = MessageMemory(self._stream, self._server.session)
        return self._access

    def _interrupted(self, error: PeerError) -> AccessInterrupted:
        reason = str(error)
        self._loop.add_turn(lambda: self._disconnect(reason))
        return AccessInterrupted(reason)

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self.console.epoch:
            raise AccessInterrupted(f"{self.name}: the device was reset during a memory access")

    # Interrupts: what the VMM hands us is the keeper's before it is answered

    def set_irq_eventfds(self, index: int, start: int, fds: Sequence[int]) -> None:
        """Take interrupt eventfds (VfioDevice)."""
        if not fds:
            self._send(DropIrq(self.index, index, None))
        for number, fd in enumerate(fds, start):
            if fd < 0:
                self._send(DropIrq(self.index, index, number))
            else:
                self._send(Irq(self.index, index, number), [fd])
        super().set_irq_eventfds(index, start, fds)

    def restore_irq(self, message: Irq, fds: Sequence[int]) -> None:
        """Take an interrupt eventfd that a predecessor had."""
        super().set_irq_eventfds(message.index, message.number, fds)
