"""Joins a port to an application's end (a pseudo-terminal, a socket, a file) without copying a byte.

The application's end is a `host_end.base.HostEnd`, the class that serves hosts on the device's side.  The port is open
while the application's end is connected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.driver.ports import PortListener
from virtserial.errors import BackendError, StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.driver.ports import Port
    from virtserial.host_end.base import HostEnd
    from virtserial.loop import EventLoop

TURN_BYTES = 2 << 20
"""The most bytes that one turn moves in one direction."""


class PortBridge(PortListener):
    """Moves bytes both ways between a port and an application's end, in turns.

    Args:
        end: the bridge closes it when it ends or fails, or when the port is unplugged.
        ended: called once, when the end is closed; with the error if it failed.

    Attributes:
        to_port, from_port: bytes moved so far.
    """

    def __init__(
        self,
        loop: EventLoop,
        port: Port,
        end: HostEnd,
        ended: Callable[[BackendError | None], None] | None = None,
    ) -> None:
        self.port = port
        self.to_port = 0
        self.from_port = 0
        self._loop = loop
        self._end = end
        self._ended = ended
        self._turn_asked = False
        self._reading = self._writing = False
        self._closed = False

    def start(self) -> None:
        """Start; open the port as soon as the application's end is connected."""
        self._end.listener = self
        # Also of an application that has come, written and left before anybody looked.
        self._end.wants_input = True
        self._end.start()

    def close(self, error: BackendError | None = None) -> None:
        """Close the port and the application's end."""
        if self._closed:
            return
        self._closed = True
        if self._opened:
            self.port.close()
        self._end.close()
        if self._ended is not None:
            self._ended(error)

    # The application's end

    def host_opened(self) -> None:
        """The application has connected."""
        try:
            self.port.open(self)
        except StateError as error:
            self.close(BackendError(str(error)))
            return
        self._schedule(reading=True, writing=True)

    def host_closed(self) -> None:
        """The application has left; some kinds of ends let it come back."""
        if self._opened:
            self.port.close()
        if self._end.ended:
            self.close()

    def host_readable(self) -> None:
        """The application's end has bytes to read."""
        self._schedule(writing=True)

    def host_writable(self) -> None:
        """The application's end has room for bytes."""
        self._schedule(reading=True)

    # The port

    def port_readable(self) -> None:
        """The port has bytes."""
        self._schedule(reading=True)

    def port_writable(self) -> None:
        """The port has room."""
        self._schedule(writing=True)

    def port_unplugged(self) -> None:
        """The port was unplugged: close the application's end too."""
        self.close()

    # Moving

    @property
    def _opened(self) -> bool:
        return self.port.opened_by(self)

    def _schedule(self, reading: bool = False, writing: bool = False) -> None:
        self._reading |= reading
        self._writing |= writing
        if not self._turn_asked and not self._closed:
            self._turn_asked = True
            self._loop.add_turn(self._turn)

    def _turn(self) -> None:
        self._turn_asked = False
        reading, writing = self._reading, self._writing
        self._reading = self._writing = False
        try:
            if reading and self._opened and self._move_from_port():
                self._schedule(reading=True)
            if writing and self._opened and self._move_to_port():
                self._schedule(writing=True)
        except BackendError as error:
            self.close(error)

    def _move_from_port(self) -> bool:
        """Returns whether there may be more to do now."""
        views = self.port.readable_views()
        if not views:
            return False
        count = self._end.writev(views)
        if count and self._opened:
            self.port.consume(count)
            self.from_port += count
        return count > 0

    def _move_to_port(self) -> bool:
        views = self.port.writable_views(TURN_BYTES)
        if not views:
            # Nobody reads the application's end while the host is away: look whether it has left.
            self._end.report_end()
            return False
        count = self._end.readv(views)
        if count and self._opened:
            self.port.commit(count)
            self.to_port += count
        return count > 0
