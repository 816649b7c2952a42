"""The host's ends of a device's ports, as far as they are known: what comes out there, and what is sent."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

from virtserial.client.address import TcpAddress, TerminalAddress, UnixAddress, parse_address
from virtserial.conformance.driver import PATIENCE, HostileError
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtserial.client.address import Address


class HostEnds:
    """Connections to sockets that chardevs listen at.

    Args:
        addresses: unix:PATH or tcp:HOST:PORT, by the port's number.
        is_alive: whether it makes sense to wait for one that does not listen yet.

    Raises:
        ConfigError: an address is none.
    """

    def __init__(self, addresses: Mapping[int, str], is_alive: Callable[[], bool] = lambda: True) -> None:
        self._texts = addresses
        self._addresses = {number: parse_address(text) for number, text in sorted(addresses.items())}
        self._is_alive = is_alive
        self._connections: dict[int, socket.socket] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._addresses

    def connect_all(self) -> None:
        """Connect to every one.

        Raises:
            HostileError: nobody listens there.
        """
        for number in self._addresses:
            self.connect(number)

    def connect(self, number: int) -> None:
        """Connect to a port's host end, unless we are connected.

        Raises:
            HostileError: nobody listens there.
        """
        if number in self._connections:
            return
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._connections[number] = _connected(self._addresses[number])
            except OSError as error:
                if time.monotonic() > deadline or not self._is_alive():
                    reason = error.strerror or error
                    raise HostileError(f"nobody listens at {self._texts[number]}: {reason}") from error
                time.sleep(0.01)
            else:
                return

    def disconnect(self, number: int) -> None:
        """Leave a port's host end."""
        self._connections.pop(number).close()

    def take(self) -> bytes | None:
        """Return what has come out of all since the last call, in the order of numbers; None if none is known."""
        data = b""
        for connection in self._connections.values():
            with contextlib.suppress(BlockingIOError):
                while piece := connection.recv(1 << 18):
                    data += piece
        return data if self._addresses else None

    def send(self, number: int, data: bytes) -> None:
        """Send a little to the guest."""
        self._connections[number].sendall(data)

    def close(self) -> None:
        """Leave all."""
        for number in list(self._connections):
            self.disconnect(number)


def _connected(address: Address) -> socket.socket:
    connection = socket.socket(socket.AF_INET if isinstance(address, TcpAddress) else socket.AF_UNIX)
    try:
        match address:
            case UnixAddress(path):
                connection.connect(path)
            case TcpAddress(host, port):
                connection.connect((host, port))
            case TerminalAddress(path):
                raise ConfigError(f"{path}: a terminal is no host end for these cases, a socket is")
        connection.setblocking(False)
    except BaseException:
        connection.close()
        raise
    return connection
