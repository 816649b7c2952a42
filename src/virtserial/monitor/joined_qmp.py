"""QMP for a machine that QEMU and we share: which commands are ours, which are QEMU's, which are both's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from virtserial.monitor import joined_hmp, joined_qom
from virtserial.monitor.commands import COMMANDS, execute, where
from virtserial.monitor.joined_chardevs import INTERNAL
from virtserial.monitor.qmp import QmpError, Request, no_oob
from virtserial.monitor.qmp_client import Ask
from virtserial.monitor.schema import check
from virtserial.monitor.steps import Steps

if TYPE_CHECKING:
    from virtserial.monitor.commands import Client
    from virtserial.monitor.joined_machine import JoinedMachine

Run = Callable[["JoinedMachine", "Client", Request], Steps[Any]]


def run_request(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    """Run a command of a client.

    Raises:
        QmpError: it is refused, by us or by QEMU.
    """
    run = JOINED.get(request.command)
    if request.oob and run is not None and run not in (_refuse_to_leave, _query_yank):
        raise no_oob(request.command)
    return (yield from (run or _forward)(machine, client, request))


def forward(client: Client, request: Request) -> Steps[object]:
    """Let QEMU run a command, with the descriptors that it names."""
    if not request.oob:
        for name in _descriptor_names(request.arguments) & client.names.names():
            fd = client.names.take(name)
            try:
                yield Ask("getfd", {"fdname": name}, fd=fd)
            finally:
                os.close(fd)
    return (yield Ask(request.command, request.arguments, request.oob))


def _descriptor_names(value: object) -> set[str]:
    """Every string in a command's arguments that can be a descriptor's name; in "a:b" each of both is one."""
    if isinstance(value, str):
        return {value, *value.split(":")}
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return set().union(*map(_descriptor_names, inner))


def _forward(_: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    return (yield from forward(client, request))


def _local(machine: JoinedMachine, client: Client, request: Request) -> object:
    return execute(machine.operations, client, request)


# Devices


def _device_add(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    arguments, devices = request.arguments, machine.devices
    if devices.is_controller(arguments):
        yield from devices.add_controller(arguments, typed=True)
        return {}
    if devices.is_port_of_ours(arguments):
        return (yield from _add_port(machine, client, request))
    devices.refuse_id_of_ours(arguments)
    yield from machine.chardevs.hand_over_named(arguments)
    try:
        result = yield from forward(client, request)
    except QmpError as error:
        if devices.qemus_refusal_is_final(arguments, str(error)):
            raise
        return (yield from _add_port(machine, client, request))
    devices.qemu_has_added(arguments)
    return result


def _add_port(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    yield from machine.devices.refuse_id_of_qemus(request.arguments)
    if isinstance(chardev := request.arguments.get("chardev"), str):
        yield from machine.chardevs.take_back(chardev, str(request.arguments["driver"]))
    return _local(machine, client, request)


def _device_del(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    check(request.arguments, {"id": str})
    name = str(request.arguments["id"])
    if machine.devices.is_port(name):
        return _local(machine, client, request)
    yield from machine.devices.check_deletion(name)
    return (yield from forward(client, request))


# Chardevs


def _chardev_add(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    backend = request.arguments.get("backend")
    kind = backend.get("type") if isinstance(backend, dict) else None
    if isinstance(kind, str) and not machine.chardevs.takes(kind):
        if machine.chardevs.is_ours(chardev_id := request.arguments.get("id")):
            raise QmpError(f"Chardev with id '{chardev_id}' already exists")
        return (yield from forward(client, request))
    chardev = yield from machine.chardevs.add(client, request.arguments)
    return where(chardev) if chardev is not None else (yield from forward(client, request))


def _of_chardev(member: str) -> Run:
    """A command about one chardev."""

    def run(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
        if machine.chardevs.is_ours(request.arguments.get(member)):
            return _local(machine, client, request)
        return (yield from forward(client, request))

    return run


def _chardev_change(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    if machine.chardevs.is_ours(request.arguments.get("id")):
        return where((yield from machine.chardevs.change(client, request.arguments)))
    return (yield from forward(client, request))


def _chardev_remove(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    result = yield from _of_chardev("id")(machine, client, request)
    machine.chardevs.removed(str(request.arguments.get("id")))
    return result


def _query_chardev(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    qemus = cast("list[dict[str, object]]", (yield from forward(client, request)))
    ours = cast("list[object]", _local(machine, client, request))
    return [*ours, *(entry for entry in qemus if not str(entry.get("label", "")).startswith(INTERNAL))]


def _query_chardev_backends(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    qemus = cast("list[object]", (yield from forward(client, request)))
    ours = cast("list[object]", _local(machine, client, request))
    return [*qemus, *(entry for entry in ours if entry not in qemus)]


def _query_yank(_: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    instances = cast("list[dict[str, object]]", (yield from forward(client, request)))
    return [instance for instance in instances if not str(instance.get("id", "")).startswith(INTERNAL)]


def _ours(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    yield from ()
    return _local(machine, client, request)


# Objects


def _object_add(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    yield from machine.chardevs.hand_over_named(request.arguments)
    arguments = machine.share_object(request.arguments)
    result = yield from forward(client, request._replace(arguments=dict(arguments)))
    machine.object_was_added(request.arguments)
    return result


def _object_del(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    result = yield from forward(client, request)
    machine.operations.keeper.objects.pop(str(request.arguments.get("id")), None)
    return result


def _with_chardevs(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    yield from machine.chardevs.hand_over_named(request.arguments)
    return (yield from forward(client, request))


# Descriptors


def _closefd(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    if request.arguments.get("fdname") in client.names.names():
        return _local(machine, client, request)
    return (yield from forward(client, request))


def _add_fd(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    fd = client.take_descriptor()
    try:
        added = yield Ask("add-fd", request.arguments, fd=fd)
    except BaseException:
        os.close(fd)
        raise
    # It is in both, under QEMU's numbers: whose the chardev will be that names the set is not known yet.
    opaque = cast("str | None", request.arguments.get("opaque"))
    machine.operations.descriptor_sets.add(fd, added["fdset-id"], opaque, called=added["fd"])
    return added


def _remove_fd(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    result = yield from forward(client, request)
    machine.operations.descriptor_sets.forget(
        cast(int, request.arguments["fdset-id"]), cast("int | None", request.arguments.get("fd"))
    )
    return result


# All


def _human_monitor_command(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    check(request.arguments, cast("Any", COMMANDS["human-monitor-command"].arguments))
    line, cpu = str(request.arguments["command-line"]), cast("int | None", request.arguments.get("cpu-index"))
    printed = yield from joined_hmp.run_line(machine, client, line, joined_hmp.Cpu(cpu))
    return printed.replace("\n", "\r\n")


def _refuse_to_leave(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    machine.refuse_to_leave(request.command)
    return (yield from forward(client, request))


JOINED: Final[Mapping[str, Run]] = {
    "device_add": _device_add,
    "device_del": _device_del,
    "chardev-add": _chardev_add,
    "chardev-change": _chardev_change,
    "chardev-remove": _chardev_remove,
    "chardev-send-break": _of_chardev("id"),
    "query-chardev": _query_chardev,
    "query-yank": _query_yank,
    "query-chardev-backends": _query_chardev_backends,
    "ringbuf-read": _of_chardev("device"),
    "ringbuf-write": _of_chardev("device"),
    "qom-list": joined_qom.list_properties,
    "qom-get": joined_qom.get_property,
    "object-add": _object_add,
    "object-del": _object_del,
    "netdev_add": _with_chardevs,
    "getfd": _ours,
    "closefd": _closefd,
    "add-fd": _add_fd,
    "remove-fd": _remove_fd,
    "human-monitor-command": _human_monitor_command,
    **{name: _ours for name in COMMANDS if name.startswith("x-virtserial-")},
    **dict.fromkeys(
        ("migrate", "migrate-incoming", "migrate-recover", "snapshot-save", "snapshot-load", "xen-save-devices-state",
         "xen-load-devices-state"),
        _refuse_to_leave,
    ),
}  # fmt: skip
"""What is not QEMU's alone."""
