"""`virtserial ports`: the ports of the virtual machines that run here, of a monitor's machine, or of this guest."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

from virtserial.cli.overview import add_options, show, size
from virtserial.client.monitor import HostPort, Monitor
from virtserial.client.names import ports_of
from virtserial.client.registry import find_vm, running_vms
from virtserial.guest import programs
from virtserial.guest.__main__ import print_table, show_ports
from virtserial.guest.files.messages import printable
from virtserial.guest.ports import list_ports
from virtserial.guest.words import Parser

if TYPE_CHECKING:
    import argparse

    from virtserial.client.names import VmPort
    from virtserial.client.survey import Seen

PROGRAM = "virtserial ports"
HEADING = ("PORT", "NR ", "KIND", "GUEST", "CLIENTS ", "TO HOST ", "TO GUEST ", "DISCARDED ", "DROPPED ", "HOST END")


def run(words: list[str]) -> int:
    """Run the command; return its exit status."""
    parser = Parser(
        PROGRAM,
        description="List the ports of the virtual machines that virtserial serves here, of one of them, or of the "
        "machine of a monitor. In a guest without any: the guest's own ports.",
    )  # fmt: skip
    parser.add_argument("vms", nargs="*", metavar="VM", help="only these VMs")
    add_options(parser)
    parser.add_argument("--monitor", metavar="QMP", help="a QMP socket: QEMU's, or that of virtserial serve")
    parser.add_argument("--run-dir", metavar="FOLDER", help="in a guest: of a user-space driver")
    options = parser.parse_args(words)
    if options.monitor is not None:
        return _of_monitor(options)
    run_directory = ["--run-dir", options.run_dir] if options.run_dir else []
    in_guest = [*run_directory, *(f"--{form}" for form in ("names", "json") if getattr(options, form))]
    if run_directory or (not options.vms and not options.watch and not running_vms() and list_ports()):
        return programs.run(PROGRAM, lambda: show_ports(PROGRAM, in_guest))
    choose = partial(map, find_vm, options.vms) if options.vms else running_vms
    return programs.run(PROGRAM, lambda: show(options, PROGRAM, _table, _document, lambda: list(choose())))


def _table(seen: list[Seen]) -> list[tuple[str, ...]]:
    return [HEADING, *(_row(port) for one in seen for port in _ports(one))]


def _ports(one: Seen) -> list[VmPort]:
    return [] if one.error else ports_of(one.vm, one.inventory)


def _row(port: VmPort) -> tuple[str, ...]:
    return (
        port.full_name,
        str(port.number),
        port.console or "port",
        "open" if port.guest_open else "closed",
        "?" if port.clients is None else str(port.clients),
        *map(size, (port.to_host, port.to_guest, port.discarded, port.dropped)),
        port.host_end or "-",
    )


def _document(seen: list[Seen]) -> object:
    return [
        {"vm": one.vm.name, "port": port.full_name, **told}
        for one in seen
        for port, told in zip(_ports(one), one.inventory.get("ports", ()), strict=True)
    ]


def _of_monitor(options: argparse.Namespace) -> int:
    with Monitor(options.monitor) as monitor:
        ports = monitor.ports()
    if options.json:
        print(json.dumps([port._asdict() for port in ports]))
        return 0
    if options.names:
        for port in ports:
            print(printable(port.name or port.id or port.chardev))
        return 0
    print_table([("NR", "NAME", "ID", "KIND", "GUEST", "HOST", "HOST END"), *map(_port_row, ports)])
    return 0


def _port_row(port: HostPort) -> tuple[str, ...]:
    guest = {True: "open", False: "closed", None: "?"}[port.guest_open]
    host = {True: "connected", False: "away", None: "-"}[port.host_connected]
    kind = "console" if port.is_console else "port"
    texts = (str(port.number), port.name or "-", port.id or "-", kind, guest, host, port.host_end or "-")
    return tuple(map(printable, texts))
