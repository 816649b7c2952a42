"""HMP for a machine that QEMU and we share: our lines run here, all others in QEMU's human-monitor-command."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, cast

from virtserial.errors import VirtserialError
from virtserial.monitor import hmp, joined_qom
from virtserial.monitor.hmp import HmpError
from virtserial.monitor.joined_chardevs import INTERNAL
from virtserial.monitor.qmp import Request
from virtserial.monitor.qmp_client import Ask, MonitorGoneError
from virtserial.options import keyval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from virtserial.monitor.commands import Client
    from virtserial.monitor.joined_machine import JoinedMachine
    from virtserial.monitor.steps import Steps

HELP: Final = ("help", "?")


class Cpu:
    """The CPU that a session's commands are about (`cpu N`); None: the first."""

    def __init__(self, index: int | None = None) -> None:
        self.index = index


def run_line(machine: JoinedMachine, client: Client, line: str, cpu: Cpu) -> Steps[str]:
    """Run a line and return what it prints, its lines ended by a newline."""
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    run = COMMANDS.get(name)
    if name == "info":
        item, _, argument = rest.partition(" ")
        run = INFO.get(item)
        rest = argument.strip()
    try:
        if run is not None and rest not in HELP:
            return str((yield from run(machine, client, line, rest, cpu)))
        return (yield from forward(line, cpu))
    except HmpError as error:
        return f"{error}\n"
    except MonitorGoneError:
        raise
    except VirtserialError as error:
        return f"Error: {error}\n"


def forward(line: str, cpu: Cpu) -> Steps[str]:
    """Let QEMU run a line."""
    # JSON is Unicode: what is not becomes U+FFFD.
    text = line.encode(errors="surrogateescape").decode(errors="replace")
    arguments: dict[str, object] = {"command-line": text}
    if cpu.index is not None:
        arguments["cpu-index"] = cpu.index
    printed = yield Ask("human-monitor-command", arguments)
    return str(printed).replace("\r\n", "\n")


def _local(machine: JoinedMachine, line: str) -> str:
    return hmp.run_line(machine.operations, line)


def _device_add(machine: JoinedMachine, _: Client, line: str, text: str, cpu: Cpu) -> Steps[str]:
    if not text or set(text.split(",")) & set(HELP):
        return (yield from forward(line, cpu))
    devices = machine.devices
    given = keyval.parse_options(text, "driver")
    if devices.is_controller(given):
        yield from devices.add_controller(given, typed=text.startswith("{"))
        return ""
    if not devices.is_port_of_ours(given):
        devices.refuse_id_of_ours(given)
        yield from machine.chardevs.hand_over_named(given)
        printed = yield from forward(line, cpu)
        if not printed:
            devices.qemu_has_added(given)
        if devices.qemus_refusal_is_final(given, printed):
            return printed
    yield from devices.refuse_id_of_qemus(given)
    if isinstance(chardev := given.get("chardev"), str):
        yield from machine.chardevs.take_back(chardev, str(given["driver"]))
    return _local(machine, line)


def _device_del(machine: JoinedMachine, _: Client, line: str, name: str, cpu: Cpu) -> Steps[str]:
    if machine.devices.is_port(name):
        return _local(machine, line)
    if name:
        yield from machine.devices.check_deletion(name)
    return (yield from forward(line, cpu))


def _chardev_add(machine: JoinedMachine, _: Client, line: str, text: str, cpu: Cpu) -> Steps[str]:
    kind = str(keyval.parse_options(text, "backend").get("backend")) if text else ""
    if not machine.chardevs.takes(kind):
        return (yield from forward(line, cpu))
    yield from machine.chardevs.refuse_taken(text)
    printed = _local(machine, line)
    if machine.chardevs.is_for_qemu(printed):
        return (yield from forward(line, cpu))
    if not printed.startswith("Error"):
        machine.chardevs.note_text(text)
    return printed


def _of_chardev(machine: JoinedMachine, _: Client, line: str, text: str, cpu: Cpu) -> Steps[str]:
    if machine.chardevs.is_ours(text.partition(" ")[0]):
        return _local(machine, line)
    return (yield from forward(line, cpu))


def _chardev_change(machine: JoinedMachine, client: Client, line: str, text: str, cpu: Cpu) -> Steps[str]:
    printed = yield from _of_chardev(machine, client, line, text, cpu)
    chardev_id, _, backend = text.partition(" ")
    if machine.chardevs.is_ours(chardev_id) and not printed.startswith("Error"):
        machine.chardevs.note_text(f"{backend.strip()},id={chardev_id.replace(',', ',,')}")
    return printed


def _chardev_remove(machine: JoinedMachine, client: Client, line: str, text: str, cpu: Cpu) -> Steps[str]:
    printed = yield from _of_chardev(machine, client, line, text, cpu)
    if not printed:
        machine.chardevs.removed(text)
    return printed


def _object_add(machine: JoinedMachine, _: Client, line: str, text: str, cpu: Cpu) -> Steps[str]:
    given = keyval.parse_options(text, "qom-type") if text else {}
    yield from machine.chardevs.hand_over_named(given)
    shared = machine.share_object(given)
    if shared != given:
        # Numbers and switches are still text, which QEMU's keyval takes and its JSON does not.
        pairs = [f"{name}={str(value).replace(',', ',,')}" for name, value in shared.items() if name != "qom-type"]
        line = f"object_add {','.join([str(shared['qom-type']), *pairs])}"
        line = line.replace("=True", "=on").replace("=False", "=off")
    printed = yield from forward(line, cpu)
    if not printed:
        machine.object_was_added(given)
    return printed


