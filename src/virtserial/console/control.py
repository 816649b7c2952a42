"""The control protocol, device side (virtio 1.3, section 5.3.6.2).

What the driver still has to be told is state of each port, not a queue of messages: one bit per kind of message, sent
in a fixed order when the driver has posted a buffer.  So none is ever lost, however many ports there are and however
few buffers; memory is bounded however often the driver asks; and of several changes that it could not be told in time
it hears the last.  (QEMU drops a message when no buffer is posted.)
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from virtserial.console.slot import PortSlot, in_plug_order
from virtserial.console.wire import (
    CONTROL,
    RESIZE,
    VIRTIO_CONSOLE_CONSOLE_PORT,
    VIRTIO_CONSOLE_DEVICE_READY,
    VIRTIO_CONSOLE_F_SIZE,
    VIRTIO_CONSOLE_PORT_ADD,
    VIRTIO_CONSOLE_PORT_NAME,
    VIRTIO_CONSOLE_PORT_OPEN,
    VIRTIO_CONSOLE_PORT_READY,
    VIRTIO_CONSOLE_PORT_REMOVE,
    VIRTIO_CONSOLE_RESIZE,
    ControlMessage,
    pack_control,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from virtserial.console.seams import ControlOwner
    from virtserial.virtio.queue import Virtqueue

log = logging.getLogger("virtserial.console")

# Pending messages of a port number, as bits; a lower bit is sent before a higher one.
REMOVE: Final = 1
ADD: Final = 2
CONSOLE: Final = 4
NAME: Final = 8
OPEN: Final = 16
SIZE: Final = 32

UNKNOWN: Final = bytes(10)
"""What a PortRecord begins with as long as the driver has said and heard nothing of its number."""
MESSAGES_PER_TURN: Final = 64
HEARING_TIME: Final = 0.02
"""Seconds that input waits at most until the driver has seen what it was told of a host: a guest may be slow."""
HEARING_PAUSE: Final = 0.0002
"""Seconds between two looks whether it has."""
WARNING_INTERVAL: Final = 1.0
"""Seconds between two warnings that a driver can provoke; it must not fill the log."""


class ControlChannel:
    """The two control queues of a device and what is still to be said on them.

    Args:
        owner: the device.
        slots: its port numbers.
        queues: control receiveq and control transmitq.

    Attributes:
        ignored: messages of the driver that made no sense: unknown port, unknown event, too short.
    """

    def __init__(self, owner: ControlOwner, slots: Sequence[PortSlot], queues: tuple[Virtqueue, Virtqueue]) -> None:
        self._owner = owner
        self._slots = slots
        self.queues = self.receiveq, self.transmitq = queues
        self.ignored = 0
        self._due = False
        self._waiting: dict[PortSlot, None] = {}
        # Numbers of which something was said or is to be said since the last reset.
        self._touched = {slot for slot in slots if not slot.record.holds(UNKNOWN)}
        self._warned: float | None = None

    # Turns

    def schedule_all(self) -> None:
        """Ask for a turn."""
        if not self._due:
            self._due = True
            self._owner.schedule_first(self)

    def forget_work(self) -> None:
        self._due = False

    def turn(self) -> None:
        """Take messages of the driver, send what is pending."""
        self._due = False
        if not self._owner.driver_listens:
            return
        more = self.receive()
        if self.pump() or more:
            self.schedule_all()

    # What the device has to say

    def reset(self) -> None:
        """Forget everything: a reset driver knows of no port and asks again."""
        self._waiting.clear()
        for slot in self._touched:
            record = slot.record
            record.pending = record.known = record.ready = record.told_open = 0
        self._touched.clear()
        self._owner.told_at = 0.0

    def touch_all(self) -> None:
        """Records are written by somebody who does not say which."""
        self._touched.update(self._slots)

    def take_over(self) -> None:
        """Pick up what a predecessor had not said, in plug order."""
        self._waiting = dict.fromkeys(in_plug_order(slot for slot in self._slots if slot.record.pending))
        self._pump_later()

    def port_added(self, slot: PortSlot) -> None:
        """A port was plugged in; a driver that is there hears of it."""
        if self._owner.driver_listens:
            self._set_pending(slot, ADD)

    def port_replaced(self, slot: PortSlot) -> None:
        """Another port has taken the number while no worker was there: the driver hears of both, after `take_over`."""
        self._touched.add(slot)
        record = slot.record
        record.pending = (REMOVE if record.known else 0) | (ADD if self._owner.driver_listens else 0)
        record.known = record.ready = record.told_open = record.guest_open = 0

    def port_removed(self, slot: PortSlot) -> None:
        """A port was unplugged: nothing else of it is said any more, and nothing at all if it was never mentioned."""
        record = slot.record
        record.pending &= REMOVE
        record.ready = record.told_open = 0
        if record.known:
            record.known = 0
            self._set_pending(slot, REMOVE)

    def open_changed(self, slot: PortSlot) -> None:
        """The host's end was opened or closed."""
        if slot.record.ready:
            self._set_pending(slot, OPEN)

    def is_heard(self) -> bool:
        """Whether the driver has seen what it was told of hosts that came and left, or has had its time to.

        Linux reads these messages in a work queue, what a host sends in the interrupt: two that wait together would be
        seen in the wrong order.  Without EVENT_IDX the ring does not show what the driver has seen.
        """
        if self._owner.now() < self._owner.told_at + HEARING_TIME and self.receiveq.ring.unseen():
            return False
        self._owner.told_at = 0.0
        return True

    def size_changed(self, slot: PortSlot) -> None:
        """The console's size changed."""
        if slot.record.ready and self._owner.has_feature(VIRTIO_CONSOLE_F_SIZE):
            self._set_pending(slot, SIZE)

    def _set_pending(self, slot: PortSlot, bits: int) -> None:
        self._touched.add(slot)
        self._waiting.setdefault(slot)
        slot.record.pending |= bits
        self._pump_later()

    def _pump_later(self) -> None:
        if self._waiting:
            self.schedule_all()

    def _next_message(self, slot: PortSlot) -> tuple[int, bytes] | None:
        """Return the bit and the bytes of the next message about a port number."""
        record, port = slot.record, slot.port
        while bits := record.pending:
            bit = bits & -bits
            if bit == REMOVE:
                return bit, pack_control(slot.number, VIRTIO_CONSOLE_PORT_REMOVE, 1)
            if port is not None:
                if bit == ADD:
                    return bit, pack_control(slot.number, VIRTIO_CONSOLE_PORT_ADD, 1)
                if bit == CONSOLE:
                    return bit, pack_control(slot.number, VIRTIO_CONSOLE_CONSOLE_PORT, 1)
                if bit == NAME and port.name is not None:
                    # QEMU ends the name with a NUL, which the specification does not ask for; drivers expect either.
                    name = port.name.encode(errors="surrogateescape") + b"\0"
                    return bit, pack_control(slot.number, VIRTIO_CONSOLE_PORT_NAME, 1, name)
                if bit == OPEN and port.host_open != bool(record.told_open):
                    return bit, pack_control(slot.number, VIRTIO_CONSOLE_PORT_OPEN, int(port.host_open))
                if bit == SIZE and (port.cols or port.rows):
                    size = (port.rows, port.cols) if self._owner.resize_rows_first else (port.cols, port.rows)
                    return bit, pack_control(slot.number, VIRTIO_CONSOLE_RESIZE, 0, RESIZE.pack(*size))
            record.pending = bits & ~bit
        return None

    def _sent(self, slot: PortSlot, bit: int) -> None:
        record, port = slot.record, slot.port
        record.pending &= ~bit
        if bit == ADD:
            record.known = 1
        elif bit == OPEN:
            record.told_open = 1 - record.told_open
            self._owner.told_at = self._owner.now()
        elif bit == REMOVE and port is None:
            record.known = 0

    def pump(self) -> bool:
        """Send what is pending into the buffers that the driver has posted.

        Returns whether there is more to do now.

        Raises:
            DriverError: the driver broke a rule of the virtqueue.
        """
        ring = self.receiveq.ring
        waiting = self._waiting
        budget = MESSAGES_PER_TURN
        while waiting and budget > 0:
            slot = next(iter(waiting))
            message = self._next_message(slot)
            if message is None:
                del waiting[slot]
                continue
            batch = ring.writable_chains(1, len(message[1]))
            if not batch.heads:
                if ring.arm():
                    continue
                break
            budget -= 1 + batch.walked // 16
            bit, data = message
            if batch.ends[0] < len(data):
                # Too short for the message: it goes back empty, the message waits for a better one.
                ring.give_back(batch.heads, [0])
                self.ignored += 1
                continue
            _scatter(batch.views, data)
            ring.store(batch, len(data))
            # First the driver's ring, then our own memory of it: a successor may repeat a message, never omit one.
            ring.give_back(batch.heads, [len(data)])
            self._sent(slot, bit)
            if log.isEnabledFor(logging.DEBUG):
                log.debug("virtio_serial_send_control_event port %d, event %d, value %d", *CONTROL.unpack_from(data))
        self._owner.signal(self.receiveq)
        return bool(waiting) and budget <= 0

    # What the driver has to say

    def receive(self) -> bool:
        """Take messages from the control transmitq.  Returns whether there is more to do now.

        Raises:
            DriverError: the driver broke a rule of the virtqueue.
        """
        queue = self.transmitq
        batch = queue.ring.readable_chains(1, CONTROL.size)
        budget = MESSAGES_PER_TURN
        while budget > 0:
            # A long chain counts for several messages: its descriptors take their time.
            budget -= 1 + batch.walked // 16
            if not batch.heads:
                self._owner.signal(queue)
                # A reset in the middle of `signal` gives the queue another ring.
                if not queue.ring.arm():
                    return False
            else:
                message = _gather(batch.views)
                queue.ring.give_back(batch.heads)
                if message is None:
                    self.ignored += 1
                else:
                    self._handle(message)
                    if not self._owner.live:
                        return False
            batch = queue.ring.readable_chains(1, CONTROL.size)
        self._owner.signal(queue)
        return True

    def _handle(self, message: ControlMessage) -> None:
        log.debug("virtio_serial_handle_control_message event %d, value %d", message.event, message.value)
        if message.event == VIRTIO_CONSOLE_DEVICE_READY:
            if not message.value:
                self._warn("%s: the guest's driver failed to set the device up", self._owner.name)
                return
            for plugged in in_plug_order(slot for slot in self._slots if slot.port):
                self._set_pending(plugged, ADD)
            return
        slot = self._slots[message.port] if message.port < len(self._slots) else None
        port = slot.port if slot else None
        if slot is None or port is None or message.event not in (VIRTIO_CONSOLE_PORT_READY, VIRTIO_CONSOLE_PORT_OPEN):
            self.ignored += 1
            return
        if message.event == VIRTIO_CONSOLE_PORT_OPEN:
            port.set_guest_open(bool(message.value))
        elif not message.value:
            self._warn("%s: the guest's driver failed to add port %d", self._owner.name, message.port)
        else:
            port.driver_ready()
            sized = self._owner.has_feature(VIRTIO_CONSOLE_F_SIZE)
            self._set_pending(slot, (CONSOLE | (SIZE if sized else 0) if port.is_console else 0) | NAME | OPEN)

    def _warn(self, text: str, *words: object) -> None:
        now = self._owner.now()
        if self._warned is None or now >= self._warned + WARNING_INTERVAL:
            self._warned = now
            log.warning(text, *words)


def _scatter(views: Iterable[memoryview], data: bytes) -> None:
    """Spread a message over buffers; a driver may split them as it likes (2.7.4)."""
    for view in views:
        view[: len(data)] = data[: len(view)]
        data = data[len(view) :]
        if not data:
            return


def _gather(views: Iterable[memoryview]) -> ControlMessage | None:
    """Return the fixed part of a message, copied once, or None if it is shorter; what follows is never read."""
    head = b""
    for view in views:
        head += bytes(view[: CONTROL.size - len(head)])
        if len(head) == CONTROL.size:
            return ControlMessage(*CONTROL.unpack(head))
    return None
