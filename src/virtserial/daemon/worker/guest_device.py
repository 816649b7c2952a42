"""One controller in the worker, however its driver reaches it: the console device, its ports, its turns and its state.

Everything lives over the controller's state memory: the console device first, its front (front.py) behind it.
"""

from __future__ import annotations

import logging
import mmap
import os
from functools import partial
from typing import TYPE_CHECKING, Final

from virtserial.accounting import READ, WRITE
from virtserial.channel.messages import ConnectionEnded, DmaMap, GuestOpen, Irq
from virtserial.console.device import ConsoleDevice
from virtserial.daemon.worker.limited_log import LimitedLog
from virtserial.daemon.worker.request_budget import LoopUse
from virtserial.errors import ConfigError, DriverError
from virtserial.memory.file_status import status_of
from virtserial.memory.state import StateMemory
from virtserial.state.device_state import load, save, size_limit
from virtserial.virtio.features import (
    LEGACY_FEATURES,
    TRANSPORT_FEATURES,
    VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_F_ANY_LAYOUT,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.accounting import Ledger, Note
    from virtserial.channel.channel import Send
    from virtserial.channel.messages import Controller, FromWorker
    from virtserial.console.port import Port
    from virtserial.daemon.worker.front import Front, FrontOwner
    from virtserial.errors import BackendError
    from virtserial.loop import EventLoop, Timer
    from virtserial.memory.dirty_log import DirtyLog

    MakeFront = Callable[[FrontOwner, StateMemory, Controller], Front]

log = logging.getLogger("virtserial.device")

FAULT_GRACE: Final = 0.02
"""Seconds for a DMA map that is on its way when the driver already uses the memory; then the driver is at fault."""


def _features(config: Controller) -> int:
    features = TRANSPORT_FEATURES | VIRTIO_F_RING_PACKED | VIRTIO_F_IN_ORDER
    if config.legacy:
        features |= VIRTIO_F_ANY_LAYOUT
    for offered, bit in (
        (config.iommu_platform, VIRTIO_F_ACCESS_PLATFORM),
        (config.event_idx, VIRTIO_F_EVENT_IDX),
        (config.indirect_desc, VIRTIO_F_INDIRECT_DESC),
        (config.packed, VIRTIO_F_RING_PACKED),
        (config.in_order, VIRTIO_F_IN_ORDER),
        (config.queue_reset, VIRTIO_F_RING_RESET),
    ):
        if not offered:
            features &= ~bit
    return features if config.modern else features & LEGACY_FEATURES


def _queue_size(config: Controller) -> int | None:
    """The largest that the VMM can set up, if that is not the device's own."""
    if not config.vhost_user:
        return None
    from virtserial.vhost_user.wire import MAX_VRING_SIZE  # as late as the front

    return MAX_VRING_SIZE


class GuestDevice:
    """A controller (front.FrontOwner, console.seams.Scheduler and PortEvents).

    Args:
        config: what the keeper has told of the controller.
        state_fd: the controller's state memory; owned.
        loop: the worker's loop.
        send: to the keeper.
        ledger: where the batch and the message that are under way are noted.
        make_front: makes its front.
        loop_use: what it shares with all devices of its loop; None: it is alone.
    """

    def __init__(
        self,
        config: Controller,
        state_fd: int,
        loop: EventLoop,
        send: Send[FromWorker],
        ledger: Ledger,
        make_front: MakeFront,
        loop_use: LoopUse | None = None,
    ) -> None:
        self.index = config.controller
        self.name = config.name
        self.loop = self.look = loop
        self.now = loop.now
        self.send = send
        self.ledger = ledger
        self.loop_use = loop_use or LoopUse()
        self.log = LimitedLog(log, loop, self.name)
        self.port_serials: dict[Port, int] = {}
        self.connection_serials: dict[Port, int] = {}
        self._guarded_turns: dict[Callable[[], None], Callable[[], None]] = {}
        self._interrupted: Note | None = None
        self._taken_over = False
        self._early_turns: list[Callable[[], None]] = []
        self._fault_timer: Timer | None = None
        state = StateMemory(memoryview(mmap.mmap(state_fd, status_of(state_fd).size)))
        os.close(state_fd)
        self.console = ConsoleDevice(
            state,
            config.max_ports,
            _features(config),
            scheduler=self,
            port_events=self,
            name=self.name,
            emergency_write=config.emergency_write,
            resize_rows_first=config.resize_rows_first,
            queue_size=_queue_size(config),
            controller=self.index,
            ledger=ledger,
            on_failure=self._device_failed,
            on_address_fault=self._address_fault,
        )
        self.front = make_front(self, state, config)

    # Turns of this device, in which nothing may end the process

    @property
    def is_shared(self) -> bool:
        """Whether other devices have had work lately."""
        return self.loop_use.is_shared

    def add_turn(self, callback: Callable[[], None]) -> None:
        """Give the device a turn: not before it knows what a predecessor was killed over."""
        guarded = self._guarded_turns.get(callback)
        if guarded is None:
            guarded = self._guarded_turns[callback] = partial(self._turn, callback)
        if self._taken_over:
            self.loop.add_turn(guarded)
        else:
            self._early_turns.append(guarded)

    def call_at(self, due: float, callback: Callable[[], None]) -> Timer:
        """Call the device back at a time."""
        return self.loop.call_at(due, partial(self._guarded, callback))

    def _turn(self, callback: Callable[[], None]) -> None:
        self.loop_use.turn_of(self)
        self._guarded(callback)

    def _guarded(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            self.broken()

    def broken(self) -> None:
        """A mistake of ours: this device stops, the process and its other devices run on."""
        self.log.error("internal error; the device stops until the guest resets it", with_traceback=True)
        self.console.fail(DriverError("internal error of the device"))

    def _device_failed(self, error: DriverError) -> None:
        self.log.error("the guest's driver broke a rule, the device needs a reset: %s", error)

    def _address_fault(self) -> None:
        if self._fault_timer is None:
            self._fault_timer = self.loop.call_later(FAULT_GRACE, self._retry_faulted)

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
        self.front.close()
        if self._fault_timer is not None:
            self._fault_timer.cancel()

    def guest_open_changed(self, number: int, is_open: bool) -> None:
        """The guest opened or closed a port."""
        port = self.console.slots[number].port
        serial = self.port_serials.get(port, 0) if port is not None else 0
        self.send(GuestOpen(self.index, number, serial, is_open))

    def host_end_closed(self, number: int) -> None:
        """A host end is over; the keeper may open the next."""
        port = self.console.slots[number].port
        if port is not None and port.chardev is not None:
            self.send(ConnectionEnded(port.chardev, self.connection_serials.pop(port, 0)))

    def host_end_failed(self, number: int, error: BackendError) -> None:
        """A host end failed; its port is closed towards the guest."""
        self.log.error("port %d: %s; the port is closed", number, error)

    # Pausing, and the state of a paused device

    @property
    def max_state_size(self) -> int:
        """The most bytes of a saved state."""
        return size_limit(self.console, self.front.saved)

    def pause(self) -> None:
        """Stand still."""
        self.console.pause()

    def resume(self) -> None:
        """Run again, in a turn of its own: it may take messages to the VMM, and one of the VMM's is being handled."""
        self.console.record.paused = 0
        self.add_turn(self._resume)

    def _resume(self) -> None:
        # Unless it was paused again before its turn.
        if self.console.paused and not self.console.record.paused:
            self.console.resume()

    def save_state(self, backlogs: int | None = None) -> bytes:
        """The state of the paused device, as device_state.save."""
        return save(self.console, self.front.saved, backlogs)

    def load_state(self, data: bytes) -> None:
        """Load a state that a VMM brings into the paused device; what is wrong with it is logged.

        Raises:
            ConfigError: it is not valid, or not of a device like this one.
        """
        try:
            self.take_state(data)
        except ConfigError as error:
            self.log.error("the state is refused: %s", error)
            raise

    def take_state(self, data: bytes) -> None:
        """Load a state that the keeper brings; raises as `load_state`."""
        load(self.console, self.front.saved, data)

    def log_writes(self, dirty: DirtyLog | None) -> None:
        """Note in `dirty` what is written into guest memory."""
        self.console.log_writes(dirty)

    # The VMM, and what a dead predecessor has left

    def connect(self, fd: int) -> None:
        """A VMM has connected."""
        self.front.connect(fd)

    def restore(self, message: DmaMap | Irq, fds: Sequence[int]) -> None:
        """A predecessor had this from its VMM."""
        self.front.restore(message, fds)

    def finish(self, note: Note) -> None:
        """A predecessor was killed over this; before `connect` and `take_over`."""
        if note.kind in (WRITE, READ):
            self._interrupted = note
        else:
            self.front.finish(note)

    def take_over(self) -> None:
        """Everything is in place, perhaps from a predecessor: find out what is to be done."""
        interrupted, self._interrupted = self._interrupted, None
        self._guarded(lambda: self.console.take_over(interrupted))
        self._taken_over = True
        early, self._early_turns = self._early_turns, []
        for turn in early:
            self.loop.add_turn(turn)
        self.front.take_over()
