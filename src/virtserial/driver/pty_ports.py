"""Ports as pseudo-terminals for applications that open a path, and consoles for a getty."""

from __future__ import annotations

import contextlib
import fcntl
import struct
import termios
from typing import TYPE_CHECKING

from virtserial.chardev.pty import PtyChardev
from virtserial.driver.bridge import PortBridge
from virtserial.driver.port_nodes import PortNode
from virtserial.errors import ConfigError
from virtserial.host_end.factory import open_host_end

if TYPE_CHECKING:
    from virtserial.channel.connections import Connection
    from virtserial.chardev.base import Chardev
    from virtserial.driver.ports import Port
    from virtserial.driver.run_directory import RunDirectory
    from virtserial.loop import EventLoop


class ConsoleTerminal(PortNode):
    """A console port as a pseudo-terminal with the link `hvcK`; its window follows the host's."""

    def __init__(self, loop: EventLoop, directory: RunDirectory, port: Port, node: str) -> None:
        super().__init__(directory, port, node)
        self._loop = loop
        self._chardev = PtyChardev(node)
        self._bridge: PortBridge | None = None
        self._master_fd = -1
        self._console_link: str | None = None

    def open(self) -> None:
        """Make the terminal.

        Raises:
            ConfigError: the system has no terminal left.
        """
        self._chardev.open(self._loop, self)

    def connection_opened(self, chardev: Chardev, connection: Connection, fds: tuple[int, ...]) -> None:
        """Take the new terminal (ConnectionSink)."""
        self._master_fd = fds[0]
        end = open_host_end(connection, fds, self._loop)
        self._bridge = PortBridge(self._loop, self._port, end)
        self._bridge.start()

    @property
    def _console_target(self) -> str:
        return self._chardev.terminal

    def update(self) -> str | None:
        """Apply kind and size; return the console's link if this call made it."""
        port = self._port
        new: str | None = None
        if port.is_console:
            if self._console_link is None:
                new = self._console_link = self._directory.link_console(self._console_target)
            if port.cols and port.rows:
                size = struct.pack("HHHH", port.rows, port.cols, 0, 0)
                with contextlib.suppress(OSError):
                    fcntl.ioctl(self._master_fd, termios.TIOCSWINSZ, size)
        return new

    def close(self) -> None:
        """Remove links and terminal."""
        super().close()
        if self._console_link is not None:
            self._directory.unlink(self._console_link)
            self._console_link = None
        if self._bridge is not None:
            self._bridge.close()
        self._chardev.close()


class PtyPort(ConsoleTerminal):
    """Any port as a pseudo-terminal: the node is a link to it."""

    def open(self) -> None:
        """Make the terminal and its node's link.

        Raises:
            ConfigError: the system has no terminal left, or the node's name is taken.
        """
        super().open()
        if not self._directory.link(self._node, self._chardev.terminal):
            self.close()
            holder = self._directory.holder(self._node) or "another file"
            raise ConfigError(f"{self._directory.path / self._node}: {holder} has this name; choose another --run-dir")

    @property
    def _console_target(self) -> str:
        return self._node

    def update(self) -> str | None:
        """Apply name, kind and size; return a link that this call made."""
        return super().update() or PortNode.update(self)

    def close(self) -> None:
        """Remove links and terminal."""
        super().close()
        self._directory.unlink(self._node)
