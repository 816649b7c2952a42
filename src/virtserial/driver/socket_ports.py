"""Ports as listening unix sockets: applications connect, without a character device or a terminal.

A socket serves one application at a time; the next waits in the backlog.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.chardev.socket_address import UnixAddress
from virtserial.chardev.socket_server import SocketServerChardev
from virtserial.driver.bridge import PortBridge
from virtserial.driver.port_nodes import PortNode
from virtserial.host_end.factory import open_host_end

if TYPE_CHECKING:
    from virtserial.channel.connections import Connection
    from virtserial.chardev.base import Chardev
    from virtserial.driver.ports import Port
    from virtserial.driver.run_directory import RunDirectory
    from virtserial.errors import BackendError
    from virtserial.loop import EventLoop


class SocketPort(PortNode):
    """One port as a unix socket; the port is open while an application is connected."""

    def __init__(self, loop: EventLoop, directory: RunDirectory, port: Port, node: str) -> None:
        super().__init__(directory, port, node)
        self._loop = loop
        self._chardev = SocketServerChardev(node, UnixAddress(str(directory.path / node)), wait=False)
        self._bridge: PortBridge | None = None
        self._closed = False

    def open(self) -> None:
        """Listen.

        Raises:
            ConfigError: a live server or another file has the path, or the path is too long.
        """
        self._chardev.open(self._loop, self)
        self._directory.own(self._node)

    def connection_opened(self, chardev: Chardev, connection: Connection, fds: tuple[int, ...]) -> None:
        """An application has connected (ConnectionSink)."""
        end = open_host_end(connection, fds, self._loop)
        self._bridge = PortBridge(self._loop, self._port, end, self._application_left)
        self._bridge.start()

    def _application_left(self, _error: BackendError | None) -> None:
        self._bridge = None
        if not self._closed:
            self._chardev.connection_ended()

    def update(self) -> str | None:
        """Apply the port's name; sockets do not show consoles."""
        if self._port.is_console:
            self.close()
            return None
        return super().update()

    def close(self) -> None:
        """End the connection, remove link and socket."""
        super().close()
        self._closed = True
        if self._bridge is not None:
            self._bridge.close()
        self._chardev.close()
        self._directory.unlink(self._node)
