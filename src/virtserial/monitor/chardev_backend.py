"""The ChardevBackend of chardev-add and chardev-change (qapi/char.json): from its JSON to a Chardev."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.monitor.qmp import QmpError
from virtserial.monitor.schema import List, Optional, Struct, Union
from virtserial.options.chardev_options import QEMU_ONLY, make_chardev
from virtserial.options.values import Values

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
    # Ours: several clients.
    **{name: Optional(int) for name in ("clients", "backlog")},
    **{name: Optional(str) for name in ("slow", "watch")},
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
        take_descriptor: returns the descriptor that getfd named so, for good.
        chardevs: the existing ones, by id.
        objects: those of -object, by id.

    Raises:
        ConfigError: options that exclude each other.
        QmpError: a descriptor's name is unknown.
    """
    kind = str(backend["type"])
    data = Values(backend).values("data") if kind not in QEMU_ONLY else Values({})
    values: dict[str, object] = {"backend": kind}
    for name, value in data.given.items():
        if name == "addr":
            values.update(_address(data.values(name), take_descriptor))
        elif name == "remote":
            values.update(_inet(data.values(name)))
        elif name == "local":
            local = _inet(data.values(name))
            values.update(localaddr=local["host"], localport=local["port"])
        elif name == "chardevs":
            values.update({f"chardevs.{index}": part for index, part in enumerate(data.texts(name))})
        elif name == "nodelay":
            values["delay"] = not value
        else:
            values[_NAMES.get(name, name) if kind != "socket" else name] = value
    if kind == "socket":
        # Here, unlike on the command line, a server is the default and does not wait.
        values.setdefault("server", "reconnect" not in data and "reconnect-ms" not in data)
        values.setdefault("wait", False)
        values["delay"] = not data.flag("nodelay")
    size = data.number("size")
    if kind in ("ringbuf", "memory") and size is not None and size <= 0:
        raise QmpError("size of ringbuf chardev must be power of two")
    return make_chardev(chardev_id, kind, values, chardevs, objects)


def _inet(address: Values) -> dict[str, object]:
    """The end of a UDP connection."""
    if address.text("type") != "inet":
        raise QmpError(f"'{address.text('type')}' is not an address of UDP")
    data = address.values("data").given
    return {name: data[name] for name in ("host", "port", "ipv4", "ipv6") if name in data}


def _address(address: Values, take_descriptor: Callable[[str], int]) -> dict[str, object]:
    kind, data = address.text("type"), address.values("data")
    if kind == "fd":
        return {"fd": str(take_descriptor(data.text("str") or ""))}
    if kind == "vsock":
        raise QmpError("'vsock' is not supported by virtserial yet")
    return {name: value for name, value in data.given.items() if name not in ("numeric", "keep-alive", "mptcp")}
