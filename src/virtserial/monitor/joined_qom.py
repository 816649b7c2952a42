"""QEMU's object model with our devices and chardevs in it, as qom-list and qom-get show it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from virtserial.machine.model import Controller
from virtserial.monitor import qom
from virtserial.monitor.commands import execute
from virtserial.monitor.joined_chardevs import INTERNAL
from virtserial.monitor.operations import ANONYMOUS, PERIPHERAL
from virtserial.monitor.qmp_client import Ask
from virtserial.monitor.schema import check

if TYPE_CHECKING:
    from virtserial.monitor.commands import Client
    from virtserial.monitor.joined_machine import JoinedMachine
    from virtserial.monitor.qmp import Request
    from virtserial.monitor.steps import Steps

CONTAINERS: Final = {path: path for path in (PERIPHERAL, ANONYMOUS, qom.CHARDEVS)} | {
    "peripheral": PERIPHERAL,
    "peripheral-anon": ANONYMOUS,
    "chardevs": qom.CHARDEVS,
}
"""Those whose children are QEMU's and ours; by path, full or the part that is enough."""


def list_properties(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    """qom-list."""
    check(request.arguments, {"path": str})
    path = _trimmed(str(request.arguments["path"]))
    if path in CONTAINERS:
        return (yield from _children(machine, CONTAINERS[path]))
    found = _find(machine, path)
    if found is None:
        return (yield Ask(request.command, request.arguments))
    ours = cast("list[dict[str, object]]", execute(machine.operations, client, request))
    if not isinstance(found, Controller):
        return ours
    names = {entry["name"] for entry in ours}
    qemus = yield Ask(request.command, {"path": f"{PERIPHERAL}/{found.id}"})
    return [*ours, *(entry for entry in qemus if entry["name"] not in names)]


def get_property(machine: JoinedMachine, client: Client, request: Request) -> Steps[object]:
    """qom-get: of a controller what our half has first, then what QEMU's has."""
    check(request.arguments, {"path": str, "property": str})
    found, name = _find(machine, _trimmed(str(request.arguments["path"]))), request.arguments["property"]
    if isinstance(found, Controller):
        if name == "type" or name in qom.device_properties(machine.operations, found):
            return execute(machine.operations, client, request)
        return (yield Ask(request.command, {"path": f"{PERIPHERAL}/{found.id}", "property": name}))
    if found is not None:
        return execute(machine.operations, client, request)
    return (yield Ask(request.command, request.arguments))


def _trimmed(path: str) -> str:
    return "/" + path.strip("/") if path.startswith("/") else path


def _find(machine: JoinedMachine, path: str) -> object | None:
    """Return the device or chardev of ours at a path."""
    chardev = machine.operations.keeper.chardevs.get(path.removeprefix(f"{qom.CHARDEVS}/"))
    if chardev is not None and path.startswith(qom.CHARDEVS):
        return chardev
    return machine.devices.find(path)


def _children(machine: JoinedMachine, container: str) -> Steps[object]:
    """QEMU's children of a container, and ours; what is between the two of us is hidden."""
    ours = {entry["name"]: entry for entry in qom.list_properties(machine.operations, container)}
    if container == ANONYMOUS:
        # A controller of ours without an id is there as QEMU's half of it.
        ours = {name: entry for name, entry in ours.items() if not name.startswith("device[")}
    qemus = yield Ask("qom-list", {"path": container})
    listed = [
        ours.pop(entry["name"], entry)
        for entry in cast("list[dict[str, str]]", qemus)
        if not entry["name"].startswith(INTERNAL)
    ]
    return [*listed, *ours.values()]
