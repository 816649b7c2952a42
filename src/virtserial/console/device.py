"""The multiport console device: its ports, its configuration, and how it stands still and goes on.

Doorbells only note that there is work; turns.py does a bounded amount of it at a time.  The device knows no clock and
no loop: a `Scheduler` gives it both.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from virtserial.accounting import WRITE, nowhere
from virtserial.console.control import HEARING_PAUSE, ControlChannel
from virtserial.console.lane import RECEIVE, TRANSMIT
from virtserial.console.moderation import Moderation
from virtserial.console.port import TURN_BYTES, TURN_CHAINS, Port
from virtserial.console.records import ConsoleRecord, PortRecord
from virtserial.console.slot import PortSlot
from virtserial.console.throttling import throttling_ended
from virtserial.console.turns import Turns
from virtserial.console.unowned import UnownedQueues
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
from virtserial.errors import AccessInterrupted, DriverError, StateError
from virtserial.memory.state import HEADER_SIZE
from virtserial.virtio.device import DeviceRecord, VirtioDevice
from virtserial.virtio.ring.device_ring import UNOPENED
from virtserial.virtio.ring.record import QueueRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.accounting import Ledger, Note
    from virtserial.console.seams import PortEvents, Scheduler, Subject
    from virtserial.memory.state import StateMemory
    from virtserial.virtio.queue import Virtqueue

log = logging.getLogger("virtserial.device")

SHARED_CHAINS = 64
"""Chains a port may use in a turn and direction while other devices have work..."""
SHARED_SHORT_CHAINS = 16
"""...and of chains shorter than STREAM_CHAIN: a turn of 256 takes as long as a neighbour's whole round trip."""


