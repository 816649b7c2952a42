"""`-chardev KIND,id=ID,...`: from its text to a Chardev, not opened yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtserial.channel.record import record
from virtserial.errors import ConfigError
from virtserial.options import keyval
from virtserial.options.values import Values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtserial.chardev.base import Chardev
    from virtserial.chardev.shared_server import Sharing
    from virtserial.chardev.socket_address import Address
    from virtserial.chardev.socket_layers import SocketLayers
    from virtserial.chardev.tls_credentials import TlsCredentials

BOOL, NUMBER, SIZE, STRING = keyval.to_bool, keyval.to_number, keyval.to_size, keyval.to_string

NONE: Mapping[str, Any] = {}
PATH_MISSING = "add path=PATH"
ADDRESSES = "a socket has path=PATH, or host=HOST,port=PORT, or fd=N"

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
    **dict.fromkeys(("size", "backlog"), SIZE),
    # Ours: chardev handler's class, chardev serial's line settings, whether Ctrl-a x ends the process, several clients
    # of a socket.
    "mux-quit": BOOL,
    **dict.fromkeys(("class", "parity", "slow", "watch"), STRING),
    **dict.fromkeys(("speed", "data-bits", "stop-bits", "clients"), NUMBER),
}

QEMU_ONLY = (
    *("parallel", "vc", "spicevmc", "spiceport", "qemu-vdagent", "dbus"),
    *("braille", "msmouse", "wctablet", "testdev", "console", "mux"),
)
"""Back ends of QEMU 11.1, in some build, that need parts of QEMU (a display, another device)."""


@record
class ChardevValues(Values):
    """The checked values of a chardev, and what they may refer to, by id."""

    chardevs: Mapping[str, Chardev]
    objects: Mapping[str, TlsCredentials]


def parse_chardev(
    text: str,
    chardevs: Mapping[str, Chardev] = NONE,
    objects: Mapping[str, TlsCredentials] = NONE,
) -> Chardev:
    """Parse the argument of -chardev; nothing is opened yet.

    Args:
        chardevs: the existing ones, by id.
        objects: those of -object, by id.

    Raises:
        ConfigError: in QEMU's words.
    """
    options = keyval.parse_options(text, "backend")
    chardev_id = options.pop("id", None)
    if chardev_id is not None:
        chardev_id = keyval.check_identifier(chardev_id)
        if chardev_id in chardevs:
            raise ConfigError(f"Duplicate ID '{chardev_id}' for chardev", "give each -chardev an id= of its own")
    values: dict[str, object] = {}
    for name, value in options.items():
        if name not in PARAMETERS:
            raise ConfigError(f"Invalid parameter '{name}'", keyval.did_you_mean(name, PARAMETERS))
        values[name] = PARAMETERS[name](name, value)
    if chardev_id is None:
        raise ConfigError("chardev: no id specified", "write KIND,id=ID,... and name it by chardev=ID")
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
        chardevs: the existing ones, by id: a hub refers to them.
        objects: those of -object, by id.

    Raises:
        ConfigError: unknown kind, or values that exclude each other.
    """
    maker = _MAKERS.get(kind)
    if maker is None:
        if kind in QEMU_ONLY:
            raise ConfigError(
                f"'{kind}' is not supported by virtserial: it is a back end of QEMU's own",
                f"`-chardev help` lists those that are, as {', '.join(list(_MAKERS)[:4])}",
            )
        raise ConfigError(f"'{kind}' is not a valid char driver name", keyval.did_you_mean(kind, _MAKERS))
    words = ChardevValues(values, chardevs, objects)
    if words.flag("tn3270"):
        raise ConfigError("'tn3270' is not supported by virtserial")
    chardev = maker(chardev_id, words)
    if (path := words.text("logfile")) is not None:
        from virtserial.chardev.log import LoggedChardev

        chardev = LoggedChardev(chardev, path, append=words.flag("logappend"))
    chardev.recipe = kind, dict(values)
    chardev.mux = words.flag("mux")
    chardev.mux_quit = words.flag("mux-quit")
    return chardev


def kinds() -> tuple[str, ...]:
    """The kinds of chardev."""
    return tuple(_MAKERS)


def import_kinds() -> None:
    """Import what `make_chardev` and the chardevs import late.  A process that makes chardevs while it serves does this
    ahead: an upgrade may remove or replace the files."""
    import virtserial.chardev.file
    import virtserial.chardev.handler_chardev
    import virtserial.chardev.hub
    import virtserial.chardev.log
    import virtserial.chardev.null
    import virtserial.chardev.pipe
    import virtserial.chardev.pty
    import virtserial.chardev.raw_mode
    import virtserial.chardev.ringbuf
    import virtserial.chardev.serial
    import virtserial.chardev.shared_server
    import virtserial.chardev.socket_client
    import virtserial.chardev.stdio
    import virtserial.chardev.udp
    import virtserial.chardev.unix_listener  # noqa: F401


