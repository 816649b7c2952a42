"""The multiport console device: its ports, its configuration, and who gets a turn.

Doorbells only note that there is work; `turn`, called by the event loop, does a bounded amount of it, port by port in
turns.  The device knows no clock and no loop: a `Scheduler` gives it both.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Protocol

from virtserial.accounting import WRITE, nowhere
from virtserial.console.control import ControlChannel
from virtserial.console.moderation import Moderation
from virtserial.console.port import RECEIVE, TRANSMIT, TURN_BYTES, Port
from virtserial.console.slot import PortRecord, PortSlot
from virtserial.console.wire import (
    CONFIG,
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    EMERG_WR_OFFSET,
    VIRTIO_CONSOLE_F_EMERG_WRITE,
    VIRTIO_CONSOLE_F_MULTIPORT,
    VIRTIO_CONSOLE_F_SIZE,
    VIRTIO_ID_CONSOLE,
    queue_count,
    queue_sizes,
    receiveq_index,
    transmitq_index,
)
from virtserial.errors import AccessInterrupted, AddressError, DriverError, StateError
from virtserial.memory.state import HEADER_SIZE, U16, U32, Record
from virtserial.virtio.device import DeviceRecord, VirtioDevice
from virtserial.virtio.ring.split import QueueRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.accounting import Note
    from virtserial.errors import BackendError
    from virtserial.loop import Timer
    from virtserial.memory.state import StateMemory
    from virtserial.virtio.ring.split import Virtqueue

log = logging.getLogger("virtserial.device")

PORTS_PER_TURN = 4
DISCARDS_PER_TURN = 256
"""Chains for ports that do not exist; a long chain counts for one more with every 16 of its descriptors."""


class Scheduler(Protocol):
    """A clock and a way to be called later (loop.EventLoop with time.monotonic)."""

    def now(self) -> float: ...
    def add_turn(self, callback: Callable[[], None]) -> None: ...
    def call_at(self, due: float, callback: Callable[[], None]) -> Timer: ...


class PortEvents(Protocol):
    """Who hears of a device's ports."""

    def guest_open_changed(self, port: Port, is_open: bool) -> None: ...
    def host_end_closed(self, port: Port) -> None: ...
    def host_end_failed(self, port: Port, error: BackendError) -> None: ...


class ConsoleRecord(Record):
    """What the device keeps in state memory beside its registers and ports."""

    __slots__ = ()
    SIZE = 8
    next_order = U32(0)
    cols = U16(4)
    rows = U16(6)


