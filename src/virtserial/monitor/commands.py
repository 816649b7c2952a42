"""The QMP commands: what each takes (in schema.py's terms), which of `Operations` it is, how its result is written."""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING, Final

from virtserial.errors import ConfigError, VirtserialError
from virtserial.monitor import qom
from virtserial.monitor.chardev_backend import BACKEND, make_from_json
from virtserial.monitor.events import EVENTS
from virtserial.monitor.hmp import run_line
from virtserial.monitor.inventory import inventory, processes
from virtserial.monitor.qmp import DEVICE_NOT_FOUND, QmpError, no_oob, no_such_command, version
from virtserial.monitor.schema import Enum, Optional, Struct, check
from virtserial.named_tuple import NamedTuple
from virtserial.options import chardev_options, device_options, keyval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtserial.chardev.base import Chardev
    from virtserial.monitor.descriptors import Client
    from virtserial.monitor.operations import Operations
    from virtserial.monitor.qmp import Request

FORMAT: Final = Optional(Enum(("utf8", "base64")))


class Command(NamedTuple):
    """A command.

    Attributes:
        run: called with the operations, the client and the checked arguments, each in its place in `arguments` (None:
            not given); what it returns is the answer, {} for None.
        arguments: None if it takes any: then all of them are the one argument of `run`.
    """

    run: Callable[..., object]
    arguments: Struct | None


def execute(operations: Operations, client: Client, request: Request) -> object:
    """Run a command and return its result.

    Raises:
        QmpError: it is refused.
    """
    command = COMMANDS.get(request.command)
    if command is None:
        raise no_such_command(request.command)
    if request.oob:
        raise no_oob(request.command)
    given: list[object] = [request.arguments]
    if command.arguments is not None:
        check(request.arguments, command.arguments)
        given = [request.arguments.get(name) for name in command.arguments]
    try:
        result = command.run(operations, client, *given)
    except QmpError:
        raise
    except VirtserialError as error:
        raise QmpError(str(error)) from error
    return {} if result is None else result


# Devices


def _device_add(operations: Operations, _: Client, arguments: Mapping[str, object]) -> None:
    properties = dict(arguments)
    driver, device_id, bus = (properties.pop(name, None) for name in ("driver", "id", "bus"))
    if not isinstance(driver, str):
        raise QmpError("Parameter 'driver' is missing")
    if isinstance(bus, str):
        properties["bus"] = bus
    if isinstance(device_id, str):
        try:
            keyval.check_identifier(device_id)
        except ConfigError:
            raise QmpError(f"Invalid qdev ID '{device_id}'") from None
    device_id = device_id if isinstance(device_id, str) else None
    operations.add_device(device_options.make_device(driver, device_id, properties, typed=True))


def _device_list_properties(_: Operations, __: Client, typename: str) -> object:
    known = device_options.DRIVERS.get(device_options.ALIASES.get(typename, typename))
    if known is None:
        raise QmpError(f"Device '{typename}' not found", DEVICE_NOT_FOUND)
    properties = []
    for name, spec in known.items():
        if spec.role == device_options.USED:
            words = {"name": name, "type": spec.type, "description": spec.description, "default-value": spec.default}
            properties.append({word: value for word, value in words.items() if value not in (None, "")})
    return properties


# Chardevs


def _chardev_add(operations: Operations, client: Client, chardev_id: str, backend: Mapping[str, object]) -> object:
    if chardev_id in operations.keeper.chardevs:
        raise QmpError(f"Chardev with id '{chardev_id}' already exists")
    try:
        return where(operations.add_chardev(_make(operations, client, chardev_id, backend)))
    except VirtserialError as error:
        raise QmpError(f"Failed to add chardev '{chardev_id}': {error}") from error


def _chardev_change(operations: Operations, client: Client, chardev_id: str, backend: Mapping[str, object]) -> object:
    return where(operations.change_chardev(chardev_id, lambda: _make(operations, client, chardev_id, backend)))


def _make(operations: Operations, client: Client, chardev_id: str, backend: Mapping[str, object]) -> Chardev:
    keeper = operations.keeper
    return make_from_json(chardev_id, backend, client.names.take, keeper.chardevs, keeper.objects)


def where(chardev: Chardev) -> dict[str, object]:
    """What chardev-add and chardev-change return."""
    return {"pty": chardev.filename.removeprefix("pty:")} if chardev.kind == "pty" else {}


def _ringbuf_read(operations: Operations, _: Client, chardev_id: str, size: int, form: str | None) -> str:
    data = operations.read_ringbuf(chardev_id, size)
    # Invalid UTF-8 becomes U+FFFD, as QEMU's JSON writer makes it.
    return base64.b64encode(data).decode() if form == "base64" else data.decode(errors="replace")


