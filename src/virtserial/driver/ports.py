"""A port for the driver's users: open, bytes both ways, close, as a Linux guest's character device offers.

Calls never block.  If a call returns nothing, the listener hears when to try again; if it returns something, a callback
may not come, so call again until it returns nothing.  If the device breaks a rule during a call, the whole device
fails: the call returns nothing, after port_unplugged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.console.wire import VIRTIO_CONSOLE_PORT_OPEN
from virtserial.errors import PeerError, StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.driver.dma import DmaMemory
    from virtserial.driver.port_queues import BufferPlan, ReceiveQueue, TransmitQueue

NAME_MAX = 255


class PortListener:
    """Hears of an open port's events; a base class whose methods do nothing."""

    def port_readable(self) -> None:
        """The port has bytes, or their end."""

    def port_writable(self) -> None:
        """The port has room, or the device has taken all bytes."""

    def port_resized(self, cols: int, rows: int) -> None:
        """The console has another size."""

    def port_unplugged(self) -> None:
        """The port was unplugged; it counts as closed."""


def file_name(name: str) -> str | None:
    """Return `name` if a file in a directory can have it, else None."""
    usable = name.isprintable() and "/" not in name and name not in ("", ".", "..")
    return name if usable and len(name.encode(errors="surrogateescape")) <= NAME_MAX else None


class Port:
    """One port.

    Attributes:
        number: its place, from 0.
        name: the host's name for it; "" for none.  It may contain anything: see `file_name`.
        is_console: the host says it is a console.
        host_connected: the host's end is open.
        cols, rows: the console's size; 0 if the device gave none.
        discarded: bytes received while nobody had the port open, and bytes left unread at close.
    """

    def __init__(
        self,
        number: int,
        receiveq: ReceiveQueue,
        transmitq: TransmitQueue,
        memory: DmaMemory,
        plan: BufferPlan,
        send: Callable[[int, int, int], None],
        fail: Callable[[PeerError], None],
        heard: Callable[[], bool] = lambda: True,
    ) -> None:
        self.number = number
        self.name = ""
        self.is_console = False
        self.host_connected = False
        self.cols = self.rows = 0
        self.discarded = 0
        self._receiveq = receiveq
        self._transmitq = transmitq
        self._memory = memory
        self._plan = plan
        self._send = send
        self._fail = fail
        self._heard = heard
        self._listener: PortListener | None = None
        self._unplugged = False

    @property
    def label(self) -> str:
        """The port's name for messages: its name, or its number."""
        return self.name or f"port {self.number}"

    # Opening

    @property
    def is_open(self) -> bool:
        """Whether somebody has the port open."""
        return self._listener is not None

    def opened_by(self, listener: PortListener) -> bool:
        """Whether `listener` has the port open."""
        return self._listener is listener

    def open(self, listener: PortListener) -> None:
        """Open the port, for one user at a time, and tell the device.

        Raises:
            StateError: the port is open already, or unplugged.
        """
        self._check_plugged()
        if self._listener is not None:
            raise StateError(f"{self.label} is open already")
        self._discard()
        self._transmitq.allocate(self._memory, self._plan)
        self._check_plugged()
        self._listener = listener
        self._send(self.number, VIRTIO_CONSOLE_PORT_OPEN, 1)

    def close(self) -> None:
        """Close the port: drop unread bytes, still deliver written ones."""
        if self._listener is None:
            return
        self._listener = None
        self._send(self.number, VIRTIO_CONSOLE_PORT_OPEN, 0)
        self._discard()

    @property
    def open_is_known(self) -> bool:
        """Whether the device has taken the message that the port is open."""
        return self._heard()

    # Bytes

    def readable_views(self) -> list[memoryview]:
        """Return the received bytes; `consume` those that you have read.  Empty: port_readable will come.

        Raises:
            StateError: the port is not open.
        """
        self._check_open()
        try:
            return self._receiveq.views()
        except PeerError as error:
            self._fail(error)
            return []

    def consume(self, count: int) -> None:
        """Drop the first `count` bytes of readable_views."""
        self._check_open()
        self._receiveq.consume(count)

    @property
    def at_end(self) -> bool:
        """Whether no byte is left to read and no host is connected to send more."""
        return not self.host_connected and not self.readable_views()

    def writable_views(self, limit: int) -> list[memoryview]:
        """Return views for at most `limit` bytes; fill them in order, then `commit`.

        Empty: no host is connected, or the queue is full; port_writable will come.

        Raises:
            StateError: the port is not open.
        """
        self._check_open()
        try:
            return self._transmitq.views(limit) if self.host_connected else []
        except PeerError as error:
            self._fail(error)
            return []

    def commit(self, count: int) -> None:
        """Transmit the first `count` bytes of the last writable_views."""
        self._check_open()
        self._transmitq.commit(count)

    def flushed(self) -> bool:
        """Whether the device has taken all written bytes.

        If not, port_writable will come when it has.  After another write, ask again.
        """
        try:
            return self._transmitq.flushed()
        except PeerError as error:
            self._fail(error)
            return False

    def read(self, limit: int) -> bytes:
        """Return a copy of at most `limit` received bytes; b"" as readable_views."""
        data = bytearray()
        for view in self.readable_views():
            data += view[: limit - len(data)]
        if data:
            self.consume(len(data))
        return bytes(data)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Transmit a copy of as much of `data` as fits; return the number of bytes."""
        done = 0
        data = memoryview(data).cast("B")
        for view in self.writable_views(len(data)):
            view[:] = data[done : done + len(view)]
            done += len(view)
        if done:
            self.commit(done)
        return done

    def _check_plugged(self) -> None:
        if self._unplugged:
            raise StateError(f"{self.label} was unplugged")

    def _check_open(self) -> None:
        self._check_plugged()
        if self._listener is None:
            raise StateError(f"{self.label} is not open")

    def _discard(self) -> None:
        try:
            self.discarded += self._receiveq.discard()
        except PeerError as error:
            self._fail(error)

    # Calls by the driver

    def receive_interrupt(self) -> None:
        """Its receiveq may have bytes."""
        if self._listener is not None:
            self._listener.port_readable()
        else:
            self._discard()

    def transmit_interrupt(self) -> None:
        """Its transmitq may have room."""
        if self._listener is not None:
            self._listener.port_writable()

    def set_host_connected(self, connected: bool) -> None:
        """The host connected or disconnected."""
        if connected == self.host_connected:
            return
        self.host_connected = connected
        listener = self._listener
        if listener is not None:
            listener.port_readable()
            # The listener may have closed the port.
            if self._listener is listener:
                listener.port_writable()

    def set_size(self, cols: int, rows: int) -> None:
        """The console has another size."""
        self.cols, self.rows = cols, rows
        if self._listener is not None:
            self._listener.port_resized(cols, rows)

    def unplug(self) -> None:
        """The port was unplugged."""
        self._unplugged = True
        self.host_connected = False
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.port_unplugged()
