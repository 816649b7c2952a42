"""The QMP commands: what each takes (in schema.py's terms), and what it does."""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from virtserial.errors import ConfigError, VirtserialError
from virtserial.monitor import qom
from virtserial.monitor.chardev_backend import BACKEND, make_from_json
from virtserial.monitor.descriptors import NamedDescriptors
from virtserial.monitor.events import EVENTS
from virtserial.monitor.hmp import run_line
from virtserial.monitor.qmp import DEVICE_NOT_FOUND, QmpError, no_oob, no_such_command, version
from virtserial.monitor.schema import Enum, Optional, Struct, check
from virtserial.options import chardev_options, device_options, keyval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtserial.chardev.base import Chardev
    from virtserial.monitor.operations import Operations
    from virtserial.monitor.qmp import Request

MAX_READ: Final = 1 << 20
"""Bytes that ringbuf-read returns at once; the rest waits for the next."""
FORMAT: Final = Optional(Enum(("utf8", "base64")))


class Client(NamedTuple):
    """Who asks.

    Attributes:
        names: its descriptors by name.
        take_descriptor: gives the oldest descriptor that came by SCM_RIGHTS and was not taken yet.
    """

    names: NamedDescriptors
    take_descriptor: Callable[[], int]


class Command(NamedTuple):
    """A command; `arguments` None: it takes anything."""

    run: Callable[[Operations, Client, Mapping[str, object]], object]
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
    if command.arguments is not None:
        check(request.arguments, command.arguments)
    try:
        return command.run(operations, client, request.arguments)
    except QmpError:
        raise
    except VirtserialError as error:
        raise QmpError(str(error)) from error


def _device_add(operations: Operations, _: Client, arguments: Mapping[str, object]) -> object:
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
    return {}


def _device_del(operations: Operations, _: Client, arguments: Mapping[str, object]) -> object:
    operations.delete_device(str(arguments["id"]))
    return {}


def _device_list_properties(_: Operations, __: Client, arguments: Mapping[str, object]) -> object:
    typename = str(arguments["typename"])
    known = device_options.DRIVERS.get(device_options.ALIASES.get(typename, typename))
    if known is None:
        raise QmpError(f"Device '{typename}' not found", DEVICE_NOT_FOUND)
    properties = []
    for name, spec in known.items():
        if spec.role == device_options.USED:
            words = {"name": name, "type": spec.type, "description": spec.description, "default-value": spec.default}
            properties.append({word: value for word, value in words.items() if value not in (None, "")})
    return properties


def make_chardev_of(
    operations: Operations, client: Client | None, arguments: Mapping[str, object]
) -> Callable[[], Chardev]:
    """Return what makes the chardev of checked arguments; without a client none of its descriptors."""
    backend = cast("Mapping[str, object]", arguments["backend"])
    names = client.names if client is not None else NamedDescriptors()
    return lambda: make_from_json(
        str(arguments["id"]), backend, names.take, operations.keeper.chardevs, operations.keeper.objects
    )


def _chardev_add(operations: Operations, client: Client, arguments: Mapping[str, object]) -> object:
    chardev_id = str(arguments["id"])
    if chardev_id in operations.keeper.chardevs:
        raise QmpError(f"Chardev with id '{chardev_id}' already exists")
    try:
        chardev = operations.add_chardev(chardev_id, make_chardev_of(operations, client, arguments))
    except VirtserialError as error:
        raise QmpError(f"Failed to add chardev '{chardev_id}': {error}") from error
    return where(chardev)


def _chardev_change(operations: Operations, client: Client, arguments: Mapping[str, object]) -> object:
    return where(operations.change_chardev(str(arguments["id"]), make_chardev_of(operations, client, arguments)))


def where(chardev: Chardev) -> dict[str, object]:
    """What chardev-add and chardev-change return."""
    return {"pty": chardev.filename.removeprefix("pty:")} if chardev.kind == "pty" else {}


