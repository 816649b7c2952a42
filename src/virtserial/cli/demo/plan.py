"""What the demonstration moves, and between which sockets and files: known to all of its processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

PORT_NAMES = (("org.example.alpha", "org.example.beta"), ("org.example.gamma", "org.example.delta"))
"""The named ports of each controller."""


class PortPlan(NamedTuple):
    """A named port: one file goes each way."""

    controller: int
    name: str
    host_socket: str


class ConsolePlan(NamedTuple):
    """A console with a shell behind it, by the name Linux would give it."""

    controller: int
    name: str
    host_socket: str


class Plan(NamedTuple):
    """The whole demonstration.

    Attributes:
        folder: a temporary folder; all sockets are in it, and `host` and `guest`, the folders of the two ends.
        size: bytes of each file.
    """

    folder: str
    size: int
    guest_folder: str
    ports: list[PortPlan]
    consoles: list[ConsolePlan]

    @classmethod
    def make(cls, folder: Path, size: int, guest_folder: str | None = None) -> Plan:
        """Two controllers, each with two named ports and a console; in a Linux guest its folder is elsewhere."""
        return cls(
            str(folder),
            size,
            guest_folder or str(folder / "guest"),
            [
                # Short names: a unix socket's path has 107 bytes at most.
                PortPlan(controller, name, str(folder / f"{controller}{number}.sock"))
                for controller, names in enumerate(PORT_NAMES)
                for number, name in enumerate(names)
            ],
            [
                ConsolePlan(controller, f"hvc{controller}", str(folder / f"console{controller}.sock"))
                for controller in range(len(PORT_NAMES))
            ],
        )

    def to_json(self) -> str:
        """The plan as one line."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The reverse of to_json."""
        fields = json.loads(text)
        return cls(
            fields["folder"],
            fields["size"],
            fields["guest_folder"],
            [PortPlan(*port) for port in fields["ports"]],
            [ConsolePlan(*console) for console in fields["consoles"]],
        )

    @property
    def host_folder(self) -> str:
        """Where the host's end has its files."""
        return str(Path(self.folder) / "host")

    @property
    def controllers(self) -> range:
        """Numbers of the controllers."""
        return range(len(PORT_NAMES))

    def device_socket(self, controller: int) -> str:
        """The vfio-user socket of a controller."""
        return str(Path(self.folder) / f"ser{controller}.sock")

    def serve_options(self) -> list[str]:
        """The options of `virtserial serve`."""
        options: list[str] = []
        for controller in self.controllers:
            options += ["-device", f"virtio-serial,id=ser{controller},socket={self.device_socket(controller)}"]
        chardevs = [(*port, "virtserialport", f",name={port.name}") for port in self.ports]
        chardevs += [(*console, "virtconsole", "") for console in self.consoles]
        for number, (controller, _, path, driver, name) in enumerate(chardevs):
            options += ["-chardev", f"socket,id=c{number},path={path},server=on,wait=off"]
            options += ["-device", f"{driver},bus=ser{controller}.0,chardev=c{number}{name}"]
        return options


def outgoing(folder: str, port: PortPlan) -> str:
    """The file an end sends through a port."""
    return str(Path(folder) / f"{port.name}.out")


def incoming(folder: str, port: PortPlan) -> str:
    """The file an end receives through a port."""
    return str(Path(folder) / f"{port.name}.in")
