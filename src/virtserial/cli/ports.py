"""`virtserial ports`: list ports, on the host from a monitor, in a guest from sysfs."""

from __future__ import annotations

import argparse

from virtserial.client.monitor import HostPort, Monitor
from virtserial.guest import programs
from virtserial.guest.__main__ import print_table, show_ports
from virtserial.guest.files.messages import printable

PROGRAM = "virtserial ports"


def run(words: list[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="List the ports of a virtual machine (by its monitor) or of this guest."
    )
    parser.add_argument("--monitor", metavar="QMP", help="a QMP socket: QEMU's, or that of virtserial serve")
    parser.add_argument("--run-dir", metavar="FOLDER", help="in a guest: of a user-space driver")
    options = parser.parse_args(words)
    if options.monitor is None:
        run_directory = ["--run-dir", options.run_dir] if options.run_dir else []
        return programs.run(PROGRAM, lambda: show_ports(PROGRAM, run_directory))
    with Monitor(options.monitor) as monitor:
        ports = monitor.ports()
    print_table([("NR", "NAME", "ID", "KIND", "GUEST", "HOST", "HOST END"), *map(_row, ports)])
    return 0


def _row(port: HostPort) -> tuple[str, ...]:
    guest = {True: "open", False: "closed", None: "?"}[port.guest_open]
    host = {True: "connected", False: "away", None: "-"}[port.host_connected]
    kind = "console" if port.is_console else "port"
    texts = (str(port.number), port.name or "-", port.id or "-", kind, guest, host, port.host_end or "-")
    return tuple(map(printable, texts))
