"""The devices that this process drives: opened, shown as nodes, and reopened after a loss."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from virtserial.driver.pci_binding import full_address
from virtserial.driver.port_nodes import PortNodes
from virtserial.errors import ConfigError, PeerError
from virtserial.loop import EPOLLIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from virtserial.driver.console_driver import ConsoleDriver, DriverListener
    from virtserial.driver.cuse_ports import CuseDevices
    from virtserial.driver.port_nodes import PortNode
    from virtserial.driver.ports import Port
    from virtserial.driver.run_directory import RunDirectory
    from virtserial.loop import EventLoop, Timer

RETRY_SECONDS = 1.0

Shape = Literal["cuse", "pty", "socket"]


def open_device(name: str, loop: EventLoop, listener: DriverListener) -> ConsoleDriver:
    """Return a driver for a PCI address (through the kernel's VFIO), a vfio-user socket, or vhost-user:PATH.

    Raises:
        ConfigError, PeerError: it cannot be used.
    """
    try:
        return _open_by_kind(name, loop, listener)
    except PeerError as error:
        if error.errno == errno.ECONNRESET:
            # A device process takes one VMM for each controller, and says so in its own log alone.
            raise PeerError(f"{name}: {error}; is another VMM connected to it?", errno.ECONNRESET) from error
        if name.removeprefix("vhost-user:") in str(error):
            raise
        raise PeerError(f"{name}: {error}", error.errno) from error


def _open_by_kind(name: str, loop: EventLoop, listener: DriverListener) -> ConsoleDriver:
    address = full_address(name)
    if address is not None:
        from virtserial.driver.vfio_device import open_vfio_device

        return open_vfio_device(address, loop, listener)
    if name.startswith("vhost-user:"):
        from virtserial.driver.vhost_user_device import open_vhost_user_device

        return open_vhost_user_device(name.removeprefix("vhost-user:"), loop, listener)
    from virtserial.driver.vfio_user_device import open_vfio_user_device

    return open_vfio_user_device(name, loop, listener)


class NodeMakers:
    """Makes nodes of one shape.

    Args:
        cuse: the process's character devices, for the shape "cuse".
    """

    def __init__(
        self, shape: Shape, loop: EventLoop, directory: RunDirectory, cuse: CuseDevices | None = None
    ) -> None:
        self._shape = shape
        self._loop = loop
        self._directory = directory
        self._cuse = cuse

    def node(self, port: Port, node: str) -> PortNode:
        """Return a port's node, not yet open."""
        if self._shape == "cuse":
            from virtserial.driver.cuse_ports import CusePort

            assert self._cuse is not None
            return CusePort(self._cuse, port, node)
        if self._shape == "socket":
            from virtserial.driver.socket_ports import SocketPort

            return SocketPort(self._loop, self._directory, port, node)
        from virtserial.driver.pty_ports import PtyPort

        return PtyPort(self._loop, self._directory, port, node)

    @property
    def console(self) -> Callable[[Port, str], PortNode] | None:
        """The maker of a console's terminal beside its node; None if the node is a terminal."""
        if self._shape == "pty":
            return None
        from virtserial.driver.pty_ports import ConsoleTerminal

        return lambda port, node: ConsoleTerminal(self._loop, self._directory, port, node)


class DeviceSession:
    """One device, driven until it is detached.

    Args:
        name: see `open_device`.
        number: the D of vportDpN.
        report: takes a line about each event that a person may want to know.
    """

    def __init__(
        self, loop: EventLoop, name: str, number: int, makers: NodeMakers, report: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._name = name
        self._report = report
        self._driver: ConsoleDriver | None = None
        self._retry: Timer | None = None
        self._nodes = PortNodes(
            number,
            makers.node,
            makers.console,
            announce=self._announce,
            report=report,
            failed=self._device_failed,
        )

    def open(self) -> None:
        """Open the device and start its driver.

        Raises:
            ConfigError, PeerError: it cannot be used now.
        """
        driver = open_device(self._name, self._loop, self._nodes)
        try:
            driver.start()
        except BaseException:
            driver.close()
            raise
        self._driver = driver

    def close(self) -> None:
        """Reset the device and close it."""
        if self._retry is not None:
            self._retry.cancel()
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _announce(self, link: str, port: Port) -> None:
        self._report(f"{link}: port {port.number} of {self._name}")

    def _device_failed(self, error: PeerError) -> None:
        if self._driver is None:
            return  # It failed during `open`, which raises the error itself.
        self._report(f"{self._name}: {error}")
        # Not from inside the driver's own call.
        self._retry = self._loop.call_later(0, self._let_go)

    def _let_go(self) -> None:
        if self._driver is not None:
            self._driver.close()
            self._driver = None
        self._retry = self._loop.call_later(RETRY_SECONDS, self._open_again)

    def _open_again(self) -> None:
        try:
            self.open()
        except (PeerError, ConfigError):
            self._retry = self._loop.call_later(RETRY_SECONDS, self._open_again)
        else:
            self._report(f"{self._name}: in use again")


@contextmanager
def stopped_by_signals(loop: EventLoop) -> Iterator[None]:
    """SIGTERM and SIGINT end `loop.run`."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    old_wakeup_fd = signal.set_wakeup_fd(write_fd)
    old = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    loop.watch(read_fd, EPOLLIN, lambda _events: loop.stop())
    try:
        yield
    finally:
        loop.unwatch(read_fd)
        signal.set_wakeup_fd(old_wakeup_fd)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(read_fd)
        os.close(write_fd)