def _chardev_remove(operations: Operations, _: Client, arguments: Mapping[str, object]) -> object:
    operations.remove_chardev(str(arguments["id"]))
    return {}


def _chardev_send_break(operations: Operations, _: Client, arguments: Mapping[str, object]) -> object:
    operations.send_break(str(arguments["id"]))
    return {}


def _query_chardev(operations: Operations, _: Client, __: Mapping[str, object]) -> object:
    return [
        {"label": label, "filename": filename, "frontend-open": operations.frontend_open(chardev.id)}
        for chardev in operations.chardevs()
        for label, filename in chardev.listing()
    ]


def _query_chardev_backends(_: Operations, __: Client, ___: Mapping[str, object]) -> object:
    return [{"name": kind} for kind in chardev_options.kinds()]


def _ringbuf_read(operations: Operations, _: Client, arguments: Mapping[str, object]) -> object:
    ringbuf, size = operations.find_ringbuf(str(arguments["device"])), cast(int, arguments["size"])
    if size <= 0:
        raise QmpError("size must be greater than zero")
    data = ringbuf.read(min(size, MAX_READ))
    if arguments.get("format") == "base64":
        return base64.b64encode(data).decode()
    # Invalid UTF-8 becomes U+FFFD, as QEMU's JSON writer makes it.
    return data.decode(errors="replace")


def _ringbuf_write(operations: Operations, _: Client, arguments: Mapping[str, object]) -> object:
    ringbuf, text = operations.find_ringbuf(str(arguments["device"])), str(arguments["data"])
    if arguments.get("format") == "base64":
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise QmpError("Base64 data contains invalid characters") from None
    else:
        data = text.encode()
    ringbuf.write(data)
    return {}


def _qom_list(operations: Operations, _: Client, arguments: Mapping[str, object]) -> object:
    return qom.list_properties(operations, str(arguments["path"]))


def _qom_get(operations: Operations, _: Client, arguments: Mapping[str, object]) -> object:
    return qom.get_property(operations, str(arguments["path"]), str(arguments["property"]))


def _query_version(_: Operations, __: Client, ___: Mapping[str, object]) -> object:
    return version()


def _query_status(_: Operations, __: Client, ___: Mapping[str, object]) -> object:
    return {"status": "running", "running": True}


def _query_commands(_: Operations, __: Client, ___: Mapping[str, object]) -> object:
    return [{"name": name} for name in ("qmp_capabilities", *COMMANDS)]


def _query_events(_: Operations, __: Client, ___: Mapping[str, object]) -> object:
    return [{"name": name} for name in EVENTS]


def _getfd(_: Operations, client: Client, arguments: Mapping[str, object]) -> object:
    client.names.put(str(arguments["fdname"]), client.take_descriptor())
    return {}


def _closefd(_: Operations, client: Client, arguments: Mapping[str, object]) -> object:
    client.names.close_one(str(arguments["fdname"]))
    return {}


def _add_fd(operations: Operations, client: Client, arguments: Mapping[str, object]) -> object:
    number, opaque = cast("int | None", arguments.get("fdset-id")), cast("str | None", arguments.get("opaque"))
    return operations.descriptor_sets.add(client.take_descriptor(), number, opaque)


def _remove_fd(operations: Operations, _: Client, arguments: Mapping[str, object]) -> object:
    operations.descriptor_sets.remove(cast(int, arguments["fdset-id"]), cast("int | None", arguments.get("fd")))
    return {}


def _query_fdsets(operations: Operations, _: Client, __: Mapping[str, object]) -> object:
    return operations.descriptor_sets.query()


def _human_monitor_command(operations: Operations, _: Client, arguments: Mapping[str, object]) -> object:
    if arguments.get("cpu-index", 0) != 0:
        raise QmpError("Parameter 'cpu-index' expects a CPU number")
    return run_line(operations, str(arguments["command-line"])).replace("\n", "\r\n")


def _with_file(
    client: Client, arguments: Mapping[str, object], act: Callable[[str | None, int], None]
) -> object:
    fd = client.names.take(str(arguments["fdname"]))
    try:
        act(cast("str | None", arguments.get("id")), fd)
    finally:
        os.close(fd)
    return {}


