"""HMP for a machine that QEMU and we share: lines are read, run (joined_commands.py), and their results printed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from virtserial.errors import VirtserialError
from virtserial.monitor import hmp, joined_qom
from virtserial.monitor import joined_commands as commands
from virtserial.monitor.hmp import HmpError
from virtserial.monitor.qmp_client import Ask, MonitorGoneError
from virtserial.options import keyval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from virtserial.monitor.descriptors import Client
    from virtserial.monitor.joined_chardevs import Original
    from virtserial.monitor.joined_machine import JoinedMachine
    from virtserial.monitor.steps import Steps

    Run = Callable[["JoinedMachine", "Asked"], Steps[object]]

HELP: Final = ("help", "?")
SILENT: Final = (
    *("device_add", "device_del", "chardev-remove", "object_add", "object_del", "netdev_add", "cpu"),
    *("migrate", "migrate_incoming", "savevm", "loadvm"),
)
"""Commands that print nothing when they succeed."""


class Cpu:
    """The CPU of a session's commands (`cpu N`); None: the first."""

    def __init__(self, index: int | None = None) -> None:
        self.index = index


@dataclass(frozen=True, slots=True)
class Asked:
    """A line (joined_commands.Asked).

    Attributes:
        name: its first word, of `info` the second.
        text: what follows that.
    """

    machine: JoinedMachine
    client: Client
    line: str
    name: str
    text: str
    cpu: Cpu

    @property
    def typed(self) -> bool:
        return self.text.startswith("{")

    def given(self, implied: str) -> dict[str, object]:
        """The text as an option of the command line."""
        return keyval.parse_options(self.text, implied) if self.text else {}

    def here(self) -> str:
        return hmp.run(self.machine.operations, self.client, self.line)

    def forward(self, arguments: Mapping[str, object] | None = None) -> Steps[str]:
        line = self.line if arguments is None else f"{self.name} {_option_text(arguments)}"
        # JSON is Unicode: bytes that are not become U+FFFD.
        command: dict[str, object] = {"command-line": line.encode(errors="surrogateescape").decode(errors="replace")}
        if self.cpu.index is not None:
            command["cpu-index"] = self.cpu.index
        yield from commands.give_descriptors(self.client, set(re.split(r"[\s,=:]+", self.text)))
        printed = str((yield Ask("human-monitor-command", command))).replace("\r\n", "\n")
        if printed and (self.name in SILENT or printed.startswith("Error: ")):
            raise HmpError(printed.removesuffix("\n"))
        return printed


def _option_text(arguments: Mapping[str, object]) -> str:
    """An object's properties as object_add reads them: `share_object` adds JSON's switches and numbers."""
    switches = {True: "on", False: "off"}
    pairs = ((name, switches[value] if isinstance(value, bool) else value) for name, value in arguments.items())
    return keyval.to_text(pairs)


def run_line(machine: JoinedMachine, client: Client, line: str, cpu: Cpu) -> Steps[str]:
    """Run a line and return what it prints, ended by a newline."""
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    run = COMMANDS.get(name)
    if name == "info":
        name, _, rest = rest.partition(" ")
        run, rest = INFO.get(name), rest.strip()
    asked = Asked(machine, client, line, name, rest, cpu)
    try:
        if run is None or rest in HELP:
            return (yield from asked.forward())
        result = yield from run(machine, asked)
    except MonitorGoneError:
        raise
    except VirtserialError as error:
        return hmp.printed_error(error)
    return "" if result is None else str(result)


