"""The driver of a virtio console device: negotiation, queues, and the control protocol (virtio 1.3, section 5.3).

The device is not trusted.  If it breaks a queue (a lie about a used ring) or gives an impossible answer, the driver
removes every port and calls `device_failed`; its owner may `start` it again.  It counts and ignores control messages
that make no sense.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from virtserial.console.wire import (
    CONFIG,
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    EMERG_WR_OFFSET,
    MAX_PORTS,
    RESIZE,
    VIRTIO_CONSOLE_BAD_ID,
    VIRTIO_CONSOLE_CONSOLE_PORT,
    VIRTIO_CONSOLE_DEVICE_READY,
    VIRTIO_CONSOLE_F_EMERG_WRITE,
    VIRTIO_CONSOLE_F_MULTIPORT,
    VIRTIO_CONSOLE_F_SIZE,
    VIRTIO_CONSOLE_PORT_ADD,
    VIRTIO_CONSOLE_PORT_NAME,
    VIRTIO_CONSOLE_PORT_OPEN,
    VIRTIO_CONSOLE_PORT_READY,
    VIRTIO_CONSOLE_PORT_REMOVE,
    VIRTIO_CONSOLE_RESIZE,
    queue_count,
    receiveq_index,
    transmitq_index,
)
from virtserial.driver.control import ControlQueues
from virtserial.driver.dma import DmaMemory
from virtserial.driver.port_queues import BufferPlan, ReceiveQueue, TransmitQueue
from virtserial.driver.ports import Port
from virtserial.errors import PeerError, StateError
from virtserial.virtio.features import (
    VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
)
from virtserial.virtio.ring.packed.driver import PackedLayout, PackedQueue
from virtserial.virtio.ring.split.driver import DriverQueue, QueueLayout
from virtserial.virtio.ring.split.layout import LEGACY_RING_ALIGNMENT, USED_RING_ALIGNMENT
from virtserial.virtio.status import ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.console.wire import ControlMessage
    from virtserial.driver.dma import DmaBuffer
    from virtserial.driver.transport import DriverTransport
    from virtserial.virtio.ring.driver_ring import DriverRing

DRIVER_FEATURES = (
    VIRTIO_F_VERSION_1
    | VIRTIO_F_ACCESS_PLATFORM
    | VIRTIO_F_EVENT_IDX
    | VIRTIO_F_RING_PACKED
    | VIRTIO_CONSOLE_F_SIZE
    | VIRTIO_CONSOLE_F_MULTIPORT
    | VIRTIO_CONSOLE_F_EMERG_WRITE
)
"""The features that this driver can use.  Its chains are single descriptors, so indirect ones gain nothing."""
_NEEDED = {
    VIRTIO_F_VERSION_1: "VIRTIO_F_VERSION_1",
    VIRTIO_F_ACCESS_PLATFORM: "VIRTIO_F_ACCESS_PLATFORM (iommu_platform=on): its DMA would bypass the IOMMU",
}
MAX_QUEUE_SIZE = 256
"""The most entries of a queue that the driver uses: it never has more chains in flight than BufferPlan has buffers."""


class DriverListener:
    """Hears of a driver's events; a base class whose methods do nothing."""

    def port_added(self, port: Port) -> None:
        """A port appeared; its name and kind may follow."""

    def port_changed(self, port: Port) -> None:
        """Its name, kind, size, or the state of the host's end changed."""

    def port_removed(self, port: Port) -> None:
        """The port was unplugged."""

    def device_failed(self, error: PeerError) -> None:
        """The device broke a rule or disappeared; all ports were removed."""