def _x_save(operations: Operations, client: Client, arguments: Mapping[str, object]) -> object:
    return _with_file(client, arguments, operations.save_state)


def _x_restore(operations: Operations, client: Client, arguments: Mapping[str, object]) -> object:
    return _with_file(client, arguments, operations.restore_state)


def _x_cont(operations: Operations, _: Client, arguments: Mapping[str, object]) -> object:
    operations.continue_device(cast("str | None", arguments.get("id")))
    return {}


def _x_restart(operations: Operations, _: Client, arguments: Mapping[str, object]) -> object:
    keeper = operations.keeper
    if not arguments.get("keeper", False):
        keeper.workers.upgrade()
    elif keeper.renewal is not None:
        keeper.renewal.begin()
    else:
        raise QmpError("this process lives as long as its VMM, with the code that it was started with")
    return {}


def _x_query(operations: Operations, _: Client, __: Mapping[str, object]) -> object:
    workers, renewal = operations.keeper.workers, operations.keeper.renewal
    return {
        "keeper-pid": os.getpid(),
        "keeper-can-restart": renewal is not None,
        "keeper-restarts": renewal.count if renewal is not None else 0,
        "worker-pid": workers.worker.pid if workers.worker is not None else 0,
        "changing": workers.changing or (renewal is not None and renewal.changing),
        "refusal": workers.refusal or "",
        "restarts": workers.restarts,
        "upgrades": workers.upgrades,
        "doubtful-bytes": workers.doubtful,
    }


def _quit(operations: Operations, _: Client, __: Mapping[str, object]) -> object:
    operations.quit()
    return {}


COMMANDS: Final[Mapping[str, Command]] = {
    "device_add": Command(_device_add, None),
    "device_del": Command(_device_del, {"id": str}),
    "device-list-properties": Command(_device_list_properties, {"typename": str}),
    "chardev-add": Command(_chardev_add, {"id": str, "backend": BACKEND}),
    "chardev-change": Command(_chardev_change, {"id": str, "backend": BACKEND}),
    "chardev-remove": Command(_chardev_remove, {"id": str}),
    "chardev-send-break": Command(_chardev_send_break, {"id": str}),
    "query-chardev": Command(_query_chardev, {}),
    "query-chardev-backends": Command(_query_chardev_backends, {}),
    "ringbuf-read": Command(_ringbuf_read, {"device": str, "size": int, "format": FORMAT}),
    "ringbuf-write": Command(_ringbuf_write, {"device": str, "data": str, "format": FORMAT}),
    "qom-list": Command(_qom_list, {"path": str}),
    "qom-get": Command(_qom_get, {"path": str, "property": str}),
    "query-version": Command(_query_version, {}),
    "query-status": Command(_query_status, {}),
    "query-commands": Command(_query_commands, {}),
    "query-events": Command(_query_events, {}),
    "getfd": Command(_getfd, {"fdname": str}),
    "closefd": Command(_closefd, {"fdname": str}),
    "add-fd": Command(_add_fd, {"fdset-id": Optional(int), "opaque": Optional(str)}),
    "remove-fd": Command(_remove_fd, {"fdset-id": int, "fd": Optional(int)}),
    "query-fdsets": Command(_query_fdsets, {}),
    "human-monitor-command": Command(
        _human_monitor_command, {"command-line": str, "cpu-index": Optional(int)}
    ),
    "x-virtserial-save": Command(_x_save, {"id": Optional(str), "fdname": str}),
    "x-virtserial-restore": Command(_x_restore, {"id": Optional(str), "fdname": str}),
    "x-virtserial-cont": Command(_x_cont, {"id": Optional(str)}),
    "x-virtserial-restart": Command(_x_restart, {"keeper": Optional(bool)}),
    "x-virtserial-query": Command(_x_query, {}),
    "quit": Command(_quit, {}),
}
