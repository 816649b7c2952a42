"""`-chardev KIND,id=ID,...`: from QEMU's words to a Chardev that can be opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from virtserial.errors import ConfigError
from virtserial.options import keyval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtserial.chardev.base import Chardev
    from virtserial.chardev.socket_address import Address
    from virtserial.chardev.socket_layers import SocketLayers
    from virtserial.chardev.tls_credentials import TlsCredentials

BOOL, NUMBER, SIZE, STRING = keyval.to_bool, keyval.to_number, keyval.to_size, keyval.to_string

NONE: Mapping[str, Any] = {}

PARAMETERS: Mapping[str, Callable[[str, object], object]] = {
    # qemu_chardev_opts of chardev/char.c: any of them is taken with any kind, and has the right type.
    **dict.fromkeys(
        ("backend", "path", "input-path", "host", "port", "fd", "localaddr", "localport", "tls-creds", "tls-authz"),
        STRING,
    ),
    **dict.fromkeys(("name", "chardev", "logfile"), STRING),
    **{f"chardevs.{index}": STRING for index in range(4)},
    **dict.fromkeys(("ipv4", "ipv6", "wait", "server", "delay", "telnet", "tn3270", "websocket", "mux"), BOOL),
    **dict.fromkeys(("signal", "append", "logappend", "mouse", "clipboard", "tight", "abstract"), BOOL),
    **dict.fromkeys(("to", "reconnect", "reconnect-ms", "width", "height", "cols", "rows", "debug"), NUMBER),
    "size": SIZE,
    # Ours: chardev handler's class, chardev serial's line settings, whether Ctrl-a x ends the process.
    "mux-quit": BOOL,
    **dict.fromkeys(("class", "parity"), STRING),
    **dict.fromkeys(("speed", "data-bits", "stop-bits"), NUMBER),
}

QEMU_ONLY = (
    *("parallel", "vc", "spicevmc", "spiceport", "qemu-vdagent", "dbus"),
    *("braille", "msmouse", "wctablet", "testdev", "console", "mux"),
)
"""Backends that QEMU 11.1 has in one build or another; what they need (a display, another device) is in QEMU."""



def parse_chardev(
    text: str,
    chardevs: Mapping[str, Chardev] = NONE,
    objects: Mapping[str, TlsCredentials] = NONE,
) -> Chardev:
    """Read the argument of -chardev; nothing is opened yet.

    Args:
        chardevs: those there are, by id.
        objects: what -object has made, by id.

    Raises:
        ConfigError: in QEMU's words.
    """
    options = keyval.parse_options(text, "backend")
    chardev_id = options.pop("id", None)
    if chardev_id is not None:
        chardev_id = keyval.check_identifier(chardev_id)
        if chardev_id in chardevs:
            raise ConfigError(f"Duplicate ID '{chardev_id}' for chardev")
    values: dict[str, object] = {}
    for name, value in options.items():
        if name not in PARAMETERS:
            raise ConfigError(f"Invalid parameter '{name}'")
        values[name] = PARAMETERS[name](name, value)
    if chardev_id is None:
        raise ConfigError("chardev: no id specified")
    if "backend" not in values:
        raise ConfigError(f'chardev: "{chardev_id}" missing backend')
    return make_chardev(chardev_id, str(values["backend"]), values, chardevs, objects)


def make_chardev(
    chardev_id: str,
    kind: str,
    values: Mapping[str, object],
    chardevs: Mapping[str, Chardev] = NONE,
    objects: Mapping[str, TlsCredentials] = NONE,
) -> Chardev:
    """Make a Chardev of a kind from checked values by their QEMU names (bool, int and str, as PARAMETERS has them).

    Args:
        chardevs: those there are, by id: what a hub is made of.
        objects: what -object has made, by id.

    Raises:
        ConfigError: unknown kind, or values that do not go together.
    """
    maker = _MAKERS.get(kind)
    if maker is None:
        if kind in QEMU_ONLY:
            raise ConfigError(f"'{kind}' is not supported by virtserial: it is a back end of QEMU's own")
        raise ConfigError(f"'{kind}' is not a valid char driver name")
    if _flag(values, "tn3270", False):
        raise ConfigError("'tn3270' is not supported by virtserial")
    recipe = kind, dict(values)
    if isinstance(credentials := values.get("tls-creds"), str):
        if credentials not in objects:
            raise ConfigError(f"No TLS credentials with id '{credentials}'")
        values = {**values, "tls-creds": objects[credentials]}
    chardev = maker(chardev_id, {**values, "chardevs": chardevs} if kind == "hub" else values)
    if (path := _text(values, "logfile")) is not None:
        from virtserial.chardev.log import LoggedChardev

        chardev = LoggedChardev(chardev, path, append=_flag(values, "logappend", False))
    chardev.recipe = recipe
    chardev.mux = _flag(values, "mux", False)
    chardev.mux_quit = _flag(values, "mux-quit", False)
    return chardev


def kinds() -> tuple[str, ...]:
    """The kinds of chardev there are."""
    return tuple(_MAKERS)


def chardev_help() -> str:
    """What `-chardev help` prints."""
    return "Available chardev backend types: \n" + "".join(f"  {kind}\n" for kind in _MAKERS)


def _text(values: Mapping[str, object], name: str) -> str | None:
    value = values.get(name)
    return value if isinstance(value, str) else None


def _flag(values: Mapping[str, object], name: str, default: bool) -> bool:
    return bool(values.get(name, default))


def _integer(values: Mapping[str, object], name: str) -> int | None:
    value = values.get(name)
    return value if isinstance(value, int) else None


def _null(chardev_id: str, _values: Mapping[str, object]) -> Chardev:
    from virtserial.chardev.null import NullChardev

    return NullChardev(chardev_id)


def _file(chardev_id: str, values: Mapping[str, object]) -> Chardev:
    from virtserial.chardev.file import FileChardev

    path = _text(values, "path")
    if path is None:
        raise ConfigError("chardev: file: no filename given")
    return FileChardev(
        chardev_id, path, input_path=_text(values, "input-path"), append=_flag(values, "append", False)
    )


def _pipe(chardev_id: str, values: Mapping[str, object]) -> Chardev:
    from virtserial.chardev.pipe import PipeChardev

    path = _text(values, "path")
    if path is None:
        raise ConfigError("chardev: pipe: no device path given")
    return PipeChardev(chardev_id, path)


def _pty(chardev_id: str, values: Mapping[str, object]) -> Chardev:
    from virtserial.chardev.pty import PtyChardev

    return PtyChardev(chardev_id, _text(values, "path"))


def _stdio(chardev_id: str, values: Mapping[str, object]) -> Chardev:
    from virtserial.chardev.stdio import StdioChardev

    return StdioChardev(chardev_id, signal=_flag(values, "signal", True))


def _ringbuf(chardev_id: str, values: Mapping[str, object]) -> Chardev:
    from virtserial.chardev.ringbuf import DEFAULT_SIZE, RingbufChardev

    size = _integer(values, "size") or DEFAULT_SIZE
    if size & (size - 1):
        raise ConfigError("size of ringbuf chardev must be power of two")
    return RingbufChardev(chardev_id, size, str(values.get("backend", "ringbuf")))


def _handler(chardev_id: str, values: Mapping[str, object]) -> Chardev:
    from virtserial.chardev.handler_chardev import HandlerChardev

    class_name, path = _text(values, "class"), _text(values, "path")
    if not class_name and not path:
        raise ConfigError("chardev: handler: neither 'class' nor 'path' given")
    return HandlerChardev(chardev_id, class_name=class_name, path=path)


def _hub(chardev_id: str, values: Mapping[str, object]) -> Chardev:
    from virtserial.chardev.hub import HubChardev

    chardevs = cast("Mapping[str, Chardev]", values["chardevs"])
    parts = []
    for index in range(4):
        part = _text(values, f"chardevs.{index}")
        if part is None:
            break
        if part not in chardevs:
            raise ConfigError(f"hub: chardev can't be found by id '{part}'")
        parts.append(chardevs[part])
    if not parts:
        raise ConfigError("hub: 'chardevs' list is not defined")
    return HubChardev(chardev_id, parts)


def _udp(chardev_id: str, values: Mapping[str, object]) -> Chardev:
    from virtserial.chardev.socket_address import InetAddress
    from virtserial.chardev.udp import UdpChardev

    port = _text(values, "port")
    if not port:
        raise ConfigError("chardev: udp: remote port not specified")
    families = [bool(values[name]) if name in values else None for name in ("ipv4", "ipv6")]
    remote = InetAddress(_text(values, "host") or "localhost", port, None, *families)
    local = InetAddress(_text(values, "localaddr") or "", _text(values, "localport") or "0")
    return UdpChardev(chardev_id, remote, local)


def _serial(chardev_id: str, values: Mapping[str, object]) -> Chardev:
    from virtserial.chardev.serial import LineSettings, SerialChardev

    path = _text(values, "path")
    if path is None:
        raise ConfigError("chardev: serial/tty: no device path given")
    given = {
        field: values[name]
        for field, name in (
            ("speed", "speed"),
            ("data_bits", "data-bits"),
            ("parity", "parity"),
            ("stop_bits", "stop-bits"),
        )
        if name in values
    }
    return SerialChardev(chardev_id, path, LineSettings(**given))  # type: ignore[arg-type]


def _socket(chardev_id: str, values: Mapping[str, object]) -> Chardev:
    address = _socket_address(values)
    nodelay = not _flag(values, "delay", False)
    server = _flag(values, "server", False)
    layers = _socket_layers(values, server)
    reconnect_seconds = _reconnect_seconds(values)
    if "fd" in values and reconnect_seconds is not None:
        raise ConfigError(f"'{_reconnect_name(values)}' option is incompatible with 'fd' address type")
    if server:
        if reconnect_seconds is not None:
            raise ConfigError(
                f"'{_reconnect_name(values)}' option is incompatible with socket in server listen mode"
            )
        from virtserial.chardev.socket_server import SocketServerChardev

        return SocketServerChardev(
            chardev_id, address, wait=_flag(values, "wait", True), nodelay=nodelay, layers=layers
        )
    if _flag(values, "wait", False):
        raise ConfigError("'wait' option is incompatible with socket in client connect mode")
    from virtserial.chardev.socket_client import SocketClientChardev

    return SocketClientChardev(
        chardev_id, address, reconnect_seconds=reconnect_seconds or 0, nodelay=nodelay, layers=layers
    )


def _socket_layers(values: Mapping[str, object], server: bool) -> SocketLayers:
    from virtserial.chardev.socket_layers import SocketLayers

    credentials = cast("TlsCredentials | None", values.get("tls-creds"))
    if "tls-authz" in values:
        if credentials is None:
            raise ConfigError("'tls_authz' option requires 'tls_creds' option")
        raise ConfigError("'tls-authz' is not supported by virtserial")
    if credentials is not None:
        credentials.check_endpoint(server)
    websocket = _flag(values, "websocket", False)
    if websocket and not server:
        raise ConfigError("Websocket client is not implemented")
    return SocketLayers(server, _flag(values, "telnet", False), websocket, credentials)


def _reconnect_name(values: Mapping[str, object]) -> str:
    return "reconnect-ms" if "reconnect-ms" in values else "reconnect"


def _reconnect_seconds(values: Mapping[str, object]) -> float | None:
    """`reconnect` is in seconds and gone from QEMU 10; None: neither was given."""
    milliseconds, seconds = _integer(values, "reconnect-ms"), _integer(values, "reconnect")
    if milliseconds is not None and seconds is not None:
        raise ConfigError("'reconnect' and 'reconnect-ms' are mutually exclusive")
    return milliseconds / 1000 if milliseconds is not None else seconds


def _socket_address(values: Mapping[str, object]) -> Address:
    from virtserial.chardev.socket_address import FdAddress, InetAddress, UnixAddress

    path, host, fd = _text(values, "path"), _text(values, "host"), _text(values, "fd")
    if sum(value is not None for value in (path, host, fd)) > 1:
        raise ConfigError("None or one of 'path', 'fd' or 'host' option required.")
    if path is not None:
        return UnixAddress(path, _flag(values, "abstract", False), _flag(values, "tight", True))
    if host is not None:
        port = _text(values, "port")
        if port is None:
            raise ConfigError("chardev: socket: no port given")
        ipv4, ipv6 = (bool(values[name]) if name in values else None for name in ("ipv4", "ipv6"))
        return InetAddress(host, port, _integer(values, "to"), ipv4, ipv6)
    if fd is None or not fd.isdecimal() or not fd.isascii() or int(fd) >= 1 << 31:
        raise ConfigError(f"Unable to parse FD number {fd or ''}")
    return FdAddress(int(fd))


_MAKERS: Mapping[str, Callable[[str, Mapping[str, object]], Chardev]] = {
    "socket": _socket,
    "udp": _udp,
    "serial": _serial,
    "pty": _pty,
    "file": _file,
    "pipe": _pipe,
    "stdio": _stdio,
    "null": _null,
    "ringbuf": _ringbuf,
    "memory": _ringbuf,
    "hub": _hub,
    "handler": _handler,
}
