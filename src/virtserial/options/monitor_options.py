"""`-qmp`, `-qmp-pretty`, `-monitor` and `-mon`: the chardev of each monitor, and whether it speaks QMP or HMP.

The first three take a chardev in QEMU's short form ("unix:PATH,server=on,wait=off"), which becomes an ordinary -chardev
here (qemu_chr_parse_compat in chardev/char.c).
"""

from __future__ import annotations

from virtserial.errors import ConfigError
from virtserial.named_tuple import NamedTuple
from virtserial.options import keyval

MODES = ("readline", "control")


class MonitorOptions(NamedTuple):
    """A monitor.

    Attributes:
        chardev: the id of its chardev.
        mode: "control" for QMP, "readline" for HMP.
        pretty: indented JSON.
    """

    chardev: str
    mode: str
    pretty: bool = False


def parse_mon(text: str) -> MonitorOptions:
    """Parse the argument of -mon.

    Raises:
        ConfigError: in QEMU's words.
    """
    options = keyval.parse_options(text, "chardev")
    for name in options:
        if name not in ("chardev", "mode", "pretty", "id"):
            raise ConfigError(f"Invalid parameter '{name}'", keyval.did_you_mean(name, ("chardev", "mode", "pretty")))
    mode = str(options.get("mode", "readline"))
    if mode not in MODES:
        raise ConfigError(f'unknown monitor mode "{mode}"')
    if "chardev" not in options:
        raise ConfigError("chardev is required")
    pretty = keyval.to_bool("pretty", options.get("pretty", "off"))
    if pretty and mode == "readline":
        raise ConfigError("'pretty' is not compatible with HMP monitors")
    return MonitorOptions(keyval.to_string("chardev", options["chardev"]), mode, pretty)


def parse_monitor(
    text: str, index: int, mode: str, pretty: bool = False
) -> tuple[MonitorOptions, str | None] | None:
    """Parse the argument of -qmp, -qmp-pretty or -monitor.

    Args:
        index: number of this option; part of the chardev's id.

    Returns:
        The monitor and the -chardev argument that it implies (None: it names a chardev), or None for "none".

    Raises:
        ConfigError: not a chardev in QEMU's short form.
    """
    if text == "none":
        return None
    if text.startswith("chardev:"):
        return MonitorOptions(text.removeprefix("chardev:"), mode, pretty), None
    chardev = f"compat_monitor{index}"
    return MonitorOptions(chardev, mode, pretty), f"{modern_chardev(text)},id={chardev}"


def modern_chardev(text: str) -> str:
    """From "unix:PATH,server=on" to "socket,path=PATH,server=on".

    Raises:
        ConfigError: not a chardev in the short form.
    """
    kind, colon, rest = text.partition(":")
    if text in ("null", "pty", "stdio", "ringbuf"):
        return text
    if colon:
        if kind == "unix":
            return f"socket,path={rest}"
        if kind in ("file", "pipe"):
            return f"{kind},path={rest}"
        if kind in ("tcp", "telnet", "websocket"):
            place, comma, options = rest.partition(",")
            host, _, port = place.rpartition(":")
            mode = f",{kind}=on" if kind != "tcp" else ""
            return f"socket,host={host.strip('[]')},port={port}{mode}{comma}{options}"
    raise ConfigError(f"'{text}' is not a monitor's chardev")