def _object_del(machine: JoinedMachine, _: Client, line: str, name: str, cpu: Cpu) -> Steps[str]:
    printed = yield from forward(line, cpu)
    if not printed:
        machine.operations.keeper.objects.pop(name, None)
    return printed


def _netdev_add(machine: JoinedMachine, _: Client, line: str, text: str, cpu: Cpu) -> Steps[str]:
    yield from machine.chardevs.hand_over_named(keyval.parse_options(text, "type") if text else {})
    return (yield from forward(line, cpu))


def _refuse_to_leave(machine: JoinedMachine, _: Client, line: str, text: str, cpu: Cpu) -> Steps[str]:
    machine.refuse_to_leave(line.split()[0])
    return (yield from forward(line, cpu))


def _getfd(_: JoinedMachine, client: Client, line: str, name: str, cpu: Cpu) -> Steps[str]:
    yield from ()
    client.names.put(name, client.take_descriptor())
    return ""


def _closefd(_: JoinedMachine, client: Client, line: str, name: str, cpu: Cpu) -> Steps[str]:
    if name in client.names.names():
        client.names.close_one(name)
        return ""
    return (yield from forward(line, cpu))


def _qom_list(machine: JoinedMachine, client: Client, line: str, path: str, cpu: Cpu) -> Steps[str]:
    if not path:
        return (yield from forward(line, cpu))
    listed = yield from joined_qom.list_properties(machine, client, Request("qom-list", {"path": path}, None))
    return "".join(f"{entry['name']} ({entry['type']})\n" for entry in cast("list[dict[str, str]]", listed))


def _qom_get(machine: JoinedMachine, client: Client, line: str, text: str, cpu: Cpu) -> Steps[str]:
    path, _, name = text.partition(" ")
    if not name.strip():
        return (yield from forward(line, cpu))
    request = Request("qom-get", {"path": path, "property": name.strip()}, None)
    value = yield from joined_qom.get_property(machine, client, request)
    return json.dumps(value, indent=4) + "\n"


def _cpu(_: JoinedMachine, __: Client, line: str, text: str, cpu: Cpu) -> Steps[str]:
    printed = yield from forward(line, cpu)
    if not printed and text.isdigit():
        cpu.index = int(text)
    return printed


def _info_chardev(machine: JoinedMachine, _: Client, line: str, text: str, cpu: Cpu) -> Steps[str]:
    qemus = yield from forward(line, cpu)
    if text:
        return qemus
    shown = [entry for entry in qemus.splitlines(keepends=True) if not entry.startswith(INTERNAL)]
    return _local(machine, line) + "".join(shown)


def _info_qtree(machine: JoinedMachine, _: Client, line: str, text: str, cpu: Cpu) -> Steps[str]:
    """Our buses and ports, each under QEMU's half of its controller, behind what that says of itself."""
    qemus = yield from forward(line, cpu)
    # QEMU shows the device that was added last first.
    waiting = list(reversed(machine.operations.keeper.machine.controllers))
    shown: list[str] = []
    indent, below = 0, None
    for entry in [*qemus.splitlines(), ""]:
        depth = len(entry) - len(entry.lstrip(" "))
        if below is not None and (depth <= indent or entry.lstrip().startswith("bus:")):
            shown += hmp.bus_lines(machine.operations, below, indent + 2, brief=text == "-b")
            below = None
        if entry:
            shown.append(entry)
        shows = (found for found in waiting if entry.lstrip() == f'dev: vfio-user-pci, id "{found.id or ""}"')
        matched = next(shows, None)
        if matched is not None:
            waiting.remove(matched)
            indent, below = depth, matched
    return "".join(f"{entry}\n" for entry in shown)


COMMANDS: Final[Mapping[str, Any]] = {
    "device_add": _device_add,
    "device_del": _device_del,
    "chardev-add": _chardev_add,
    "chardev-change": _chardev_change,
    "chardev-remove": _chardev_remove,
    "chardev-send-break": _of_chardev,
    "ringbuf_read": _of_chardev,
    "ringbuf_write": _of_chardev,
    "object_add": _object_add,
    "object_del": _object_del,
    "netdev_add": _netdev_add,
    "getfd": _getfd,
    "closefd": _closefd,
    "cpu": _cpu,
    "qom-list": _qom_list,
    "qom-get": _qom_get,
    **dict.fromkeys(("migrate", "migrate_incoming", "migrate_recover", "savevm", "loadvm"), _refuse_to_leave),
}
"""By name: what is not QEMU's alone."""

INFO: Final[Mapping[str, Any]] = {"chardev": _info_chardev, "qtree": _info_qtree}


def names_in_help(text: str) -> list[str]:
    """The commands that QEMU's `help` or `help info` lists, aliases included."""
    found = []
    for line in text.splitlines():
        words = line.removeprefix("info ").split()
        if words and " -- " in line:
            found += words[0].split("|")
    return found


def candidates(
    machine: JoinedMachine, commands: Sequence[str], items: Sequence[str], text: str
) -> tuple[Sequence[str], int]:
    """What the last word of a line could become; `commands` and `items` (of info) are QEMU's names."""
    first, space, rest = text.lstrip().partition(" ")
    ours, typed = hmp.candidates(machine.operations, text)
    last = text.split(" ")[-1]
    if not space:
        return [*ours, *(name for name in commands if name.startswith(first))], typed
    if first == "info" and " " not in rest.strip():
        return [*ours, *(name for name in items if name.startswith(last))], typed
    if first in HELP and " " not in rest.strip():
        return [*ours, *(name for name in commands if name.startswith(last))], typed
    return ours, typed
