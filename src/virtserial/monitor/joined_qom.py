"""QEMU's object model with our devices and chardevs in it, as qom-list and qom-get show it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.machine.model import Controller
from virtserial.monitor import qom
from virtserial.monitor.joined_chardevs import INTERNAL
from virtserial.monitor.operations import ANONYMOUS, PERIPHERAL
from virtserial.monitor.qmp_client import Ask

if TYPE_CHECKING:
    from virtserial.monitor.joined_machine import JoinedMachine
    from virtserial.monitor.steps import Steps

CONTAINERS: Final = {path: path for path in (PERIPHERAL, ANONYMOUS, qom.CHARDEVS)} | {
    "peripheral": PERIPHERAL,
    "peripheral-anon": ANONYMOUS,
    "chardevs": qom.CHARDEVS,
}
"""Those whose children are QEMU's and ours; by path, full or the part that is enough."""


def list_properties(machine: JoinedMachine, path: str) -> Steps[list[dict[str, str]]]:
    """qom-list: of a controller the properties of our half, then those of QEMU's."""
    trimmed = _trimmed(path)
    if trimmed in CONTAINERS:
        return (yield from _children(machine, CONTAINERS[trimmed]))
    found = _find(machine, trimmed)
    if found is None:
        return list((yield Ask("qom-list", {"path": path})))
    ours = qom.list_properties(machine.operations, path)
    if not isinstance(found, Controller):
        return ours
    names = {entry["name"] for entry in ours}
    qemus = yield Ask("qom-list", {"path": f"{PERIPHERAL}/{found.id}"})
    return [*ours, *(entry for entry in qemus if entry["name"] not in names)]


def get_property(machine: JoinedMachine, path: str, name: str) -> Steps[object]:
    """qom-get: of a controller what our half has, else what QEMU's has."""
    found = _find(machine, _trimmed(path))
    if found is None:
        return (yield Ask("qom-get", {"path": path, "property": name}))
    if isinstance(found, Controller) and name not in ("type", *qom.device_properties(machine.operations, found)):
        return (yield Ask("qom-get", {"path": f"{PERIPHERAL}/{found.id}", "property": name}))
    return qom.get_property(machine.operations, path, name)


def _trimmed(path: str) -> str:
    return "/" + path.strip("/") if path.startswith("/") else path


def _find(machine: JoinedMachine, path: str) -> object | None:
    """Return the device or chardev of ours at a path."""
    chardev = machine.operations.keeper.chardevs.get(path.removeprefix(f"{qom.CHARDEVS}/"))
    if chardev is not None and path.startswith(qom.CHARDEVS):
        return chardev
    return machine.devices.find(path)


def _children(machine: JoinedMachine, container: str) -> Steps[list[dict[str, str]]]:
    """QEMU's children of a container and ours, without those between it and us."""
    ours = {entry["name"]: entry for entry in qom.list_properties(machine.operations, container)}
    if container == ANONYMOUS:
        # A controller of ours without an id shows as QEMU's half of it.
        ours = {name: entry for name, entry in ours.items() if not name.startswith("device[")}
    qemus = yield Ask("qom-list", {"path": container})
    listed = [ours.pop(entry["name"], entry) for entry in qemus if not entry["name"].startswith(INTERNAL)]
    return [*listed, *ours.values()]
