"""What a monitor knows of ports: their names, where their host ends are, whether the guest has them open.

Uses only commands that QEMU's monitor and virtserial's both have, but for the state of consoles.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, NamedTuple

from virtserial.client.qmp import QmpClient
from virtserial.errors import ConfigError
from virtserial.monitor.qmp import QmpError

PORT_TYPES = ("child<virtserialport>", "child<virtconsole>")
LOOK_AGAIN = 0.2
"""Seconds between two looks at a port that events do not tell of."""


class HostPort(NamedTuple):
    """A port as the monitor describes it.

    Attributes:
        id: the device's id, empty for none.
        name: the port's name in the guest.
        number: its number on its device.
        is_console: whether it is a console.
        chardev: id of its chardev, empty for none.
        host_end: where that is, in the monitor's words; empty for none.
        host_connected: whether somebody is connected; None if the monitor does not know.
        guest_open: whether the guest has the port open; None if the monitor does not know.  Always True for a console
            with a chardev, as in QEMU.
    """

    id: str
    name: str
    number: int
    is_console: bool
    chardev: str
    host_end: str
    host_connected: bool | None
    guest_open: bool | None


class Monitor(QmpClient):
    """A QMP connection with what programs ask a monitor about ports; for one thread."""

    def ports(self) -> list[HostPort]:
        """Every port, as it is now.

        Raises:
            PeerError: no answer, or the connection is lost.
        """
        chardevs = {each["label"]: each for each in self.execute("query-chardev")}
        return [
            self._port(f"{folder}/{child['name']}", child, chardevs)
            for folder in ("/machine/peripheral", "/machine/peripheral-anon")
            for child in self.execute("qom-list", {"path": folder})
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
        return self.execute("qom-get", {"path": path, "property": name})

    def find_port(self, name: str) -> HostPort:
        """Return the port of a name, a device id, a chardev, or hvcN for the Nth console.

        Raises:
            ConfigError: there is none.
            PeerError: no answer, or the connection is lost.
        """
        ports = self.ports()
        consoles = iter(range(len(ports)))
        callings = [
            (port, [port.name, port.id, f"hvc{next(consoles)}" if port.is_console else "", port.chardev])
            for port in ports
        ]
        # A name may be another port's id: names come first.
        for place in range(4):
            for port, names in callings:
                if name and name == names[place]:
                    return port
        told = ", ".join(repr(next(filter(None, names), "?")) for _, names in callings) or "none"
        raise ConfigError(f"no port is named {name!r}; there are: {told}")

    def wait_guest(self, name: str, is_open: bool = True, timeout: float | None = None) -> bool:
        """Wait until the guest has a port open (or closed); False after `timeout` seconds.

        VSERPORT_CHANGE tells it for ports with an id; the others are looked at five times a second.  A console is open
        when the guest's driver has opened it; QEMU's monitor does not tell, and its consoles count as open.

        Raises:
            ConfigError: there is no such port, or it has neither an id nor a chardev: then no monitor knows.
            PeerError: no answer, or the connection is lost.
        """
        # Events older than the answer of find_port tell nothing: receive them all, and forget them.
        self.execute("query-status")
        self.events.clear()
        port = self.find_port(name)
        if not port.id and port.guest_open is None:
            raise ConfigError(f"port {name!r} has neither an id nor a chardev: a monitor cannot tell its state")
        deadline = None if timeout is None else time.monotonic() + timeout
        state = self._is_open(port)
        while state is not is_open:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if left == 0.0:
                return False
            if not port.id:
                time.sleep(LOOK_AGAIN if left is None else min(LOOK_AGAIN, left))
                state = self._is_open(self.find_port(name))
                continue
            try:
                changed = self.wait_event("VSERPORT_CHANGE", left)["data"]
            except TimeoutError:
                return False
            if changed["id"] == port.id:
                state = changed["open"]
        return True

    def _is_open(self, port: HostPort) -> bool | None:
        if port.is_console:
            with contextlib.suppress(QmpError):
                for told in self.execute("x-virtserial-inventory")["ports"]:
                    if (told["id"], told["chardev"]) == (port.id, port.chardev):
                        return bool(told["guest-open"])
        return port.guest_open
