"""Shows every port of a device under a path that applications open; each kind of node decides what that is.

Consoles are always terminals, because a getty runs on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.driver.console_driver import DriverListener
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.driver.ports import Port
    from virtserial.driver.run_directory import RunDirectory
    from virtserial.errors import PeerError


class PortNode:
    """One port under its node's name, with a link of the port's own name once that is known.

    Args:
        node: `vportDpN`.
    """

    def __init__(self, directory: RunDirectory, port: Port, node: str) -> None:
        self._directory = directory
        self._port = port
        self._node = node
        self._name_link: str | None = None

    def open(self) -> None:
        """Make the node.

        Raises:
            ConfigError: the system refuses it.
        """
        raise NotImplementedError

    def update(self) -> str | None:
        """Apply the port's name and kind; return a link that this call made."""
        if self._name_link is None:
            self._name_link = self._directory.link_name(self._port, self._node)
            return self._name_link
        return None

    def close(self) -> None:
        """Remove links and node: the port is gone, or the driver stops."""
        if self._name_link is not None:
            self._directory.unlink(self._name_link)
            self._name_link = None


class PortNodes(DriverListener):
    """The nodes of one device's ports.

    Args:
        device: the D of vportDpN.
        make_node: (port, name of the node) -> its node, not yet open.
        make_console: the same for a console's terminal; None if the nodes are terminals themselves.
        announce: called with (link, port) when a port can be found by a name or console number.
        report: takes a line about each port that has no node.
        failed: called when the device is lost.
    """

    def __init__(
        self,
        device: int,
        make_node: Callable[[Port, str], PortNode],
        make_console: Callable[[Port, str], PortNode] | None = None,
        *,
        announce: Callable[[str, Port], None] = lambda link, port: None,
        report: Callable[[str], None] = lambda line: None,
        failed: Callable[[PeerError], None] = lambda error: None,
    ) -> None:
        self._device = device
        self._make_node = make_node
        self._make_console = make_console
        self._announce = announce
        self._report = report
        self._failed = failed
        self._nodes: dict[int, PortNode] = {}
        self._consoles: dict[int, PortNode] = {}

    def port_added(self, port: Port) -> None:
        """Make its node."""
        self._open(port, self._make_node, self._nodes)

    def port_changed(self, port: Port) -> None:
        """Follow it."""
        if port.is_console and self._make_console is not None and port.number not in self._consoles:
            self._open(port, self._make_console, self._consoles)
        for node in (self._nodes.get(port.number), self._consoles.get(port.number)):
            link = node.update() if node is not None else None
            if link is not None:
                self._announce(link, port)

    def _open(self, port: Port, make: Callable[[Port, str], PortNode], nodes: dict[int, PortNode]) -> None:
        node = make(port, f"vport{self._device}p{port.number}")
        try:
            node.open()
        except ConfigError as error:
            self._report(f"{port.label}: {error}")
            return
        nodes[port.number] = node

    def port_removed(self, port: Port) -> None:
        """Remove its node."""
        for nodes in (self._consoles, self._nodes):
            node = nodes.pop(port.number, None)
            if node is not None:
                node.close()

    def device_failed(self, error: PeerError) -> None:
        """Tell the owner."""
        self._failed(error)
