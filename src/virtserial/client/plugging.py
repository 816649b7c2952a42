"""Ports plugged into a VM and unplugged by name, through its monitor: QEMU's own, or `virtserial serve`'s."""

from __future__ import annotations

import os
import re

from virtserial.channel.output_log import MAX_CLIENTS
from virtserial.client.address import UnixAddress, parse_address
from virtserial.client.monitor import Monitor
from virtserial.errors import ConfigError
from virtserial.monitor.qmp import QmpError

PORT_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,62}[A-Za-z0-9])?")


def plug(where: str, name: str, is_console: bool = False, clients: int = 1) -> None:
    """Plug a port, with a listening socket beside the monitor's as its host end.

    Args:
        where: the monitor's socket, unix:PATH or a path.
        name: the port's name and id; the socket is NAME.sock.
        clients: how many may connect at once.

    Raises:
        ConfigError: a name or number that cannot be, or the monitor refuses.
        PeerError: it does not answer.
    """
    if not PORT_NAME.fullmatch(name):
        raise ConfigError(f"{name[:64]!r} is no name for a port: letters, digits, and . _ : - inside")
    if not 1 <= clients <= MAX_CLIENTS:
        raise ConfigError(f"{clients} clients: a port serves 1 to {MAX_CLIENTS}")
    address = parse_address(where)
    if not isinstance(address, UnixAddress):
        raise ConfigError(f"monitor {where}: ports are plugged over a UNIX socket, beside which theirs are made")
    path = os.path.join(os.path.dirname(address.path), f"{name}.sock")
    data: dict[str, object] = {"addr": {"type": "unix", "data": {"path": path}}, "server": True, "wait": False}
    if clients > 1:
        data["clients"] = clients
    chardev = f"plugged.{name}"
    with Monitor(where) as monitor:
        try:
            monitor.execute("chardev-add", {"id": chardev, "backend": {"type": "socket", "data": data}})
            device = {"driver": "virtconsole" if is_console else "virtserialport", "id": name, "chardev": chardev}
            try:
                monitor.execute("device_add", device if is_console else {**device, "name": name})
            except QmpError:
                monitor.execute("chardev-remove", {"id": chardev})
                raise
        except QmpError as error:
            raise ConfigError(str(error)) from error


def unplug(where: str, port_id: str) -> None:
    """Unplug a port, and remove the chardev that plug() made for it.

    Raises:
        ConfigError: the monitor refuses.
        PeerError: it does not answer.
    """
    with Monitor(where) as monitor:
        try:
            monitor.execute("device_del", {"id": port_id})
            if any(each["label"] == f"plugged.{port_id}" for each in monitor.execute("query-chardev")):
                monitor.execute("chardev-remove", {"id": f"plugged.{port_id}"})
        except QmpError as error:
            raise ConfigError(str(error)) from error