def chardev_help() -> str:
    """The text of `-chardev help`."""
    return "Available chardev backend types: \n" + "".join(f"  {kind}\n" for kind in _MAKERS)


def _null(chardev_id: str, _values: ChardevValues) -> Chardev:
    from virtserial.chardev.null import NullChardev

    return NullChardev(chardev_id)


def _file(chardev_id: str, values: ChardevValues) -> Chardev:
    from virtserial.chardev.file import FileChardev

    path = values.text("path")
    if path is None:
        raise ConfigError("chardev: file: no filename given", PATH_MISSING)
    return FileChardev(
        chardev_id, path, input_path=values.text("input-path"), append=values.flag("append")
    )


def _pipe(chardev_id: str, values: ChardevValues) -> Chardev:
    from virtserial.chardev.pipe import PipeChardev

    path = values.text("path")
    if path is None:
        raise ConfigError("chardev: pipe: no device path given", PATH_MISSING)
    return PipeChardev(chardev_id, path)


def _pty(chardev_id: str, values: ChardevValues) -> Chardev:
    from virtserial.chardev.pty import PtyChardev

    return PtyChardev(chardev_id, values.text("path"))


def _stdio(chardev_id: str, values: ChardevValues) -> Chardev:
    from virtserial.chardev.stdio import StdioChardev

    return StdioChardev(chardev_id, signal=values.flag("signal", True))


def _ringbuf(chardev_id: str, values: ChardevValues) -> Chardev:
    from virtserial.chardev.ringbuf import DEFAULT_SIZE, RingbufChardev

    size = values.number("size") or DEFAULT_SIZE
    if size & (size - 1):
        raise ConfigError("size of ringbuf chardev must be power of two", f"as size=64k; {size} is none")
    return RingbufChardev(chardev_id, size, values.text("backend") or "ringbuf")


def _handler(chardev_id: str, values: ChardevValues) -> Chardev:
    from virtserial.chardev.handler_chardev import HandlerChardev

    class_name, path = values.text("class"), values.text("path")
    if not class_name and not path:
        raise ConfigError("chardev: handler: neither 'class' nor 'path' given", "path=FILE.py,class=NAME")
    return HandlerChardev(chardev_id, class_name=class_name, path=path)


def _hub(chardev_id: str, values: ChardevValues) -> Chardev:
    from virtserial.chardev.hub import HubChardev

    parts = []
    for index in range(4):
        part = values.text(f"chardevs.{index}")
        if part is None:
            break
        if part not in values.chardevs:
            raise ConfigError(f"hub: chardev can't be found by id '{part}'", "its -chardev comes before the hub's")
        parts.append(values.chardevs[part])
    if not parts:
        raise ConfigError("hub: 'chardevs' list is not defined", "chardevs.0=ID,chardevs.1=ID name its parts")
    return HubChardev(chardev_id, parts)


def _udp(chardev_id: str, values: ChardevValues) -> Chardev:
    from virtserial.chardev.socket_address import InetAddress
    from virtserial.chardev.udp import UdpChardev

    port = values.text("port")
    if not port:
        raise ConfigError("chardev: udp: remote port not specified", "write udp,id=ID,host=HOST,port=PORT")
    host, ipv4, ipv6 = values.text("host") or "localhost", values.switch("ipv4"), values.switch("ipv6")
    remote = InetAddress(host, port, None, ipv4, ipv6)
    local = InetAddress(values.text("localaddr") or "", values.text("localport") or "0")
    return UdpChardev(chardev_id, remote, local)


def _serial(chardev_id: str, values: ChardevValues) -> Chardev:
    from virtserial.chardev.serial import LineSettings, SerialChardev

    path = values.text("path")
    if path is None:
        raise ConfigError("chardev: serial/tty: no device path given", PATH_MISSING)
    given = {
        field: values.given[name]
        for field, name in (
            ("speed", "speed"),
            ("data_bits", "data-bits"),
            ("parity", "parity"),
            ("stop_bits", "stop-bits"),
        )
        if name in values
    }
    return SerialChardev(chardev_id, path, LineSettings(**given))  # type: ignore[arg-type]