class ConsoleDriver:
    """Drives one device.

    Args:
        transport: the bus to it.
        listener: hears of ports.
        memory: the source of rings and buffers; by default shared memory that `transport` hands to the device.
        plan: buffers of each port.
        features: accepted if the device offers them.
        required: the driver refuses a device without these features.
        legacy: `transport` is a legacy interface.

    Attributes:
        ports: by number, those that are plugged in.
        features: what was negotiated.
        ignored: control messages that made no sense.
    """

    def __init__(
        self,
        transport: DriverTransport,
        listener: DriverListener | None = None,
        *,
        memory: DmaMemory | None = None,
        plan: BufferPlan | None = None,
        features: int = DRIVER_FEATURES,
        required: int = VIRTIO_F_VERSION_1,
        legacy: bool = False,
    ) -> None:
        self.ports: dict[int, Port] = {}
        self.features = 0
        self.ignored = 0
        self.max_ports = 0
        self._transport = transport
        self._listener = listener or DriverListener()
        self._memory = memory or DmaMemory(transport)
        self._plan = plan or BufferPlan()
        self._wanted = features
        self._legacy = legacy
        self._required = required & ~VIRTIO_F_VERSION_1 if legacy else required | VIRTIO_F_VERSION_1
        self._live = False
        self._control: ControlQueues | None = None
        self._queues: dict[int, DriverRing[DmaBuffer]] = {}
        self._port_queues: dict[int, tuple[ReceiveQueue, TransmitQueue]] = {}

    # Life

    def start(self) -> None:
        """Initialize the device (3.1.1); ports appear as interrupts bring their messages.

        Raises:
            PeerError: the device cannot be used.
        """
        if self._live:
            raise StateError("the driver runs already")
        transport = self._transport
        transport.reset()
        self._memory.release()
        status = ACKNOWLEDGE | DRIVER
        transport.write_status(status)
        try:
            self._negotiate(status)
            self._set_up_queues()
        except PeerError:
            transport.write_status(status | FAILED)
            raise
        transport.write_status(status | FEATURES_OK | DRIVER_OK)
        self._live = True
        control = self._control
        if control is None:
            self._add_port(0)
            if console := self.ports.get(0):
                console.is_console = True
                console.set_host_connected(True)
                self._read_console_size()
                self._listener.port_changed(console)
        else:
            control.start()
            if self._live:
                control.send(VIRTIO_CONSOLE_BAD_ID, VIRTIO_CONSOLE_DEVICE_READY, 1)
        if not self._live:
            raise PeerError("the device was lost while its driver started")

    def stop(self) -> None:
        """Reset the device: all ports go, and all buffers are the driver's again."""
        if self._live:
            self._forget()
            self._transport.reset()

    def close(self) -> None:
        """Stop, and close device and memory."""
        with suppress(PeerError):  # A lost device needs no reset.
            self.stop()
        self._transport.close()
        self._memory.close()

    def _negotiate(self, status: int) -> None:
        transport = self._transport
        self.features = transport.read_features() & self._wanted
        if missing := self._required & ~self.features:
            names = [name for bit, name in _NEEDED.items() if bit & missing] or [f"feature bits {missing:#x}"]
            raise PeerError(f"device: it does not offer {', '.join(names)}")
        transport.write_features(self.features)
        if self._legacy:
            return  # It knows no FEATURES_OK.
        transport.write_status(status | FEATURES_OK)
        if not transport.read_status() & FEATURES_OK:
            raise PeerError(f"device: it refuses the features {self.features:#x}, a subset of its own")

    def _set_up_queues(self) -> None:
        transport = self._transport
        self.max_ports = self._count_ports() if self.features & VIRTIO_CONSOLE_F_MULTIPORT else 1
        count = queue_count(self.max_ports) if self.features & VIRTIO_CONSOLE_F_MULTIPORT else 2
        sizes = [transport.queue_max_size(index) for index in range(count)]
        if not self._legacy:
            sizes = [min(size, MAX_QUEUE_SIZE) for size in sizes]
        for index, size in enumerate(sizes):
            if not size:
                raise PeerError(f"device: queue {index} does not exist, {self.max_ports} ports take {count} queues")
        transport.connect_interrupts(self, range(count))
        packed, event_idx = bool(self.features & VIRTIO_F_RING_PACKED), bool(self.features & VIRTIO_F_EVENT_IDX)
        alignment = LEGACY_RING_ALIGNMENT if self._legacy else USED_RING_ALIGNMENT
        lengths = [(PackedLayout.of(size) if packed else QueueLayout.of(size, alignment)).length for size in sizes]
        address, view = self._memory.allocate(sum(lengths))
        start = 0
        for index, (size, length) in enumerate(zip(sizes, lengths, strict=True)):
            ring = view[start:]
            queue: DriverRing[DmaBuffer]
            if packed:
                queue = PackedQueue(ring, address + start, size, event_idx=event_idx)
            else:
                queue = DriverQueue(ring, address + start, size, event_idx=event_idx, alignment=alignment)
            start += length
            self._queues[index] = queue
            transport.enable_queue(index, queue)
        if self.features & VIRTIO_CONSOLE_F_MULTIPORT:
            self._control = ControlQueues(
                self._memory,
                self._queues[CONTROL_RECEIVEQ],
                self._queues[CONTROL_TRANSMITQ],
                self._doorbell(CONTROL_RECEIVEQ),
                self._doorbell(CONTROL_TRANSMITQ),
            )

    def _count_ports(self) -> int:
        """max_nr_ports, limited by the number of queues."""
        config = self._read_config()
        usable = min(config[2], (self._transport.num_queues - 2) // 2, MAX_PORTS)
        if usable < 1:
            raise PeerError(f"device: max_nr_ports is {config[2]}, with {self._transport.num_queues} queues")
        return usable

    def _read_config(self) -> tuple[int, int, int, int]:
        """(cols, rows, max_nr_ports, emerg_wr); fields the device leaves out are 0."""
        data = self._transport.read_config(0, CONFIG.size)
        cols, rows, max_nr_ports, emerg_wr = CONFIG.unpack(data.ljust(CONFIG.size, b"\0")[: CONFIG.size])
        return cols, rows, max_nr_ports, emerg_wr

    def _doorbell(self, index: int) -> Callable[[], None]:
        def ring() -> None:
            try:
                self._transport.notify(index)
            except PeerError as error:
                self.fail(error)

        return ring

    def _forget(self) -> None:
        self._live = False
        for number in list(self.ports):
            self._remove_port(number)
        self._control = None
        self._queues.clear()
        self._port_queues.clear()

    def fail(self, error: PeerError) -> None:
        """Stop using the device: it broke a rule."""
        if not self._live:
            return
        self._forget()
        with suppress(PeerError):
            self._transport.write_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED)
        self._listener.device_failed(error)

    # Interrupts

    def queue_interrupt(self, index: int) -> None:
        """Queue `index` may have used buffers."""
        control = self._control
        if not self._live:
            return
        try:
            if control is not None and CONTROL_RECEIVEQ <= index <= CONTROL_TRANSMITQ:
                for message, payload in control.receive():
                    self._handle_control(message, payload)
                    if self._control is not control:
                        return
                control.flush()
                return
            port = self.ports.get(index // 2 - (control is not None and index > 3))
            if port is None:
                return
            if index & 1:
                port.transmit_interrupt()
            else:
                port.receive_interrupt()
        except PeerError as error:
            self.fail(error)

    def config_interrupt(self) -> None:
        """The device status or the configuration may have changed."""
        if not self._live:
            return
        try:
            if self._transport.read_status() & DEVICE_NEEDS_RESET:
                self.fail(PeerError("device: it needs a reset"))
            elif self._control is None:
                self._read_console_size()
        except PeerError as error:
            self.fail(error)

    def device_gone(self, error: PeerError) -> None:
        """The device can't be reached any more."""
        self.fail(error)

    # The control protocol (5.3.6.2)

    def _handle_control(self, message: ControlMessage, payload: bytes) -> None:
        number, event, value = message
        port = self.ports.get(number)
        if event == VIRTIO_CONSOLE_PORT_ADD:
            if port is None and number < self.max_ports:
                self._add_port(number)
                self._send(number, VIRTIO_CONSOLE_PORT_READY, 1)
            else:
                self.ignored += 1
        elif port is None:
            self.ignored += 1
        elif event == VIRTIO_CONSOLE_PORT_REMOVE:
            self._remove_port(number)
        elif event == VIRTIO_CONSOLE_CONSOLE_PORT and value:
            port.is_console = True
            self._listener.port_changed(port)
        elif event == VIRTIO_CONSOLE_PORT_OPEN:
            port.set_host_connected(bool(value))
            self._listener.port_changed(port)
        elif event == VIRTIO_CONSOLE_PORT_NAME and not port.name:
            # QEMU's name ends in a NUL, the specification's does not.
            port.name = payload.removesuffix(b"\0").decode(errors="surrogateescape")
            self._listener.port_changed(port)
        elif event == VIRTIO_CONSOLE_RESIZE and len(payload) >= RESIZE.size and port.is_console:
            if self.features & VIRTIO_CONSOLE_F_SIZE:
                port.set_size(*RESIZE.unpack_from(payload))
                self._listener.port_changed(port)
        else:
            self.ignored += 1

    def _send(self, number: int, event: int, value: int) -> None:
        if self._control is not None:
            try:
                self._control.send(number, event, value)
            except PeerError as error:
                self.fail(error)

    def _control_taken(self) -> bool:
        if self._control is None:
            return True
        try:
            return self._control.taken()
        except PeerError as error:
            self.fail(error)
            return True

    # Ports

    def _add_port(self, number: int) -> None:
        # Queues belong to the number: if the port is plugged in again, the device still has its buffers.
        queues = self._port_queues.get(number)
        if queues is None:
            receive, transmit = receiveq_index(number), transmitq_index(number)
            queues = self._port_queues[number] = (
                ReceiveQueue(self._queues[receive], self._doorbell(receive)),
                TransmitQueue(self._queues[transmit], self._doorbell(transmit)),
            )
        port = Port(number, *queues, self._memory, self._plan, self._send, self.fail, self._control_taken)
        self.ports[number] = port
        queues[0].post(self._memory, self._plan)
        self._listener.port_added(port)

    def _remove_port(self, number: int) -> None:
        port = self.ports.pop(number)
        port.unplug()
        self._listener.port_removed(port)

    # Consoles

    def _read_console_size(self) -> None:
        """A device without MULTIPORT has its console's size in the configuration."""
        port = self.ports.get(0)
        if port is not None and self.features & VIRTIO_CONSOLE_F_SIZE:
            cols, rows, _, _ = self._read_config()
            port.set_size(cols, rows)

    def emergency_write(self, byte: int) -> None:
        """Show one byte on the first console, in any state of the driver (5.3.4).

        Raises:
            StateError: the device does not offer it.
            PeerError: the device is gone.
        """
        if not self._transport.read_features() & VIRTIO_CONSOLE_F_EMERG_WRITE:
            raise StateError("the device does not offer VIRTIO_CONSOLE_F_EMERG_WRITE")
        self._transport.write_config(EMERG_WR_OFFSET, byte.to_bytes(4, "little"))
