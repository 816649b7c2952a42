"""QMP for a machine that QEMU and we share: requests are read, run (joined_commands.py), and their results written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from virtserial.monitor import joined_commands as commands
from virtserial.monitor import joined_hmp, joined_qom
from virtserial.monitor.commands import COMMANDS, execute
from virtserial.monitor.joined_chardevs import INTERNAL
from virtserial.monitor.qmp import no_oob
from virtserial.monitor.qmp_client import Ask
from virtserial.monitor.schema import check
from virtserial.options.chardev_options import kinds

if TYPE_CHECKING:
    from virtserial.monitor.descriptors import Client
    from virtserial.monitor.joined_chardevs import Original
    from virtserial.monitor.joined_machine import JoinedMachine
    from virtserial.monitor.qmp import Request
    from virtserial.monitor.steps import Steps


@dataclass(frozen=True, slots=True)
class Asked:
    """A request (joined_commands.Asked)."""

    machine: JoinedMachine
    client: Client
    request: Request
    typed: bool = True

    @property
    def arguments(self) -> dict[str, object]:
        return self.request.arguments

    def word(self, name: str) -> str:
        """An argument that may be missing or of another type: QEMU or `here` says so."""
        value = self.arguments.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> int | None:
        """As `word`, for numbers."""
        value = self.arguments.get(name)
        return value if isinstance(value, int) else None

    def check(self) -> None:
        """Raise QmpError if the arguments are not those of our command of that name."""
        check(self.arguments, COMMANDS[self.request.command].arguments or {})

    def here(self) -> object:
        return execute(self.machine.operations, self.client, self.request)

    def forward(self, arguments: Mapping[str, object] | None = None) -> Steps[Any]:
        request = self.request
        if not request.oob:
            yield from commands.give_descriptors(self.client, _words(request.arguments))
        return (yield Ask(request.command, request.arguments if arguments is None else arguments, request.oob))


def _words(value: object) -> set[str]:
    """Every string in a command's arguments that can be a descriptor's name; in "a:b" each of both is one."""
    if isinstance(value, str):
        return {value, *value.split(":")}
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return set().union(*map(_words, inner))


def run_request(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    """Run a request and return its result.

    Raises:
        QmpError: it is refused, by us or by QEMU.
    """
    asked = Asked(machine, client, request)
    run = JOINED.get(request.command)
    if run is None:
        return (yield from asked.forward())
    if request.oob and request.command not in (*LEAVING, "query-yank"):
        raise no_oob(request.command)
    result = yield from run(machine, asked)
    return {} if result is None else result


def _delete_device(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    asked.check()
    return (yield from commands.delete_device(machine, asked, asked.word("id")))


def _add_chardev(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    backend = asked.arguments.get("backend")
    kind = backend.get("type") if isinstance(backend, dict) else None
    chardev_id, original = asked.word("id"), _original(backend)
    return (yield from commands.add_chardev(machine, asked, chardev_id, str(kind), original))


def _change_chardev(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    original = _original(asked.arguments.get("backend"))
    return (yield from commands.change_chardev(machine, asked, asked.word("id"), original))


def _original(backend: object) -> Original | None:
    """A ChardevBackend without the descriptors that it takes from its client."""
    return backend if isinstance(backend, dict) and "fd" not in _types(backend) else None


def _types(value: Mapping[str, object]) -> set[object]:
    """The `type` of each object in an object."""
    inner = (member for member in value.values() if isinstance(member, dict))
    return {value.get("type")}.union(*map(_types, inner))


def _query_chardev_backends(_: JoinedMachine, asked: Asked) -> Steps[object]:
    qemus = yield from asked.forward()
    ours = [{"name": kind} for kind in kinds()]
    return [*qemus, *(entry for entry in ours if entry not in qemus)]


def _query_yank(_: JoinedMachine, asked: Asked) -> Steps[object]:
    instances = yield from asked.forward()
    return [instance for instance in instances if not str(instance.get("id", "")).startswith(INTERNAL)]


def _here(_: JoinedMachine, asked: Asked) -> Steps[object]:
    yield from ()
    return asked.here()


def _add_fd(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    fd = asked.client.take_descriptor()
    try:
        added = yield Ask("add-fd", asked.arguments, fd=fd)
    except BaseException:
        os.close(fd)
        raise
    # Both have it, under QEMU's numbers: a chardev that names the set may be either's.
    opaque = asked.word("opaque") or None
    machine.operations.descriptor_sets.add(fd, added["fdset-id"], opaque, called=added["fd"])
    return added


def _remove_fd(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    asked.check()
    result = yield from asked.forward()
    machine.operations.descriptor_sets.forget(asked.number("fdset-id"), asked.number("fd"))
    return result


def _human_monitor_command(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    asked.check()
    cpu = joined_hmp.Cpu(asked.number("cpu-index"))
    printed = yield from joined_hmp.run_line(machine, asked.client, asked.word("command-line"), cpu)
    return printed.replace("\n", "\r\n")


def _list_properties(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    asked.check()
    return (yield from joined_qom.list_properties(machine, asked.word("path")))


def _get_property(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    asked.check()
    return (yield from joined_qom.get_property(machine, asked.word("path"), asked.word("property")))


def _query_status(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    return machine.migration.users_run_state((yield from asked.forward()))


def _query_migrate(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    return machine.migration.departures.users_status((yield from asked.forward()))


def _query_migrate_capabilities(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    return machine.migration.departures.users_view((yield from asked.forward()))


def _snapshot_job(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    command = asked.request.command
    job = machine.migration.snapshots.job(command, asked.word("job-id"), asked.forward(), loads=command in LOADING)
    return (yield from job)


LEAVING: Final = ("migrate-recover", "xen-save-devices-state", "xen-load-devices-state")
LOADING: Final = ("snapshot-load",)

JOINED: Final[Mapping[str, Callable[[JoinedMachine, Asked], Steps[object]]]] = {
    "device_add": lambda machine, asked: commands.add_device(machine, asked, asked.arguments),
    "device_del": _delete_device,
    "chardev-add": _add_chardev,
    "chardev-change": _change_chardev,
    "chardev-remove": lambda machine, asked: commands.remove_chardev(machine, asked, asked.word("id")),
    "chardev-send-break": lambda machine, asked: commands.about_chardev(machine, asked, asked.word("id")),
    "query-chardev": lambda machine, _: commands.query_chardev(machine),
    "query-yank": _query_yank,
    "query-chardev-backends": _query_chardev_backends,
    "ringbuf-read": lambda machine, asked: commands.about_chardev(machine, asked, asked.word("device")),
    "ringbuf-write": lambda machine, asked: commands.about_chardev(machine, asked, asked.word("device")),
    "qom-list": _list_properties,
    "qom-get": _get_property,
    "object-add": lambda machine, asked: commands.add_object(machine, asked, asked.arguments),
    "object-del": lambda machine, asked: commands.delete_object(machine, asked, asked.word("id")),
    "netdev_add": lambda machine, asked: commands.use_chardevs(machine, asked, asked.arguments),
    "getfd": _here,
    "closefd": lambda machine, asked: commands.close_descriptor(machine, asked, asked.word("fdname")),
    "add-fd": _add_fd,
    "remove-fd": _remove_fd,
    "human-monitor-command": _human_monitor_command,
    **{name: _here for name in COMMANDS if name.startswith("x-virtserial-")},
    "migrate": lambda machine, asked: commands.migrate(machine, asked, asked.request.command),
    "migrate_cancel": commands.cancel_migration,
    "migrate-continue": commands.continue_migration,
    "migrate-incoming": lambda machine, asked: commands.migrate_incoming(machine, asked, asked.request.command),
    "migrate-set-capabilities": commands.set_capabilities,
    "query-migrate-capabilities": _query_migrate_capabilities,
    "query-migrate": _query_migrate,
    "query-status": _query_status,
    "cont": commands.continue_guest,
    "stop": commands.stop_guest,
    "snapshot-save": _snapshot_job,
    "snapshot-load": _snapshot_job,
    **{name: lambda machine, asked: commands.leave(machine, asked, asked.request.command) for name in LEAVING},
}
"""What is not QEMU's alone."""
