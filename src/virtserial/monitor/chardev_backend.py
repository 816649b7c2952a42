"""The ChardevBackend of chardev-add and chardev-change (qapi/char.json): from its JSON to a Chardev."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from virtserial.monitor.qmp import QmpError
from virtserial.monitor.schema import List, Optional, Struct, Union
from virtserial.options.chardev_options import QEMU_ONLY, make_chardev

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtserial.chardev.base import Chardev
    from virtserial.chardev.tls_credentials import TlsCredentials

COMMON: Final[Struct] = {"logfile": Optional(str), "logappend": Optional(bool)}
RINGBUF: Final[Struct] = {"size": Optional(int), **COMMON}
INET: Final[Struct] = {
    "host": str,
    "port": str,
    "numeric": Optional(bool),
    "to": Optional(int),
    **{name: Optional(bool) for name in ("ipv4", "ipv6", "keep-alive", "mptcp")},
}
ADDRESS: Final = Union(
    {
        "inet": INET,
        "unix": {"path": str, "abstract": Optional(bool), "tight": Optional(bool)},
        "vsock": {"cid": str, "port": str},
        "fd": {"str": str},
    }
)
SOCKET: Final[Struct] = {
    "addr": ADDRESS,
    "tls-creds": Optional(str),
    "tls-authz": Optional(str),
    **{name: Optional(bool) for name in ("server", "wait", "nodelay", "telnet", "tn3270", "websocket")},
    "reconnect": Optional(int),
    "reconnect-ms": Optional(int),
    **COMMON,
}
_KINDS: Final[dict[str, Struct]] = {
    "file": {"in": Optional(str), "out": str, "append": Optional(bool), **COMMON},
    "pipe": {"device": str, **COMMON},
    "socket": SOCKET,
    "pty": {"path": Optional(str), **COMMON},
    "udp": {"remote": ADDRESS, "local": Optional(ADDRESS), **COMMON},
    "serial": {"device": str, **COMMON},
    "hub": {"chardevs": List(str), **COMMON},
    "null": COMMON,
    "stdio": {"signal": Optional(bool), **COMMON},
    "ringbuf": RINGBUF,
    "memory": RINGBUF,
    # Ours: a port served by Python code.
    "handler": {"class": Optional(str), "path": Optional(str), **COMMON},
}
BACKEND: Final = Union({**dict.fromkeys(QEMU_ONLY), **_KINDS})

_NAMES: Final = {"in": "input-path", "out": "path", "device": "path"}
"""Members that -chardev calls by another name."""


def make_from_json(
    chardev_id: str,
    backend: Mapping[str, object],
    take_descriptor: Callable[[str], int],
    chardevs: Mapping[str, Chardev],
    objects: Mapping[str, TlsCredentials],
) -> Chardev:
    """Make a Chardev of a checked ChardevBackend.

    Args:
        take_descriptor: gives the descriptor of a name that getfd gave it, for good.
        chardevs: those there are, by id.
        objects: what -object has made, by id.

    Raises:
        ConfigError: what it says does not go together.
        QmpError: a descriptor's name is unknown.
    """
    kind, data = str(backend["type"]), cast("Mapping[str, object]", backend["data"])
    values: dict[str, object] = {"backend": kind}
    if kind in QEMU_ONLY:
        data = {}
    for name, value in data.items():
        if name == "addr":
            values.update(_address(cast("Mapping[str, object]", value), take_descriptor))
        elif name == "remote":
            values.update(_inet(value))
        elif name == "local":
            local = _inet(value)
            values.update(localaddr=local["host"], localport=local["port"])
        elif name == "chardevs":
            values.update({f"chardevs.{index}": part for index, part in enumerate(cast("list[str]", value))})
        elif name == "nodelay":
            values["delay"] = not value
        else:
            values[_NAMES.get(name, name) if kind != "socket" else name] = value
    if kind == "socket":
        # Here, unlike on the command line, a server is the default and does not wait.
        values.setdefault("server", "reconnect" not in data and "reconnect-ms" not in data)
        values.setdefault("wait", False)
        values["delay"] = not data.get("nodelay", False)
    if kind in ("ringbuf", "memory") and cast(int, values.get("size", 1)) <= 0:
        raise QmpError("size of ringbuf chardev must be power of two")
    return make_chardev(chardev_id, kind, values, chardevs, objects)


def _inet(value: object) -> dict[str, object]:
    """The end of a UDP connection."""
    address = cast("Mapping[str, object]", value)
    if address["type"] != "inet":
        raise QmpError(f"'{address['type']}' is not an address of UDP")
    data = cast("Mapping[str, object]", address["data"])
    return {name: data[name] for name in ("host", "port", "ipv4", "ipv6") if name in data}


def _address(address: Mapping[str, object], take_descriptor: Callable[[str], int]) -> dict[str, object]:
    data = cast("Mapping[str, object]", address["data"])
    if address["type"] == "fd":
        return {"fd": str(take_descriptor(str(data["str"])))}
    if address["type"] == "vsock":
        raise QmpError("'vsock' is not supported by virtserial yet")
    return {name: value for name, value in data.items() if name not in ("numeric", "keep-alive", "mptcp")}