class ConsoleDevice(VirtioDevice):
    """A console device with room for `max_ports` ports.

    Args:
        state: where registers live: at least `state_size(max_ports)` bytes.
        max_ports: 1 to 511; with 1 there is no F_MULTIPORT, and port 0 is all there is.
        transport_features: VIRTIO_F_* bits to offer beside the device's own.
        scheduler: clock and turns.
        port_events: who hears of ports.
        name: for messages.

    Attributes:
        controller: what the ledger calls this device.
        ledger: where the batch that is under way is noted (accounting.py).
        interrupted: what a predecessor was about when it was killed.
    """

    config_size = CONFIG.size

    def __init__(
        self,
        state: StateMemory,
        max_ports: int,
        transport_features: int,
        scheduler: Scheduler,
        port_events: PortEvents,
        name: str = "virtio-serial",
        emergency_write: bool = True,
    ) -> None:
        features = transport_features | VIRTIO_CONSOLE_F_SIZE
        if max_ports > 1:
            features |= VIRTIO_CONSOLE_F_MULTIPORT
        if emergency_write:
            features |= VIRTIO_CONSOLE_F_EMERG_WRITE
        super().__init__(state, VIRTIO_ID_CONSOLE, queue_sizes(max_ports), features)
        self.name = name
        self.max_ports = max_ports
        self.port_events = port_events
        self.resize_rows_first = False
        self.controller = 0
        self.ledger = nowhere()
        self.interrupted: Note | None = None
        self._scheduler = scheduler
        self._console = ConsoleRecord(state)
        self.slots = [PortSlot(number, state) for number in range(max_ports)]
        self.control = ControlChannel(self)
        self._ready: deque[Port] = deque()
        self._control_due = False
        self._turn_asked = False
        self.paused = bool(self.record.paused)
        self.moderation = Moderation(scheduler, lambda queue: self._guarded(partial(self.signal, queue)))
        self._faulted: set[ControlChannel | Port] = set()
        self._retried: set[ControlChannel | Port] = set()

    @staticmethod
    def state_size(max_ports: int) -> int:
        """Bytes of state memory a device with that many ports needs, header included."""
        return (
            HEADER_SIZE
            + DeviceRecord.SIZE
            + ConsoleRecord.SIZE
            + queue_count(max_ports) * QueueRecord.SIZE
            + max_ports * PortRecord.SIZE
        )

    # Ports

    def slot(self, number: int) -> PortSlot | None:
        """Return the place of a port number, None if the device has no such number."""
        return self.slots[number] if 0 <= number < self.max_ports else None

    def slots_in_plug_order(self) -> list[PortSlot]:
        """Return the places that hold a port, first plugged first."""
        return sorted((slot for slot in self.slots if slot.port), key=lambda slot: slot.record.order)

    def queues_of(self, number: int) -> tuple[Virtqueue, Virtqueue]:
        """Return receiveq and transmitq of a port number."""
        return self.queues[receiveq_index(number)], self.queues[transmitq_index(number)]

    def add_port(
        self, number: int, name: str | None = None, is_console: bool = False, has_backend: bool = False, plug: int = 0
    ) -> Port:
        """Plug a port in, or, in state memory that knows it already, go on with it.

        Args:
            plug: differs from that of another port that had the number before (16 bits are kept).

        Raises:
            StateError: the number is taken or outside the device.
        """
        slot = self.slot(number)
        if slot is None or slot.port is not None:
            raise StateError(f"{self.name}: port {number} is taken or not below {self.max_ports}")
        port = slot.port = Port(self, slot, name, is_console, has_backend)
        replaces = slot.record.order and slot.record.plug != plug & 0xFFFF
        if replaces or not slot.record.order:
            self._console.next_order += 1
            slot.record.order = self._console.next_order
            slot.record.plug = plug & 0xFFFF
            if replaces:
                self.control.port_replaced(port)
            else:
                self.control.port_added(port)
            if self.live and not self.multiport and number == 0:
                port.set_guest_open(True)
        return port

    def remove_port(self, number: int) -> Port:
        """Unplug a port: what it still held is discarded, the driver is told, the number is free.

        Raises:
            StateError: there is no such port.
        """
        slot = self.slot(number)
        if slot is None or slot.port is None:
            raise StateError(f"{self.name}: there is no port {number}")
        port = slot.port
        host, port.host = port.host, None
        if host is not None:
            host.close()
        if self.live:
            self._guarded(lambda: self._discard(slot, DISCARDS_PER_TURN))
        port.set_guest_open(False)
        # A turn it had asked for must not meet the next port of this number.
        port.work = 0
        if port in self._ready:
            self._ready.remove(port)
        self._faulted.discard(port)
        self._retried.discard(port)
        slot.port = None
        slot.record.order = 0
        self.control.port_removed(slot)
        return port

    def _discard(self, slot: PortSlot, budget: int) -> int:
        """Return what the driver has queued for a number without a host end, unread, and ask to hear of more.

        Returns what is left of the budget; what is left in the queue then has its turn later.
        """
        queue = self.queues[transmitq_index(slot.number)]
        while budget > 0:
            # With a budget of no bytes: one chain, and no view of it.
            batch = queue.readable_chains(1, 0)
            if not batch.heads:
                break
            slot.record.discarded += batch.ends[-1] - queue.offset
            queue.push_used(batch.heads)
            budget -= 1 + batch.walked // 16
        self.signal(queue)
        if queue.enable_notifications():
            self.schedule_control()
        return budget

    @property
    def multiport(self) -> bool:
        """Whether driver and device speak over the control queues."""
        return self.has_feature(VIRTIO_CONSOLE_F_MULTIPORT)

    @property
    def driver_listens(self) -> bool:
        """Whether there is a driver that wants control messages."""
        return self.live and self.multiport

    def set_size(self, port: Port, cols: int, rows: int) -> None:
        """A console's window has a new size, in characters."""
        port.cols, port.rows = cols, rows
        if port.number == 0:
            self._console.cols, self._console.rows = cols, rows
            self.config_changed()
        self.control.size_changed(port)

    # VirtioDevice

    def read_config(self, offset: int, length: int) -> bytes:
        config = CONFIG.pack(self._console.cols, self._console.rows, self.max_ports, 0)
        return config[offset : offset + length].ljust(length, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """Only emerg_wr is writable (5.3.4): its low byte goes to the first console with a back end, at any time."""
        if not (offset <= EMERG_WR_OFFSET < offset + len(data)):
            return
        byte = data[EMERG_WR_OFFSET - offset : EMERG_WR_OFFSET - offset + 1]
        for slot in self.slots:
            port = slot.port
            if port is not None and port.is_console and port.host is not None and port.host.connected:
                port.write_emergency(byte)
                return

    def notify(self, index: int) -> None:
        if index in (CONTROL_RECEIVEQ, CONTROL_TRANSMITQ):
            self.schedule_control()
            return
        slot = self.slot(index - 2 >> 1 if index > 1 else 0)
        if slot is not None and slot.port is not None:
            slot.port.schedule(TRANSMIT if index & 1 else RECEIVE)
        elif index < self.num_queues:
            self.schedule_control()

    def driver_ready(self) -> None:
        if not self.multiport and (port := self.slots[0].port) is not None:
            port.set_guest_open(True)

    def stopped(self) -> None:
        self._ready.clear()
        self._control_due = False
        self.moderation.clear()
        self._faulted.clear()
        self._retried.clear()
        self.control.reset()
        for slot in self.slots:
            if slot.port is not None:
                slot.port.stop()

    def resume(self) -> None:
        """Go on from a predecessor's state memory: ports and regions are in place, doorbells may have been lost."""
        if self.paused:
            return
        for queue in self.queues:
            if queue.enabled:
                try:
                    queue.attach(self.memory)
                except AddressError:
                    self._resting.append(queue)
                except DriverError as error:
                    self.fail(error)
        interrupted, self.interrupted = self.interrupted, None
        if interrupted is not None and self.live:
            self._guarded(lambda: self._finish(interrupted))
        for slot in self.slots:
            if slot.port is None and slot.record.order:
                # Unplugged while nobody was there to tell the driver.
                slot.record.order = slot.record.guest_open = 0
                self.control.port_removed(slot)
        if self.live:
            self.transport.config_interrupt()
            self.control.resume()
            for slot in self.slots:
                if slot.port is not None:
                    self.control.open_changed(slot.port)
            for queue in self.queues:
                if queue.enabled:
                    # The predecessor's last interrupt may not have been sent: one too many does no harm.
                    self.transport.queue_interrupt(queue.index)
                    self.notify(queue.index)

    def _finish(self, note: Note) -> None:
        """Bring a queue to where a predecessor's last system call has left it."""
        queue = self.queues[note.queue]
        slot = self.slot(note.queue - 2 >> 1 if note.queue > 1 else 0)
        if slot is None or slot.port is None or note.moved <= 0 or queue.record.progress != note.progress:
            return
        sends = note.kind == WRITE
        try:
            if not note.exact or queue.ring is None:
                raise StateError("its host end, or the guest's memory, is reached by several system calls")
            if sends:
                slot.port.finish_transmit(note.moved)
            else:
                slot.port.finish_receive(note.moved)
        except StateError as error:
            doubtful = min(note.moved, TURN_BYTES)
            slot.record.doubtful += doubtful
            if not sends:
                slot.record.dropped += doubtful
            log.warning(
                "%s: port %d: a worker was killed over %d bytes, which %s: %s",
                self.name, slot.number, doubtful, "may be sent to the host again" if sends else "are lost", error,
            )  # fmt: skip

    @property
    def doubtful(self) -> int:
        """Bytes of all ports that were moved twice, or not at all, because a worker was killed over them."""
        return sum(slot.record.doubtful for slot in self.slots)

    def pause(self) -> None:
        """Stand still: no queue is touched and no host end read or written until `go_on`."""
        self.paused = True
        self.record.paused = 1
        self.moderation.clear()

    def go_on(self) -> None:
        """Run again after `pause`, with the same registers or others."""
        self.paused = False
        self.record.paused = 0
        self._resting.clear()
        self.resume()

    # Turns

    def now(self) -> float:
        """The scheduler's clock, in seconds."""
        return self._scheduler.now()

    def schedule(self, port: Port) -> None:
        """Give a port a turn; the port makes sure it asks once."""
        self._ready.append(port)
        self._ask_for_turn()

    def schedule_control(self) -> None:
        """Give the control queues a turn."""
        self._control_due = True
        self._ask_for_turn()

    def _ask_for_turn(self) -> None:
        if not self._turn_asked:
            self._turn_asked = True
            self._scheduler.add_turn(self.turn)

    def turn(self) -> None:
        """Do a bounded amount of the work that waits; ask for another turn if there is more.

        An error of the driver ends here, as a failure of this device.
        """
        self._turn_asked = False
        if self.paused or not self.live:
            self._rest()
            return
        if self._control_due:
            self._control_due = False
            self._turn_of(self.control, self._control_turn)
        ready = self._ready
        for _ in range(min(len(ready), PORTS_PER_TURN)):
            port = ready.popleft()
            self._turn_of(port, port.turn)
            if not ready or not self.live:
                break
        if ready or self._control_due:
            self._ask_for_turn()

    def _turn_of(self, subject: ControlChannel | Port, turn: Callable[[], None]) -> None:
        if subject in self._faulted:
            # It waits for its second try, which looks at everything again.
            if isinstance(subject, Port):
                subject.work = 0
            return
        try:
            turn()
        except AccessInterrupted:
            if self.live:
                # It may have been on the way to interrupt for what it had returned.
                for queue in (subject.receiveq, subject.transmitq):
                    self.transport.queue_interrupt(queue.index)
                self._schedule_again(subject)
        except AddressError as error:
            self._address_fault(subject, error)
        except DriverError as error:
            self.fail(error)
        else:
            if self._retried:
                self._retried.discard(subject)

    def _control_turn(self) -> None:
        more = False
        if self.multiport:
            more = self.control.receive()
            more = self.control.pump() or more
        if self.live:
            self._discard_unowned()
        if more:
            self.schedule_control()

    def _schedule_again(self, subject: ControlChannel | Port) -> None:
        if isinstance(subject, Port):
            subject.schedule(TRANSMIT | RECEIVE)
        else:
            self.schedule_control()

    def _guarded(self, action: Callable[[], object]) -> None:
        """Do something with queues outside of a turn; an error of the driver ends here as well."""
        try:
            action()
        except AccessInterrupted:
            pass
        except DriverError as error:
            self.fail(error)

    def _rest(self) -> None:
        """No driver: ports keep nothing scheduled."""
        while self._ready:
            self._ready.popleft().work = 0
        self._control_due = False

    def _discard_unowned(self) -> None:
        """Data for a port that does not exist is discarded, as QEMU does."""
        budget = DISCARDS_PER_TURN
        for slot in self.slots:
            if slot.port is None:
                queue = self.queues[transmitq_index(slot.number)]
                if queue.ring is not None and queue.available():
                    budget = self._discard(slot, budget)
                    if budget <= 0:
                        self.schedule_control()
                        return

    def _address_fault(self, subject: ControlChannel | Port, error: AddressError) -> None:
        """The driver named memory that is not mapped.  A mapping that its VMM has sent may still be on the way to us,
        so there is one second try before the device fails."""
        if subject in self._retried or self.on_address_fault is None:
            self.fail(error)
            return
        self._faulted.add(subject)
        self.on_address_fault()

    def retry_faulted(self) -> None:
        """The second try."""
        faulted, self._faulted = self._faulted, set()
        self._retried |= faulted
        for subject in faulted:
            self._schedule_again(subject)