def _socket(chardev_id: str, values: ChardevValues) -> Chardev:
    address = _socket_address(values)
    nodelay = not values.flag("delay")
    server = values.flag("server")
    layers = _socket_layers(values, server)
    reconnect_seconds = _reconnect_seconds(values)
    sharing = _sharing(values, server)
    if "fd" in values and reconnect_seconds is not None:
        hint = "a descriptor cannot be opened again: leave it out"
        raise ConfigError(f"'{_reconnect_name(values)}' option is incompatible with 'fd' address type", hint)
    if server:
        if reconnect_seconds is not None:
            raise ConfigError(
                f"'{_reconnect_name(values)}' option is incompatible with socket in server listen mode",
                "it is for clients: leave out server=on, or leave it out",
            )
        if sharing is not None:
            from virtserial.chardev.shared_server import SharedSocketServer

            return SharedSocketServer(
                chardev_id, address, sharing, wait=values.flag("wait", True), nodelay=nodelay, layers=layers
            )
        from virtserial.chardev.socket_server import SocketServerChardev

        return SocketServerChardev(
            chardev_id, address, wait=values.flag("wait", True), nodelay=nodelay, layers=layers
        )
    if values.flag("wait"):
        raise ConfigError(
            "'wait' option is incompatible with socket in client connect mode", "add server=on to listen"
        )
    from virtserial.chardev.socket_client import SocketClientChardev

    return SocketClientChardev(
        chardev_id, address, reconnect_seconds=reconnect_seconds or 0, nodelay=nodelay, layers=layers
    )


def _socket_layers(values: ChardevValues, server: bool) -> SocketLayers:
    from virtserial.chardev.socket_layers import SocketLayers

    credentials = None
    if (name := values.text("tls-creds")) is not None:
        credentials = values.objects.get(name)
        if credentials is None:
            hint = f"it needs an -object tls-creds-x509,id={name},dir=PATH,endpoint=..."
            raise ConfigError(
                f"No TLS credentials with id '{name}'", keyval.did_you_mean(name, values.objects) or hint
            )
    if "tls-authz" in values:
        if credentials is None:
            raise ConfigError("'tls_authz' option requires 'tls_creds' option")
        raise ConfigError("'tls-authz' is not supported by virtserial")
    if credentials is not None:
        credentials.check_endpoint(server)
    websocket = values.flag("websocket")
    if websocket and not server:
        raise ConfigError("Websocket client is not implemented", "add server=on to listen")
    return SocketLayers(server, values.flag("telnet"), websocket, credentials)


def _sharing(values: ChardevValues, server: bool) -> Sharing | None:
    """How several clients share a server; None: one client, as with QEMU."""
    given = [name for name in ("clients", "backlog", "slow", "watch") if name in values]
    if not given or (given == ["clients"] and values.number("clients") == 1):
        return None
    from virtserial.channel.output_log import MAX_CLIENTS
    from virtserial.chardev.shared_server import MAX_BACKLOG, SLOW, Sharing

    if not server:
        raise ConfigError(
            f"'{given[0]}' option is incompatible with socket in client connect mode", "add server=on to listen"
        )
    if values.flag("mux"):
        raise ConfigError(f"'{given[0]}' option is incompatible with 'mux=on'", "leave out one of the two")
    clients = values.number("clients") if "clients" in values else 1
    if clients is None or not 1 <= clients <= MAX_CLIENTS:
        raise ConfigError(f"Parameter 'clients' expects a number from 1 to {MAX_CLIENTS}")
    backlog = values.number("backlog") or 0
    if backlog > MAX_BACKLOG:
        raise ConfigError(f"Parameter 'backlog' expects at most {MAX_BACKLOG >> 20}M")
    if (slow := SLOW.get(values.text("slow") or "block")) is None:
        raise ConfigError(f"Parameter 'slow' expects one of {', '.join(SLOW)}")
    return Sharing(clients, backlog, slow, values.text("watch"))


def _reconnect_name(values: ChardevValues) -> str:
    return "reconnect-ms" if "reconnect-ms" in values else "reconnect"


def _reconnect_seconds(values: ChardevValues) -> float | None:
    """`reconnect` is in seconds and was removed in QEMU 10; None: neither was given."""
    milliseconds, seconds = values.number("reconnect-ms"), values.number("reconnect")
    if milliseconds is not None and seconds is not None:
        raise ConfigError("'reconnect' and 'reconnect-ms' are mutually exclusive", "leave out one of the two")
    return milliseconds / 1000 if milliseconds is not None else seconds


def _socket_address(values: ChardevValues) -> Address:
    from virtserial.chardev.socket_address import FdAddress, InetAddress, UnixAddress

    path, host, fd = values.text("path"), values.text("host"), values.text("fd")
    if sum(value is not None for value in (path, host, fd)) > 1:
        raise ConfigError("None or one of 'path', 'fd' or 'host' option required.", ADDRESSES)
    if path is not None:
        return UnixAddress(path, values.flag("abstract"), values.flag("tight", True))
    if host is not None:
        port = values.text("port")
        if port is None:
            raise ConfigError("chardev: socket: no port given", ADDRESSES)
        return InetAddress(host, port, values.number("to"), values.switch("ipv4"), values.switch("ipv6"))
    if fd is None or not fd.isdecimal() or not fd.isascii() or int(fd) >= 1 << 31:
        raise ConfigError(f"Unable to parse FD number {fd or ''}", ADDRESSES)
    return FdAddress(int(fd))


_MAKERS: Mapping[str, Callable[[str, ChardevValues], Chardev]] = {
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
