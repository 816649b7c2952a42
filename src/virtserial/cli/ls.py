"""`virtserial ls`: the virtual machines that run here, with their controllers and what they have moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.cli import ports
from virtserial.cli.overview import add_options, show, size
from virtserial.client.names import ports_of
from virtserial.guest import programs
from virtserial.guest.words import Parser

if TYPE_CHECKING:
    from virtserial.client.survey import Seen

PROGRAM = "virtserial ls"
HEADING = ("VM", "PID", "USER", "CONTROLLERS", "PORTS ", "OPEN ", "CLIENTS ", "TO HOST ", "TO GUEST ", "DISCARDED ",
           "DROPPED ", "RESTARTS ")  # fmt: skip


def run(words: list[str]) -> int:
    """Run the command; return its exit status."""
    parser = Parser(
        PROGRAM,
        description="List the virtual machines of this user, for root of all users, that virtserial serves here; "
        "the ports of those that are named, as `virtserial ports VM` does.",
        epilog="They are found by their entries in $XDG_RUNTIME_DIR/virtserial/vms, for root /run/virtserial/vms.",
    )  # fmt: skip
    parser.add_argument("vms", nargs="*", metavar="VM", help="list the ports of these VMs")
    add_options(parser)
    options = parser.parse_args(words)
    if options.vms:
        return ports.run(words)
    return programs.run(PROGRAM, lambda: show(options, PROGRAM, _table, _document))


def _table(seen: list[Seen]) -> list[tuple[str, ...]]:
    return [HEADING, *map(_row, seen)]


def _row(one: Seen) -> tuple[str, ...]:
    vm, told = one.vm, one.inventory
    begin = (vm.name, str(vm.pid), vm.user)
    if one.error:
        return (*begin, "no answer", *("?" for _ in HEADING[4:]))
    controllers = [f"{each.get('name')}{'' if each.get('vmm') else ' (no VMM)'}" for each in told["controllers"]]
    ports = ports_of(vm, told)
    sums = (size(sum(getattr(port, field) for port in ports)) for field in
            ("to_host", "to_guest", "discarded", "dropped"))  # fmt: skip
    return (
        *begin,
        ", ".join(controllers) or "-",
        str(len(ports)),
        str(sum(port.guest_open for port in ports)),
        str(sum(port.clients or 0 for port in ports)),
        *sums,
        str(told.get("restarts")),
    )


def _document(seen: list[Seen]) -> object:
    return [
        {"vm": one.vm.name, "pid": one.vm.pid, "user": one.vm.user, "error": one.error, **one.inventory}
        for one in seen
    ]
