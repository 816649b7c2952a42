"""Lists this guest's ports, from sysfs, the links in /dev/virtio-ports, and debugfs if it is readable.

The kernel's ports are in /sys/class/virtio-ports.  A user-space driver has the same names below another root, and its
nodes and links below /dev or its own folder; this file finds both.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from typing import TYPE_CHECKING, Iterator, NamedTuple

from .errors import NoSuchPort
from .hints import did_you_mean

if TYPE_CHECKING:
    from .stream import PortStream

NODE = re.compile(r"vport(\d+)p(\d+)$")
CLASSES = ("/sys/class/virtio-ports", "/run/virtserial/class/virtio-ports")
DEVICES = "/dev"
MOST_NAMES = 8
"""Ports that an error lists."""
DEBUGFS = "/sys/kernel/debug/virtio-ports"
LOOK_AGAIN = 1.0
"""Seconds after which wait_for_port() looks again without a uevent: links and name files come after the uevent."""


class Port(NamedTuple):
    """A port, as it was at one moment.

    Attributes:
        name: its name, empty for none.
        path: its device node.
        device: number of the virtio-serial device, as Linux counts them.
        number: number of the port on its device.
        host_connected, guest_open: its state; None if debugfs is not readable.
        sent, received, discarded: bytes since it was plugged in; None if debugfs is not readable.
        is_console: whether it is a console (/dev/hvcN); None if debugfs is not readable.
    """

    name: str
    path: str
    device: int
    number: int
    host_connected: bool | None = None
    guest_open: bool | None = None
    sent: int | None = None
    received: int | None = None
    discarded: int | None = None
    is_console: bool | None = None


def list_ports(root: str = "/", run_directory: str | None = None) -> list[Port]:
    """Return every port, by device and number.

    Args:
        root: the folder of /dev and /sys.
        run_directory: the folder of a user-space driver whose nodes and links are not in /dev.
    """
    found: dict[tuple[int, int], Port] = {}
    for node, path, name in _nodes(root, run_directory):
        matched = NODE.match(node)
        if matched:
            device, number = int(matched[1]), int(matched[2])
            known = found.get((device, number))
            if known is None or (name and not known.name):
                found[device, number] = _with_state(Port(name, path, device, number), root)
    return [found[key] for key in sorted(found)]


def find_port(name: str, root: str = "/", run_directory: str | None = None) -> Port:
    """Return the port of a name, or of a node's name or path (vport0p1, /dev/vport0p1, /dev/virtio-ports/NAME).

    Raises:
        NoSuchPort: no such port.
    """
    for port in list_ports(root, run_directory):
        if name in (port.name, port.path, os.path.basename(port.path)) and name:
            return port
    if os.path.isabs(name) and os.path.exists(name):
        # Of a user-space driver whose folder nobody has named: a node, a pseudo-terminal, a socket, or a link to one.
        for path in (name, os.path.realpath(name), *_links(name)):
            matched = NODE.match(os.path.basename(path))
            if matched:
                return Port("", name, int(matched[1]), int(matched[2]))
    raise NoSuchPort(f"no port is named {name!r}" + _near(name, list_ports(root, run_directory)))


def _links(path: str) -> Iterator[str]:
    """Where a link leads, step by step."""
    for _ in range(8):
        if not os.path.islink(path):
            return
        path = os.path.join(os.path.dirname(path), os.readlink(path))
        yield path


def _near(name: str, ports: list[Port]) -> str:
    """What could have been meant, for the end of a message."""
    names = [port.name or os.path.basename(port.path) for port in ports]
    hint = did_you_mean(name, names)
    if hint or not names:
        return f"; {hint}" if hint else ": this guest has no virtio-serial port"
    return f"; there are: {', '.join(names[:MOST_NAMES])}" + (" ..." if len(names) > MOST_NAMES else "")


def open_port(name: str) -> PortStream:
    r"""Open a port by its name or its device's path; on Windows by the name behind \\.\Global\.

    Raises:
        NoSuchPort: there is none.
        OSError: EBUSY if another program has it open, ENXIO for a console's, EACCES.
    """
    if sys.platform == "win32":
        from .windows import WindowsPort

        return WindowsPort(name)
    from .guest_port import GuestPort

    return GuestPort(find_port(name).path)


def wait_for_port(name: str, timeout: float | None = None) -> Port:
    """Sleep until a port appears; return it.

    Raises:
        TimeoutError: it did not appear in `timeout` seconds.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with _uevents() as events:
        while True:
            try:
                return find_port(name)
            except NoSuchPort:
                left = LOOK_AGAIN if deadline is None else min(LOOK_AGAIN, deadline - time.monotonic())
                if left <= 0:
                    raise TimeoutError(f"no port {name!r} in {timeout} s") from None
            events.settimeout(left)
            try:
                events.recv(65536)
            except OSError:
                # A time-out, or more uevents than the socket holds: look.
                continue


def _uevents() -> socket.socket:
    """Return a socket with the kernel's uevents; one that stays silent if uevents are not available."""
    try:
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 15)  # KOBJECT_UEVENT
        try:
            events.bind((0, 1))
        except OSError:
            events.close()
            raise
    except (OSError, AttributeError):
        events = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        events.bind(("127.0.0.1", 0))
    return events


def _nodes(root: str, run_directory: str | None) -> Iterator[tuple[str, str, str]]:
    """Yield (vportNpM, path of its device, name) of all ports; a port may come more than once."""
    classes = [os.path.join(root, path.lstrip("/")) for path in CLASSES]
    devices = [os.path.join(root, DEVICES.lstrip("/"))]
    if run_directory is not None:
        classes.append(os.path.join(run_directory, "class", "virtio-ports"))
        devices.append(run_directory)
    for folder in classes:
        for node in _names_in(folder):
            path = next((each for each in (os.path.join(one, node) for one in devices) if os.path.exists(each)), None)
            if path is not None:
                yield node, path, _text(os.path.join(folder, node, "name")).rstrip("\n")
    for folder in devices:
        links = os.path.join(folder, "virtio-ports")
        for name in _names_in(links):
            path = os.path.realpath(os.path.join(links, name))
            if os.path.exists(path):
                yield os.path.basename(path), path, name
        for node in _names_in(folder):
            if NODE.match(node):
                yield node, os.path.join(folder, node), ""


def _with_state(port: Port, root: str) -> Port:
    text = _text(os.path.join(root, DEBUGFS.lstrip("/"), os.path.basename(port.path)))
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    if not fields:
        return port
    return port._replace(
        host_connected=_flag(fields.get("host_connected")),
        guest_open=_flag(fields.get("guest_connected")),
        sent=_number(fields.get("bytes_sent")),
        received=_number(fields.get("bytes_received")),
        discarded=_number(fields.get("bytes_discarded")),
        is_console={"yes": True, "no": False}.get(fields.get("is_console", "")),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdigit() else None


def _flag(text: str | None) -> bool | None:
    number = _number(text)
    return None if number is None else bool(number)


def _names_in(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(1 << 16)
    except OSError:
        return ""
