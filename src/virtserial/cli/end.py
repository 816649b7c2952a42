"""The PORT argument of the commands: an end of a port, by address or by name."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from virtserial.client.address import parse_address
from virtserial.client.host_stream import HostStream
from virtserial.client.monitor import Monitor
from virtserial.client.named_stream import open_free
from virtserial.client.names import find_vm_port
from virtserial.client.registry import running_vms
from virtserial.errors import BusyError, ConfigError, PeerError
from virtserial.guest.guest_port import GuestPort
from virtserial.guest.ports import find_port, list_ports

if TYPE_CHECKING:
    import argparse

    from virtserial.client.names import VmPort
    from virtserial.guest.stream import EpollStream

HELP_OF_PORT = (
    "the host's end: VM/PORT as `virtserial ports` lists it, or VM for its console; unix:PATH, tcp:HOST:PORT, pty:PATH "
    "or a path; HOST/VM/PORT of the fleet; with --monitor the port's name or id. In a guest: the port's name or its "
    "device's path"
)
KINDS = ("unix:", "tcp:", "pty:")


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add the PORT argument and the --monitor option."""
    parser.add_argument("port", metavar="PORT", help=HELP_OF_PORT)
    parser.add_argument("--monitor", metavar="QMP", help="a QMP socket that knows the address of PORT, a name or id")


def open_end(options: argparse.Namespace) -> EpollStream:
    """Open the end that the options name.

    Raises:
        ConfigError: there is no such port, its host end takes no connections, or it is busy.
        PeerError: who knows of it does not answer.
    """
    try:
        port = named_port(options)
    except ConfigError as error:
        return open_in_fleet(options.port, error)
    if port is not None:
        return open_free(port)
    text: str = options.port
    if options.monitor:
        return HostStream(_address_by(options.monitor, text))
    if not text.startswith(KINDS) and _guest_has(text):
        return GuestPort(find_port(text).path)
    return HostStream(text)


def named_port(options: argparse.Namespace) -> VmPort | None:
    """Return the port of a VM that runs here, if the options name it so, and not as an address or a guest's own port.

    Raises:
        ConfigError: no such VM, or none of its ports.
        PeerError: the VM does not answer.
    """
    text: str = options.port
    if options.monitor or text.startswith((*KINDS, "/", "./", "../")) or _guest_has(text):
        return None
    try:
        return find_vm_port(text)
    except ConfigError:
        if not os.path.exists(text):
            raise
    parse_address(text)  # A relative path: a socket or a terminal, or it says what is wrong.
    return None


def open_in_fleet(
    text: str, unknown: ConfigError, default: str | None = None, force: bool = False, only_watch: bool = False,
    history: bool = False,
) -> EpollStream:  # fmt: skip
    """Open HOST/VM/PORT, or HOST/VM, of the fleet (docs/fleet.md).

    Args:
        unknown: why it is no port of a VM that runs here.
        default: the port where PORT is left out; None: the console, or the only one.
        force, only_watch, history: see FleetStream.

    Raises:
        BusyError: the port is busy.
        ConfigError: no fleet is set up here, it has no such port, or the broker or the host's agent does not answer.
    """
    from virtserial.fleet.broker import INSTALL, load_settings

    if not may_be_in_fleet(text):
        raise unknown
    try:
        settings = load_settings()
        from virtserial.fleet.stream import FleetStream

        stream = FleetStream(settings, text, default, force, only_watch, history)
        _say_goodbye_when_told_to_end()
        return stream
    except ImportError as error:
        raise ConfigError(f"{unknown}; for the fleet nats-py is missing", INSTALL) from error
    except BusyError:
        raise
    except (ConfigError, PeerError) as error:
        hint = error.hint if isinstance(error, ConfigError) and "did you mean" not in unknown.hint else unknown.hint
        raise ConfigError(f"{unknown}; for the fleet, {error}", hint) from error


def _say_goodbye_when_told_to_end() -> None:
    """Let SIGHUP and SIGTERM unwind this program: the port of a client that leaves without a word is busy for 12 s."""
    for number in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def may_be_in_fleet(text: str) -> bool:
    """Whether a name that is no VM's of here is looked up in the fleet: HOST/VM, where no VM of here is called HOST."""
    from virtserial.fleet.broker import settings_file

    host, slash, _ = text.partition("/")
    return bool(slash) and settings_file() is not None and all(vm.name != host for vm in running_vms())


def _guest_has(text: str) -> bool:
    return any(text in (port.name, port.path, os.path.basename(port.path)) for port in list_ports() if text)


def _address_by(monitor: str, name: str) -> str:
    with Monitor(monitor) as connected:
        port = connected.find_port(name)
    if not port.host_end:
        raise ConfigError(f"port {name!r} has no host end")
    if not port.host_end.startswith(KINDS):
        raise ConfigError(f"the host end of port {name!r} is {port.host_end}: it takes no connections")
    return port.host_end