class ConsoleDevice(VirtioDevice):
    """A console device with room for `max_ports` ports.

    Args:
        state: where registers live: at least `state_size(max_ports)` bytes.
        max_ports: 1 to 511; with 1 there is no F_MULTIPORT, and port 0 is all there is.
        transport_features: VIRTIO_F_* bits to offer beside the device's own.
        scheduler: clock and turns.
        port_events: who hears of ports.
        name: for messages.
        emergency_write: offer VIRTIO_CONSOLE_F_EMERG_WRITE.
        resize_rows_first: send rows before columns in VIRTIO_CONSOLE_RESIZE.
        queue_size: the largest size of every queue; None: QEMU's (wire.queue_sizes).
        controller: what the ledger calls this device.
        ledger: where the batch that is under way is noted (accounting.py).
        on_failure, on_address_fault: see VirtioDevice.
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
        *,
        emergency_write: bool = True,
        resize_rows_first: bool = False,
        queue_size: int | None = None,
        controller: int = 0,
        ledger: Ledger | None = None,
        on_failure: Callable[[DriverError], None] = lambda error: None,
        on_address_fault: Callable[[], None] | None = None,
    ) -> None:
        features = transport_features | VIRTIO_CONSOLE_F_SIZE
        if max_ports > 1:
            features |= VIRTIO_CONSOLE_F_MULTIPORT
        if emergency_write:
            features |= VIRTIO_CONSOLE_F_EMERG_WRITE
        super().__init__(
            state,
            VIRTIO_ID_CONSOLE,
            [queue_size] * queue_count(max_ports) if queue_size else queue_sizes(max_ports),
            features,
            on_failure=on_failure,
            on_address_fault=on_address_fault,
        )
        self.name = name
        self.max_ports = max_ports
        self.port_events = port_events
        self.resize_rows_first = resize_rows_first
        self.controller = controller
        self.ledger = ledger or nowhere()
        self._scheduler = scheduler
        self._console = ConsoleRecord(state)
        self.slots = [PortSlot(number, state) for number in range(max_ports)]
        self._transmitters: dict[int, Port] = {}
        self.paused = bool(self.record.paused)
        self.told_at = 0.0
        self.turns = Turns(scheduler, self)
        self.schedule = self.turns.schedule
        self.at_once = self.turns.at_once
        self.moderation = Moderation(scheduler, lambda queue: self._guarded(partial(self.signal, queue)))
        control_queues = self.queues[CONTROL_RECEIVEQ : CONTROL_TRANSMITQ + 1]
        self.control = ControlChannel(self, self.slots, (control_queues[0], control_queues[1]))
        self._opened = set(self.slots) if state.restored else set()
        self.unowned = UnownedQueues(self.queues, self.signal, lambda: self.schedule_first(self.unowned))

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

    def queues_of(self, number: int) -> tuple[Virtqueue, Virtqueue]:
        """Return receiveq and transmitq of a port number."""
        return self.queues[receiveq_index(number)], self.queues[transmitq_index(number)]

    def add_port(
        self, number: int, name: str | None = None, is_console: bool = False, has_backend: bool = False, plug: int = 0
    ) -> Port:
        """Plug a port in, or, in state memory that knows it already, take it over.

        Args:
            plug: differs from that of another port that had the number before (16 bits are kept).

        Raises:
            StateError: the number is taken or outside the device.
        """
        slot = self.slot(number)
        if slot is None or slot.port is not None:
            raise StateError(f"{self.name}: port {number} is taken or not below {self.max_ports}")
        port = slot.port = Port(
            self,
            number,
            slot.record,
            self.queues_of(number),
            self.moderation,
            name=name,
            is_console=is_console,
            has_backend=has_backend,
        )
        self._transmitters[port.transmitq.index] = port
        for queue in port.queues:
            if queue.ring is UNOPENED:
                self.find_ring(queue)
        replaces = slot.record.order and slot.record.plug != plug & 0xFFFF
        if replaces or not slot.record.order:
            slot.record.count_from_zero()
            self._console.next_order += 1
            slot.record.order = self._console.next_order
            slot.record.plug = plug & 0xFFFF
            if replaces:
                self.control.port_replaced(slot)
            else:
                self.control.port_added(slot)
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
            self._guarded(lambda: self.unowned.discard(slot))
        port.set_guest_open(False)
        throttling_ended(slot.record, self.now())
        # A turn it had asked for must not meet the next port of this number.
        self.turns.remove(port)
        port.plugged = False
        slot.port = None
        del self._transmitters[port.transmitq.index]
        slot.record.order = 0
        self.control.port_removed(slot)
        return port

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
        self.control.size_changed(self.slots[port.number])

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
            self.control.schedule_all()
            return
        slot = self.slot(index - 2 >> 1 if index > 1 else 0)
        if slot is None:
            return
        if slot.port is not None:
            slot.port.schedule(TRANSMIT if index & 1 else RECEIVE)
        elif index & 1:
            self.unowned.notify(slot)

    def notify_alone(self, index: int) -> None:
        if (port := self._transmitters.get(index)) is not None:
            port.message_sent()
        else:
            self.notify(index)

    def uses(self, queue: Virtqueue) -> bool:
        """A receiveq without a port is not looked at; the transmitq is, to discard what the driver writes there."""
        if queue.index & 1 or queue.index == CONTROL_RECEIVEQ:
            return True
        slot = self.slot(queue.index - 2 >> 1 if queue.index else 0)
        return slot is not None and slot.port is not None

    def driver_ready(self) -> None:
        if not self.multiport and (port := self.slots[0].port) is not None:
            port.set_guest_open(True)

    def stopped(self) -> None:
        self.turns.clear()
        self.moderation.clear()
        self.control.reset()
        self.unowned.forget()
        for slot in self._used_slots():
            if slot.port is not None:
                slot.port.stop()
        self._opened.clear()

    def _used_slots(self) -> set[PortSlot]:
        """The port numbers that a driver has used since the last reset: their queues, or by control messages."""
        slots = self.slots
        used = {slots[queue.index - 2 >> 1 if queue.index > 1 else 0] for queue in self._touched}
        return used | self._opened

    def touch_all(self) -> None:
        super().touch_all()
        self._opened.update(self.slots)
        self.control.touch_all()

    # A dead predecessor's state

    def take_over(self, interrupted: Note | None = None) -> None:
        """Continue from the state memory of a process that is dead: ports and regions are in place, doorbells may have
        been lost.

        Args:
            interrupted: the batch that it was moving when it was killed.
        """
        if self.paused:
            return
        for queue in self.queues:
            if queue.enabled:
                self.find_ring(queue)
                if not self.uses(queue):
                    queue.close_ring()
        if interrupted is not None and self.live:
            self._guarded(lambda: self._finish(interrupted))
        for slot in self.slots:
            if slot.port is None and slot.record.order:
                # Unplugged while nobody was there to tell the driver.
                slot.record.order = slot.record.guest_open = 0
                self.control.port_removed(slot)
        if self.live:
            self.transport.config_interrupt()
            self.control.take_over()
            for slot in self.slots:
                if slot.port is not None:
                    self.control.open_changed(slot)
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
            if not note.exact or not queue.ring.attached:
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

    # Standing still

    def pause(self) -> None:
        """Stand still: no queue is touched and no host end read or written until `resume`."""
        self.paused = True
        self.record.paused = 1
        self.turns.drop_all()
        self.moderation.clear()

    def resume(self) -> None:
        """Run again after `pause`, with the same registers or others."""
        self.paused = False
        self.record.paused = 0
        self._resting.clear()
        self.take_over()

    # What the parts ask for (seams.py: PortOwner, ControlOwner, TurnOwner)

    def now(self) -> float:
        """The scheduler's clock, in seconds."""
        return self._scheduler.now()

    def schedule_first(self, subject: Subject) -> None:
        """Give it a turn before the ports."""
        self.turns.schedule_first(subject)

    def listen_first(self) -> None:
        """Take the driver's control messages before a port has its next turn."""
        self.control.schedule_all()

    def guest_opened(self, number: int) -> None:
        """The driver has opened a port, and closes it at the latest by a reset."""
        self._opened.add(self.slots[number])

    @property
    def input_waits(self) -> bool:
        """See Look."""
        return self._scheduler.look.input_waits

    def turn_chains(self, are_short: bool) -> int:
        """Chains a port may use in one turn and direction: few short ones while other devices have work."""
        if not self._scheduler.is_shared:
            return TURN_CHAINS
        return SHARED_SHORT_CHAINS if are_short else SHARED_CHAINS

    def hosts_are_heard(self, look: Callable[[], None]) -> bool:
        """Whether the driver has seen which hosts came and left; if not, call `look` soon."""
        if self.control.is_heard():
            return True
        self.moderation.look_again(look, HEARING_PAUSE)
        return False

    def host_open_changed(self, number: int) -> None:
        """The host's end of a port was opened or closed: tell the driver."""
        self.control.open_changed(self.slots[number])

    def interrupt(self, queue: Virtqueue) -> None:
        """Interrupt for a queue, whether its driver wants it or not."""
        self.transport.queue_interrupt(queue.index)

    def await_memory(self) -> bool:
        """The driver named memory that is not mapped: whether there will be a second try."""
        if self.on_address_fault is None:
            return False
        self.on_address_fault()
        return True

    def _guarded(self, action: Callable[[], object]) -> None:
        """Do something with queues outside of a turn; an error of the driver ends here as well."""
        try:
            action()
        except AccessInterrupted:
            pass
        except DriverError as error:
            self.fail(error)
