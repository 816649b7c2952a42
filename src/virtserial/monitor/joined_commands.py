"""What each command does on a machine that QEMU and we share, once for QMP and HMP (joined.py has the table).

Every function takes the machine, the command as its client asked it (`Asked`), and the arguments that decide.  Most
decide only whose it is: `asked.here()` runs it on our half, `asked.forward()` in QEMU, with the client's own words.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from virtserial.errors import VirtserialError
from virtserial.monitor.joined_chardevs import INTERNAL, is_for_qemu
from virtserial.monitor.qmp_client import Ask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from virtserial.monitor.descriptors import Client
    from virtserial.monitor.joined_chardevs import Original
    from virtserial.monitor.joined_machine import JoinedMachine
    from virtserial.monitor.steps import Steps


class Asked(Protocol):
    """A command as a client asked it; results and refusals are in the words of its monitor, QMP or HMP.

    Attributes:
        client: who asks.
        typed: values have JSON's types.
    """

    @property
    def client(self) -> Client: ...
    @property
    def typed(self) -> bool: ...

    def here(self) -> object:
        """Run it on our half.

        Raises:
            VirtserialError: it is refused.
        """

    def forward(self, arguments: Mapping[str, object] | None = None) -> Steps[object]:
        """Run it in QEMU, with other arguments if they are given.

        Raises:
            VirtserialError: QEMU refuses it.
        """


def give_descriptors(client: Client, words: set[str]) -> Steps[None]:
    """Pass on to QEMU the client's descriptors among these names."""
    for name in words & client.names.names():
        fd = client.names.take(name)
        try:
            yield Ask("getfd", {"fdname": name}, fd=fd)
        finally:
            os.close(fd)


# Devices


def add_device(machine: JoinedMachine, asked: Asked, given: Mapping[str, object]) -> Steps[object]:
    devices = machine.devices
    if devices.is_controller(given):
        machine.migration.departures.refuse_change("device_add")
        yield from devices.add_controller(given, typed=asked.typed)
        return None
    if devices.is_port_of_ours(given):
        return (yield from _add_port(machine, asked, given))
    devices.refuse_id_of_ours(given)
    yield from machine.chardevs.hand_over_named(given)
    try:
        result = yield from asked.forward()
    except VirtserialError as error:
        if devices.qemus_refusal_is_final(given, str(error)):
            raise
        return (yield from _add_port(machine, asked, given))
    devices.qemu_has_added(given)
    return result


def _add_port(machine: JoinedMachine, asked: Asked, given: Mapping[str, object]) -> Steps[object]:
    machine.migration.departures.refuse_change("device_add")
    yield from machine.devices.refuse_id_of_qemus(given)
    if isinstance(chardev := given.get("chardev"), str):
        yield from machine.chardevs.take_back(chardev, str(given["driver"]))
    return asked.here()


def delete_device(machine: JoinedMachine, asked: Asked, name: str) -> Steps[object]:
    if machine.devices.is_port(name):
        machine.migration.departures.refuse_change("device_del")
        return asked.here()
    yield from machine.devices.check_deletion(name)
    return (yield from asked.forward())


# Chardevs


def add_chardev(
    machine: JoinedMachine, asked: Asked, chardev_id: str, kind: str, original: Original | None
) -> Steps[object]:
    """`original`: what the chardev can be made of again, if it can."""
    chardevs = machine.chardevs
    is_new = not chardevs.is_ours(chardev_id)
    # QEMU refuses an id that it has itself.
    if is_new and (not chardevs.takes(kind) or chardev_id in (yield from chardevs.qemus())):
        return (yield from asked.forward())
    try:
        result = asked.here()
    except VirtserialError as error:
        if is_new and is_for_qemu(str(error)):
            return (yield from asked.forward())
        raise
    chardevs.was_made_of(chardev_id, original)
    return result


def change_chardev(machine: JoinedMachine, asked: Asked, chardev_id: str, original: Original | None) -> Steps[object]:
    result = yield from about_chardev(machine, asked, chardev_id)
    machine.chardevs.was_made_of(chardev_id, original)
    return result


def remove_chardev(machine: JoinedMachine, asked: Asked, chardev_id: str) -> Steps[object]:
    result = yield from about_chardev(machine, asked, chardev_id)
    machine.chardevs.removed(chardev_id)
    return result


def about_chardev(machine: JoinedMachine, asked: Asked, chardev_id: object) -> Steps[object]:
    if machine.chardevs.is_ours(chardev_id):
        return asked.here()
    return (yield from asked.forward())


def query_chardev(machine: JoinedMachine) -> Steps[list[dict[str, object]]]:
    """Ours, then QEMU's without those between it and us."""
    qemus = yield Ask("query-chardev", {})
    shown = [entry for entry in qemus if not str(entry["label"]).startswith(INTERNAL)]
    return [*machine.operations.query_chardev(), *shown]


# Objects


def add_object(machine: JoinedMachine, asked: Asked, given: Mapping[str, object]) -> Steps[object]:
    yield from machine.chardevs.hand_over_named(given)
    shared = machine.share_object(given)
    result = yield from asked.forward(shared if shared != given else None)
    machine.object_was_added(given)
    return result


def delete_object(machine: JoinedMachine, asked: Asked, object_id: str) -> Steps[object]:
    result = yield from asked.forward()
    machine.operations.keeper.objects.pop(object_id, None)
    return result


def use_chardevs(machine: JoinedMachine, asked: Asked, given: Mapping[str, object]) -> Steps[object]:
    """What is QEMU's and may name chardevs of ours."""
    yield from machine.chardevs.hand_over_named(given)
    return (yield from asked.forward())


# Descriptors


def close_descriptor(_: JoinedMachine, asked: Asked, name: object) -> Steps[object]:
    if name in asked.client.names.names():
        return asked.here()
    return (yield from asked.forward())


# The machine


def leave(machine: JoinedMachine, asked: Asked, command: str) -> Steps[object]:
    machine.refuse_to_leave(command)
    return (yield from asked.forward())


def migrate(machine: JoinedMachine, asked: Asked, command: str) -> Steps[object]:
    return (yield from machine.migration.departures.migrate(command, asked.forward()))


def continue_migration(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    return (yield from machine.migration.departures.continue_(asked.forward()))


def cancel_migration(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    return (yield from machine.migration.departures.cancel(asked.forward()))


def set_capabilities(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    yield from machine.migration.departures.settled()
    return (yield from asked.forward())


def migrate_incoming(machine: JoinedMachine, asked: Asked, command: str) -> Steps[object]:
    return (yield from machine.migration.incoming(command, asked.forward()))


def continue_guest(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    return (yield from machine.migration.cont(asked.forward()))


def stop_guest(machine: JoinedMachine, asked: Asked) -> Steps[object]:
    return (yield from machine.migration.stop(asked.forward()))
