"""Ports as pseudo-terminals with links by name, for applications that want a path to open.

In the run directory: `vportDpN` for port N of device D, as Linux names its nodes, a link NAME to it for a port with a
name that can be a file's, and `hvcK` for the K-th console.
"""

from __future__ import annotations

import contextlib
import fcntl
import struct
import termios
from typing import TYPE_CHECKING

from virtserial.chardev.host_end import open_host_end
from virtserial.chardev.pty import PtyChardev
from virtserial.driver.bridge import PortBridge
from virtserial.driver.console_driver import DriverListener
from virtserial.driver.ports import file_name
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from virtserial.chardev.base import Chardev, Connection
    from virtserial.driver.ports import Port
    from virtserial.errors import PeerError
    from virtserial.loop import EventLoop

MAX_CONSOLES = 64


class RunDirectory:
    """Links to terminals, shared by all devices of a process: a name and a console number belong to one port."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._links: dict[str, str] = {}

    def link(self, name: str, target: str) -> bool:
        """Make a link; False where the name is taken in this directory, which is not an error of ours."""
        if name in self._links:
            return False
        link = self.path / name
        with contextlib.suppress(FileNotFoundError):
            # Left by a process that was killed: a link whose terminal is no more, or belongs to somebody else now.
            if link.is_symlink():
                link.unlink()
        try:
            link.symlink_to(target)
        except OSError:
            return False
        self._links[name] = target
        return True

    def link_console(self, target: str) -> str | None:
        """Make the first free `hvcK`; None where there is none."""
        return next((name for name in map("hvc{}".format, range(MAX_CONSOLES)) if self.link(name, target)), None)

    def unlink(self, name: str) -> None:
        """Remove a link made here."""
        if self._links.pop(name, None) is not None:
            with contextlib.suppress(FileNotFoundError):
                (self.path / name).unlink()


class PtyPort:
    """One port as a pseudo-terminal."""

    def __init__(self, loop: EventLoop, directory: RunDirectory, port: Port, node: str) -> None:
        self._directory = directory
        self._loop = loop
        self._port = port
        self._node = node
        self._links: list[str] = []
        self._master_fd = -1
        self._is_console = False
        self._chardev = PtyChardev(node)
        self._bridge: PortBridge | None = None

    def open(self) -> None:
        """Make the terminal and its node's link.

        Raises:
            ConfigError: the system has no terminal left.
        """
        self._chardev.open(self._loop, self)
        self._add_link(self._node, self._chardev.terminal)

    def connection_opened(self, chardev: Chardev, connection: Connection) -> None:
        """The terminal is made (ConnectionSink)."""
        self._master_fd = connection.fds[0]
        end = open_host_end(connection.flavour, connection.fds, connection.params, self._loop)
        self._bridge = PortBridge(self._loop, self._port, end)
        self._bridge.start()

    def update(self) -> str | None:
        """Follow the port's name, kind and size; return the link a name or a console number was given just now."""
        new: str | None = None
        port = self._port
        name = file_name(port.name)
        if name is not None and name not in self._links and self._add_link(name, self._node):
            new = name
        if port.is_console:
            if not self._is_console:
                self._is_console = True
                new = self._directory.link_console(self._node)
                if new is not None:
                    self._links.append(new)
            if port.cols and port.rows:
                size = struct.pack("HHHH", port.rows, port.cols, 0, 0)
                with contextlib.suppress(OSError):
                    fcntl.ioctl(self._master_fd, termios.TIOCSWINSZ, size)
        return new

    def _add_link(self, name: str, target: str) -> bool:
        made = self._directory.link(name, target)
        if made:
            self._links.append(name)
        return made

    def close(self) -> None:
        """Remove links and terminal."""
        for name in self._links:
            self._directory.unlink(name)
        self._links.clear()
        if self._bridge is not None:
            self._bridge.close()
        self._chardev.close()


class PtyPorts(DriverListener):
    """Shows every port of one device as a PtyPort.

    Args:
        device: the D of vportDpN.
        announce: called with (link name, port) when a named or console link appears.
        report: takes a line about a port that cannot be shown.
        failed: called when the device is lost.
    """

    def __init__(
        self,
        loop: EventLoop,
        directory: RunDirectory,
        device: int,
        *,
        announce: Callable[[str, Port], None] = lambda link, port: None,
        report: Callable[[str], None] = lambda line: None,
        failed: Callable[[PeerError], None] = lambda error: None,
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._device = device
        self._announce = announce
        self._report = report
        self._failed = failed
        self._ports: dict[int, PtyPort] = {}

    def port_added(self, port: Port) -> None:
        """Make its terminal."""
        pty = PtyPort(self._loop, self._directory, port, f"vport{self._device}p{port.number}")
        try:
            pty.open()
        except ConfigError as error:
            self._report(f"{port.label}: {error}")
            return
        self._ports[port.number] = pty

    def port_changed(self, port: Port) -> None:
        """Follow it."""
        pty = self._ports.get(port.number)
        link = pty.update() if pty is not None else None
        if link is not None:
            self._announce(link, port)

    def port_removed(self, port: Port) -> None:
        """Remove its terminal."""
        pty = self._ports.pop(port.number, None)
        if pty is not None:
            pty.close()

    def device_failed(self, error: PeerError) -> None:
        """Pass it on."""
        self._failed(error)
