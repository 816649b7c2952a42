"""A port as the driver's users see it: open, bytes in both ways, close; what a Linux guest's character device offers.

Reading and writing never block.  Where a call returns nothing the listener is told when to try again; where it
returns something it makes no promise, so go on until it returns nothing.  A device that is caught lying in the
middle of a call fails as a whole: the call returns nothing, and port_unplugged has been told.
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
    """What a port tells whoever has it open; a base class whose methods do nothing."""

    def port_readable(self) -> None:
        """There are bytes, or the end of them."""

    def port_writable(self) -> None:
        """There is room, or everything written was taken."""

    def port_resized(self, cols: int, rows: int) -> None:
        """The console has another size."""

    def port_unplugged(self) -> None:
        """The port is gone; it counts as closed."""


def file_name(name: str) -> str | None:
    """Return `name` if it can be the name of a file in one directory, else None."""
    usable = name.isprintable() and "/" not in name and name not in ("", ".", "..")
    return name if usable and len(name.encode(errors="surrogateescape")) <= NAME_MAX else None


class Port:
    """One port.

    Attributes:
        number: its place, from 0.
        name: the name the host gave it; "" for none.  It may hold anything: see `file_name`.
        is_console: it is to be used as a console.
        host_connected: the host's end is open.
        cols, rows: the console's size; 0 where the device said none.
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
        """What to call the port in a message: its name, or its number."""
        return self.name or f"port {self.number}"

    # Opening

    @property
    def is_open(self) -> bool:
        """Whether somebody has the port open."""
        return self._listener is not None

    def opened_by(self, listener: PortListener) -> bool:
        """Whether it is `listener` who has the port open."""
        return self._listener is listener

    def open(self, listener: PortListener) -> None:
        """Open the port, for one user at a time, and tell the device.

        Raises:
            StateError: it is open already, or unplugged.
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
        """Close the port; what was received and not read is dropped, what was written is still delivered."""
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
        """Return what was received, to be read and then `consume`d.  Empty: port_readable will come.

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
        """Drop the first `count` bytes of readable_views: they were read."""
        self._check_open()
        self._receiveq.consume(count)

    @property
    def at_end(self) -> bool:
        """Whether there is nothing to read and nobody on the host's side who could send more."""
        return not self.host_connected and not self.readable_views()

    def writable_views(self, limit: int) -> list[memoryview]:
        """Return views for at most `limit` bytes, to be filled in order and then `commit`ted.

        Empty: nobody is there on the host's side, or there is no room; port_writable will come.

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
        """Transmit the first `count` bytes of what writable_views returned last."""
        self._check_open()
        self._transmitq.commit(count)

    def flushed(self) -> bool:
        """Whether the device has taken everything that was written.

        If not, port_writable will come when it has, unless more is written meanwhile: then ask again.
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
        """Transmit a copy of as much of `data` as there is room for; return how much."""
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

    # What the driver tells the port

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
        """The host's end was opened or closed."""
        if connected == self.host_connected:
            return
        self.host_connected = connected
        listener = self._listener
        if listener is not None:
            listener.port_readable()
            # It may have closed the port.
            if self._listener is listener:
                listener.port_writable()

    def set_size(self, cols: int, rows: int) -> None:
        """The console was resized."""
        self.cols, self.rows = cols, rows
        if self._listener is not None:
            self._listener.port_resized(cols, rows)

    def unplug(self) -> None:
        """The port is gone."""
        self._unplugged = True
        self.host_connected = False
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.port_unplugged()
