"""What to try after an option was refused, where its own check names nothing better; and lists of what there is."""

from __future__ import annotations

from virtserial.errors import ConfigError
from virtserial.options.device_options import ALIASES, DRIVERS

MONITOR = "write unix:PATH,server=on,wait=off, or stdio, or chardev:ID"
ADVICE = {
    "-object": "write tls-creds-x509,id=ID,dir=PATH,endpoint=server; no other kind is served",
    "-qmp": MONITOR,
    "-qmp-pretty": MONITOR,
    "-monitor": MONITOR,
    "-mon": "write chardev=ID,mode=control for QMP, or mode=readline for people",
}


def way_out(option: str, text: str) -> str:
    """Return what helps who wrote an option: where its values are listed, or how it is written.

    Args:
        option: with one dash.
        text: its argument.
    """
    if option in ADVICE:
        return ADVICE[option]
    if option == "-chardev":
        return "`-chardev help` lists the kinds; options are KIND,id=ID,key=value"
    driver = text.partition(",")[0].removeprefix("driver=")
    if driver in DRIVERS or driver in ALIASES:
        return f"`-device {driver},help` lists its properties"
    return "`-device help` lists the devices"


def refusal(option: str, text: str, error: ConfigError) -> ConfigError:
    """An error that names its option, in QEMU's form, and a way out."""
    return ConfigError(f"{option} {text}: {error}", error.hint or way_out(option, text))


def devices_help() -> str:
    """The text of `-device help`, in the form of QEMU's."""
    aliases = {driver: alias for alias, driver in ALIASES.items()}
    lines = []
    for driver in DRIVERS:
        bus = "virtio-serial-bus" if driver in ("virtserialport", "virtconsole") else "PCI"
        alias = f', alias "{aliases[driver]}"' if driver in aliases else ""
        lines.append(f'name "{driver}", bus {bus}{alias}\n')
    return "".join(lines) + "`-device DRIVER,help` lists the properties of one.\n"
