"""The control queues from the driver's side: messages in, messages out (virtio 1.3, section 5.3.6.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.console.wire import CONTROL, ControlMessage, pack_control
from virtserial.driver.port_queues import allocate_buffers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from virtserial.driver.dma import DmaBuffer, DmaMemory
    from virtserial.virtio.ring.driver_ring import DriverRing

RECEIVE_SIZE = 4096
"""Bytes of a control receive buffer, as Linux's; it limits the length of port names."""
TRANSMIT_SIZE = 64
"""Our messages have 8 bytes; the padding keeps each message in its own cache line."""
MOST_ANSWERS = 4
"""The most answers to one PORT_READY: CONSOLE_PORT, PORT_NAME, PORT_OPEN, RESIZE."""


class ControlQueues:
    """Sends and receives control messages.

    Pending messages are coalesced: of two equal events of a port only the later value remains, in the place of the
    earlier one.  So the number of ports bounds them, whatever the device does.

    The driver sends no more requests than it has posted buffers for answers, because QEMU's device drops an answer
    without a buffer (hw/char/virtio-serial-bus.c, send_control_msg).

    Args:
        notify_receive, notify_transmit: ring the doorbell of the queue.
    """

    def __init__(
        self,
        memory: DmaMemory,
        receiveq: DriverRing[DmaBuffer],
        transmitq: DriverRing[DmaBuffer],
        notify_receive: Callable[[], None],
        notify_transmit: Callable[[], None],
    ) -> None:
        self._receiveq = receiveq
        self._transmitq = transmitq
        self._notify_receive = notify_receive
        self._notify_transmit = notify_transmit
        self._receive_buffers = allocate_buffers(memory, receiveq.size, RECEIVE_SIZE)
        self._free = allocate_buffers(memory, transmitq.size, TRANSMIT_SIZE)
        self._pending: dict[tuple[int, int], int] = {}
        self._most_unanswered = max(1, receiveq.size // MOST_ANSWERS)
        self._unanswered = 0
        self.malformed = 0

    def start(self) -> None:
        """Post the receive buffers."""
        self._post(self._receive_buffers)

    def send(self, port: int, event: int, value: int) -> None:
        """Send a message as soon as the transmitq has room."""
        self._pending[port, event] = value
        self.flush()

    def taken(self) -> bool:
        """Whether the device has taken all messages."""
        self.flush()
        return not self._pending and not self._transmitq.in_flight

    def flush(self) -> None:
        """Send pending messages, as far as answers have buffers; call it after `receive` for either queue's interrupt.

        Raises:
            PeerError: the device lies about its used ring.
        """
        transmitq = self._transmitq
        self._free += [buffer for buffer, _ in transmitq.harvest()]
        while self._pending and (self._may_send() or self._all_answered()):
            (port, event), value = next(iter(self._pending.items()))
            del self._pending[port, event]
            buffer = self._free.pop()
            message = pack_control(port, event, value)
            buffer.view[: len(message)] = message
            transmitq.add(((buffer.address, len(message)),), (), buffer)
            self._unanswered += 1
        if not self._pending:
            transmitq.suppress_interrupts()
        if transmitq.publish():
            self._notify_transmit()

    def _may_send(self) -> bool:
        return bool(self._free) and self._unanswered < self._most_unanswered

    def _all_answered(self) -> bool:
        """Whether the device took all messages and we received their answers; else an interrupt will come."""
        transmitq = self._transmitq
        if transmitq.publish():
            self._notify_transmit()
        # The device answers a message before it returns the message's buffer.
        if transmitq.in_flight and not transmitq.request_interrupt(transmitq.in_flight):
            return False
        self._free += [buffer for buffer, _ in transmitq.harvest()]
        if self._receiveq.request_interrupt():
            return False
        self._unanswered = 0
        return True

    def receive(self) -> Iterator[tuple[ControlMessage, bytes]]:
        """Yield (message, the bytes after it) until no message is left; an interrupt will announce the next.

        Each buffer goes back to the device before its message is yielded.

        Raises:
            PeerError: the device lies about its used ring.
        """
        while True:
            done = self._receiveq.harvest()
            if not done:
                if self._receiveq.request_interrupt():
                    continue
                return
            received = [bytes(buffer.view[:length]) for buffer, length in done]
            self._post([buffer for buffer, _ in done])
            for data in received:
                if len(data) < CONTROL.size:
                    self.malformed += 1
                    continue
                yield ControlMessage._make(CONTROL.unpack_from(data)), data[CONTROL.size :]

    def _post(self, buffers: list[DmaBuffer]) -> None:
        for buffer in buffers:
            self._receiveq.add((), ((buffer.address, len(buffer.view)),), buffer)
        if self._receiveq.publish():
            self._notify_receive()