def _add_device(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    if not asked.text or set(asked.text.split(",")) & set(HELP):
        return (yield from asked.forward())
    return (yield from commands.add_device(machine, asked, asked.given("driver")))


def _delete_device(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    if not asked.text:
        return (yield from asked.forward())
    return (yield from commands.delete_device(machine, asked, asked.text))


def _add_chardev(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    given = asked.given("backend")
    chardev_id, kind, original = str(given.get("id", "")), str(given.get("backend", "")), _original(asked.text)
    return (yield from commands.add_chardev(machine, asked, chardev_id, kind, original))


def _change_chardev(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    chardev_id, _, backend = asked.text.partition(" ")
    original = _original(hmp.with_id(backend.strip(), chardev_id))
    return (yield from commands.change_chardev(machine, asked, chardev_id, original))


def _original(text: str) -> Original | None:
    """A -chardev argument without a descriptor of its own."""
    return None if "fd" in keyval.parse_options(text, "backend") else text


def _about_chardev(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    return (yield from commands.about_chardev(machine, asked, asked.text.partition(" ")[0]))


def _here(_: JoinedMachine, asked: Asked) -> Steps[object]:
    yield from ()
    return asked.here()


def _list_properties(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    if not asked.text:
        return (yield from asked.forward())
    listed = yield from joined_qom.list_properties(machine, asked.text)
    return "".join(f"{entry['name']} ({entry['type']})\n" for entry in listed)


def _get_property(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    path, _, name = asked.text.partition(" ")
    if not name.strip():
        return (yield from asked.forward())
    value = yield from joined_qom.get_property(machine, path, name.strip())
    return json.dumps(value, indent=4) + "\n"


def _cpu(_: JoinedMachine, asked: Asked) -> Steps[object]:
    yield from asked.forward()
    if asked.text.isdigit():
        asked.cpu.index = int(asked.text)
    return None


def _info_chardev(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    if asked.text:
        return (yield from asked.forward())
    return hmp.chardev_lines((yield from commands.query_chardev(machine)))


def _info_qtree(machine: JoinedMachine, asked: Asked) -> Steps[str]:
    """Insert our buses and ports behind the properties of QEMU's half of each controller."""
    qemus = yield from asked.forward()
    # QEMU shows the device that was added last first.
    waiting = list(reversed(machine.operations.keeper.machine.controllers))
    shown: list[str] = []
    indent, below = 0, None
    for entry in [*qemus.splitlines(), ""]:
        depth = len(entry) - len(entry.lstrip(" "))
        if below is not None and (depth <= indent or entry.lstrip().startswith("bus:")):
            shown += hmp.bus_lines(machine.operations, below, indent + 2, brief=asked.text == "-b")
            below = None
        if entry:
            shown.append(entry)
        shows = (found for found in waiting if entry.lstrip() == f'dev: vfio-user-pci, id "{found.id or ""}"')
        matched = next(shows, None)
        if matched is not None:
            waiting.remove(matched)
            indent, below = depth, matched
    return "".join(f"{entry}\n" for entry in shown)


def _migrate(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    """Without -d it is over when the next line may be typed."""
    is_detached = any("d" in word for word in asked.text.split() if word.startswith("-"))
    if not is_detached:
        asked = replace(asked, line=f"migrate -d {asked.text}")
    printed = yield from commands.migrate(machine, asked, asked.name)
    if not is_detached:
        yield from machine.migration.departures.over()
    return printed


LEAVING: Final = ("migrate_recover",)

COMMANDS: Final[Mapping[str, Run]] = {
    "device_add": _add_device,
    "device_del": _delete_device,
    "chardev-add": _add_chardev,
    "chardev-change": _change_chardev,
    "chardev-remove": lambda machine, asked: commands.remove_chardev(machine, asked, asked.text),
    "chardev-send-break": _about_chardev,
    "ringbuf_read": _about_chardev,
    "ringbuf_write": _about_chardev,
    "object_add": lambda machine, asked: commands.add_object(machine, asked, asked.given("qom-type")),
    "object_del": lambda machine, asked: commands.delete_object(machine, asked, asked.text),
    "netdev_add": lambda machine, asked: commands.use_chardevs(machine, asked, asked.given("type")),
    "getfd": _here,
    "closefd": lambda machine, asked: commands.close_descriptor(machine, asked, asked.text),
    "cpu": _cpu,
    "qom-list": _list_properties,
    "qom-get": _get_property,
    "migrate": _migrate,
    "migrate_cancel": commands.cancel_migration,
    "migrate_continue": commands.continue_migration,
    "migrate_incoming": lambda machine, asked: commands.migrate_incoming(machine, asked, asked.name),
    "migrate_set_capability": commands.set_capabilities,
    "savevm": lambda machine, asked: machine.migration.snapshots.save(asked.name, asked.forward()),
    "loadvm": lambda machine, asked: machine.migration.snapshots.load(asked.name, asked.forward()),
    **dict.fromkeys(("cont", "c"), commands.continue_guest),
    **dict.fromkeys(("stop", "s"), commands.stop_guest),
    **{name: lambda machine, asked: commands.leave(machine, asked, asked.name) for name in LEAVING},
}
"""What is not QEMU's alone."""

INFO: Final[Mapping[str, Run]] = {"chardev": _info_chardev, "qtree": _info_qtree}


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
