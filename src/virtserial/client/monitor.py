"""What a monitor tells of ports: which there are, where their host ends are, whether the guest has them open.

QEMU's monitor and virtserial's answer alike; only commands that both have are used.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any, NamedTuple, Self

from virtserial.client.address import TerminalAddress, UnixAddress, parse_address
from virtserial.errors import ConfigError, PeerError

MESSAGE_LIMIT = 1 << 24
PORT_TYPES = ("child<virtserialport>", "child<virtconsole>")
ANSWER_TIME = 30.0


class HostPort(NamedTuple):
    """A port as the monitor tells of it.

    Attributes:
        id: the device's id, empty for none.
        name: the port's name in the guest.
        number: its number on its device.
        is_console: whether it is a console.
        chardev: id of its chardev, empty for none.
        host_end: where that is, in the monitor's words; empty for none.
        host_connected: whether somebody is connected; None where the monitor does not tell.
        guest_open: whether the guest has the port open; None where the monitor does not tell.
    """

    id: str
    name: str
    number: int
    is_console: bool
    chardev: str
    host_end: str
    host_connected: bool | None
    guest_open: bool | None


class Monitor:
    """A QMP connection; for one thread."""

    def __init__(self, address: str) -> None:
        """Connect to a QMP server.

        Args:
            address: unix:PATH, tcp:HOST:PORT or a socket's path.

        Raises:
            ConfigError: it cannot be reached.
            PeerError: nobody speaks QMP there.
        """
        where = parse_address(address)
        if isinstance(where, TerminalAddress):
            raise ConfigError(f"{address}: a monitor is on a socket")
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            if isinstance(where, UnixAddress):
                self._socket.settimeout(ANSWER_TIME)
                self._socket.connect(where.path)
            else:
                self._socket.close()
                self._socket = socket.create_connection(where, ANSWER_TIME)
        except OSError as error:
            self._socket.close()
            raise ConfigError(f"{address}: {error.strerror or error}") from error
        self._received = b""
        self._events: list[dict[str, Any]] = []
        try:
            if "QMP" not in self._message(time.monotonic() + ANSWER_TIME):
                raise PeerError(f"{address}: that is no QMP monitor")
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, **arguments: object) -> Any:  # noqa: ANN401  # a JSON value
        """Run a command and return its value.

        Raises:
            PeerError: the monitor refuses it (its text), is gone, or does not answer in 30 s.
        """
        request = {"execute": command, "arguments": arguments}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise PeerError(f"the monitor is gone: {error.strerror}") from error
        deadline = time.monotonic() + ANSWER_TIME
        while True:
            message = self._message(deadline)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise PeerError(f"{command}: {message['error'].get('desc')}")
            if "event" in message:
                self._events.append(message)

    def ports(self) -> list[HostPort]:
        """Every port, as it is now.

        Raises:
            PeerError: the monitor does not answer.
        """
        chardevs = {each["label"]: each for each in self.execute("query-chardev")}
        return [
            self._port(f"{folder}/{child['name']}", child, chardevs)
            for folder in ("/machine/peripheral", "/machine/peripheral-anon")
            for child in self.execute("qom-list", path=folder)
            if child["type"] in PORT_TYPES
        ]

    def _port(self, path: str, child: dict[str, Any], chardevs: dict[str, dict[str, Any]]) -> HostPort:
        chardev = self._property(path, "chardev") or ""
        # QEMU writes an opened chardev's property as its label.
        told = chardevs.get(chardev, {})
        host_end = told.get("filename", "")
        return HostPort(
            id="" if path.startswith("/machine/peripheral-anon") else child["name"],
            name=self._property(path, "name") or "",
            number=self._property(path, "nr"),
            is_console=child["type"] == PORT_TYPES[1],
            chardev=chardev,
            host_end=host_end.removeprefix("disconnected:"),
            host_connected=not host_end.startswith("disconnected:") if told else None,
            guest_open=told.get("frontend-open"),
        )

    def _property(self, path: str, name: str) -> Any:  # noqa: ANN401  # a JSON value
        return self.execute("qom-get", path=path, property=name)

    def find_port(self, name: str) -> HostPort:
        """Return the port of a name, or of a device id.

        Raises:
            ConfigError: there is none.
            PeerError: the monitor does not answer.
        """
        ports = self.ports()
        for port in ports:
            if name == port.name or (name and name == port.id):
                return port
        names = ", ".join(repr(port.name or port.id) for port in ports) or "none"
        raise ConfigError(f"no port is named {name!r}; there is: {names}")

    def wait_guest(self, name: str, is_open: bool = True, timeout: float | None = None) -> bool:
        """Wait until the guest has a port open (or closed), told by VSERPORT_CHANGE; False after `timeout` seconds.

        Raises:
            ConfigError: there is no such port, or it has no id (QEMU tells of those that have one).
            PeerError: the monitor is gone.
        """
        port = self.find_port(name)
        if not port.id:
            raise ConfigError(f"port {name!r} has no id: the monitor does not tell of it")
        deadline = None if timeout is None else time.monotonic() + timeout
        state = port.guest_open
        while state is not is_open:
            for event in self._events:
                data = event.get("data", {})
                if event["event"] == "VSERPORT_CHANGE" and data.get("id") == port.id:
                    state = data.get("open")
            self._events.clear()
            if state is is_open:
                break
            try:
                message = self._message(deadline)
            except TimeoutError:
                return False
            if "event" in message:
                self._events.append(message)
        return True

    def _message(self, deadline: float | None) -> dict[str, Any]:
        while b"\n" not in self._received:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("the monitor says nothing")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError as error:
                raise PeerError(f"the monitor is gone: {error.strerror}") from error
            if not data or len(self._received) > MESSAGE_LIMIT:
                raise PeerError("the monitor is gone" if not data else "the monitor sends a line without end")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        try:
            message: object = json.loads(line)
        except ValueError as error:
            raise PeerError(f"that is no QMP monitor: {line[:60]!r}") from error
        if not isinstance(message, dict):
            raise PeerError(f"that is no QMP monitor: {line[:60]!r}")
        return message

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
