"""The PORT argument of the commands: an end of a port, by address or by name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.client.address import parse_address
from virtserial.client.host_stream import HostStream
from virtserial.client.monitor import Monitor
from virtserial.errors import ConfigError
from virtserial.guest.guest_port import GuestPort
from virtserial.guest.ports import find_port, list_ports

if TYPE_CHECKING:
    import argparse

    from virtserial.guest.stream import EpollStream

EPILOG_OF_ADDRESS = (
    "the host's end: unix:PATH, tcp:HOST:PORT, pty:PATH, the path of a socket or terminal, or with --monitor the "
    "port's name or id; in a guest: the port's name or its device's path"
)


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add the PORT argument and the --monitor option."""
    parser.add_argument("port", metavar="PORT", help=EPILOG_OF_ADDRESS)
    parser.add_argument("--monitor", metavar="QMP", help="a QMP socket that knows the address of PORT, a name or id")


def open_end(options: argparse.Namespace) -> EpollStream:
    """Open the end that the options name.

    Raises:
        ConfigError: there is no such port, or its host end takes no connections.
    """
    text: str = options.port
    if options.monitor:
        with Monitor(options.monitor) as monitor:
            port = monitor.find_port(text)
        if not port.host_end:
            raise ConfigError(f"port {text!r} has no host end")
        if not port.host_end.startswith(("unix:", "tcp:", "pty:")):
            raise ConfigError(f"the host end of port {text!r} is {port.host_end}: it takes no connections")
        return HostStream(port.host_end)
    if text.startswith(("unix:", "tcp:", "pty:")):
        return HostStream(text)
    if any(text in (port.name, port.path, os.path.basename(port.path)) for port in list_ports() if text):
        return GuestPort(find_port(text).path)
    return HostStream(parse_address(text))