def _ringbuf_write(operations: Operations, _: Client, chardev_id: str, text: str, form: str | None) -> None:
    try:
        data = base64.b64decode(text, validate=True) if form == "base64" else text.encode()
    except (binascii.Error, ValueError):
        raise QmpError("Base64 data contains invalid characters") from None
    operations.write_ringbuf(chardev_id, data)


# What programs learn about the machine


def _query_commands(_: Operations, __: Client) -> object:
    return [{"name": name} for name in ("qmp_capabilities", *COMMANDS)]


def _human_monitor_command(operations: Operations, client: Client, line: str, cpu: int | None) -> str:
    if cpu:
        raise QmpError("Parameter 'cpu-index' expects a CPU number")
    return run_line(operations, client, line).replace("\n", "\r\n")


# Our own


def _with_file(client: Client, name: str, act: Callable[[int], None]) -> None:
    fd = client.names.take(name)
    try:
        act(fd)
    finally:
        os.close(fd)


def _x_save(operations: Operations, client: Client, device_id: str | None, name: str) -> None:
    _with_file(client, name, lambda fd: operations.save_state(device_id, fd))


def _x_restore(operations: Operations, client: Client, device_id: str | None, name: str) -> None:
    _with_file(client, name, lambda fd: operations.restore_state(device_id, fd))


COMMANDS: Final[Mapping[str, Command]] = {
    "device_add": Command(_device_add, None),
    "device_del": Command(lambda operations, _, name: operations.delete_device(name), {"id": str}),
    "device-list-properties": Command(_device_list_properties, {"typename": str}),
    "chardev-add": Command(_chardev_add, {"id": str, "backend": BACKEND}),
    "chardev-change": Command(_chardev_change, {"id": str, "backend": BACKEND}),
    "chardev-remove": Command(lambda operations, _, name: operations.remove_chardev(name), {"id": str}),
    "chardev-send-break": Command(lambda operations, _, name: operations.send_break(name), {"id": str}),
    "query-chardev": Command(lambda operations, _: operations.query_chardev(), {}),
    "query-chardev-backends": Command(lambda *_: [{"name": kind} for kind in chardev_options.kinds()], {}),
    "ringbuf-read": Command(_ringbuf_read, {"device": str, "size": int, "format": FORMAT}),
    "ringbuf-write": Command(_ringbuf_write, {"device": str, "data": str, "format": FORMAT}),
    "qom-list": Command(lambda operations, _, path: qom.list_properties(operations, path), {"path": str}),
    "qom-get": Command(
        lambda operations, _, path, name: qom.get_property(operations, path, name), {"path": str, "property": str}
    ),
    "query-version": Command(lambda *_: version(), {}),
    "query-status": Command(lambda *_: {"status": "running", "running": True}, {}),
    "query-commands": Command(_query_commands, {}),
    "query-events": Command(lambda *_: [{"name": name} for name in EVENTS], {}),
    "getfd": Command(lambda _, client, name: client.name_descriptor(name), {"fdname": str}),
    "closefd": Command(lambda _, client, name: client.names.close_one(name), {"fdname": str}),
    "add-fd": Command(
        lambda operations, client, *where: operations.descriptor_sets.add(client.take_descriptor(), *where),
        {"fdset-id": Optional(int), "opaque": Optional(str)},
    ),
    "remove-fd": Command(
        lambda operations, _, *where: operations.descriptor_sets.remove(*where), {"fdset-id": int, "fd": Optional(int)}
    ),
    "query-fdsets": Command(lambda operations, _: operations.descriptor_sets.query(), {}),
    "human-monitor-command": Command(_human_monitor_command, {"command-line": str, "cpu-index": Optional(int)}),
    "x-virtserial-save": Command(_x_save, {"id": Optional(str), "fdname": str}),
    "x-virtserial-restore": Command(_x_restore, {"id": Optional(str), "fdname": str}),
    "x-virtserial-cont": Command(lambda operations, _, name: operations.continue_device(name), {"id": Optional(str)}),
    "x-virtserial-restart": Command(
        lambda operations, _, keeper: operations.restart(with_keeper=bool(keeper)), {"keeper": Optional(bool)}
    ),
    "x-virtserial-query-clients": Command(lambda operations, _: operations.query_clients(), {}),
    "x-virtserial-query": Command(lambda operations, _: processes(operations.keeper), {}),
    "x-virtserial-inventory": Command(
        lambda operations, _, ping: inventory(operations.keeper, bool(ping)), {"ping": Optional(bool)}
    ),
    "x-virtserial-resize": Command(
        lambda operations, _, *size: operations.resize(*size), {"id": str, "cols": int, "rows": int}
    ),
    "x-virtserial-disconnect": Command(lambda operations, _, name: operations.disconnect(name), {"id": str}),
    "quit": Command(lambda operations, _: operations.quit(), {}),
}
