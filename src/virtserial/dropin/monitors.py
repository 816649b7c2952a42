"""The monitors of a command line, and QEMU's default ones (system/vl.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from virtserial.dropin.command_line import Option, arguments_of
from virtserial.errors import ConfigError
from virtserial.options import keyval
from virtserial.options.monitor_options import MonitorOptions, modern_chardev, parse_mon, parse_monitor
from virtserial.options.way_out import refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

MODES = {"qmp": "control", "qmp-pretty": "control", "monitor": "readline"}
OBJECTS = {"monitor-qmp": "control", "monitor-hmp": "readline"}
"""Objects that are monitors, since QEMU 11.1."""
NETWORK = {"netdev", "nic", "net"}
SHARED_LINES = ("serial", "parallel")
"""Options whose `mon:CHARDEV` is shared by a serial line and a monitor."""
WITH_DEFAULT_SERIAL = ("isa-serial", "xen-console")
"""Devices that disable the default serial line, by -device or -global (default_list in system/vl.c)."""


class MonitorWords(NamedTuple):
    """A monitor of the command line.

    Attributes:
        option: its option.
        monitor: its chardev and mode; None: only QEMU can have it.
        chardev: the -chardev argument that it implies; None: it names a chardev.
        is_shared: a serial line uses the same chardev.
    """

    option: Option
    monitor: MonitorOptions | None
    chardev: str | None
    is_shared: bool = False


def collect(options: Sequence[Option]) -> list[MonitorWords]:
    """Return the monitors in order.

    Raises:
        ConfigError: a -mon that QEMU refuses.
    """
    found: list[MonitorWords] = []
    labels, lines = 0, dict.fromkeys(SHARED_LINES, 0)
    for option, value in arguments_of(options, *MODES, "mon", "object", *SHARED_LINES):
        if option.name == "object":
            if (kind := object_kind(value)) in OBJECTS:
                found.append(_object(option, value, OBJECTS[kind]))
        elif option.name == "mon":
            try:
                found.append(MonitorWords(option, parse_mon(value), None))
            except ConfigError as error:
                raise refusal("-mon", value, error) from None
        elif option.name in MODES:
            if value.startswith("none"):
                continue
            found.append(_compatible(option, value, labels))
            labels += 1
        else:
            line = lines[option.name]
            lines[option.name] += 1
            if value.startswith("mon:"):
                found.append(_shared_line(option, value.removeprefix("mon:"), f"{option.name}{line}"))
    return found


def object_kind(value: str) -> str:
    """Return the qom-type of an -object argument."""
    try:
        return str(keyval.parse_options(value, "qom-type").get("qom-type"))
    except ConfigError:
        return ""


def _object(option: Option, value: str, mode: str) -> MonitorWords:
    properties = keyval.parse_options(value, "qom-type")
    if properties.keys() - {"qom-type", "id", "chardev", "pretty"} or "chardev" not in properties:
        return MonitorWords(option, None, None)
    pretty = keyval.to_bool("pretty", properties.get("pretty", "off"))
    return MonitorWords(option, MonitorOptions(str(properties["chardev"]), mode, pretty), None)


def _compatible(option: Option, value: str, label: int) -> MonitorWords:
    try:
        parsed = parse_monitor(value, label, MODES[option.name], pretty=option.name == "qmp-pretty")
    except ConfigError:
        parsed = None
    return MonitorWords(option, *(parsed if parsed is not None else (None, None)))


def _shared_line(option: Option, text: str, label: str) -> MonitorWords:
    try:
        # Ctrl-C goes to the guest: only this old form does that (qemu_chr_parse_compat).
        signal = ",signal=off" if text == "stdio" else ""
        chardev = f"{modern_chardev(text)},id={label},mux=on{signal}"
    except ConfigError:
        return MonitorWords(option, None, None)
    return MonitorWords(option, MonitorOptions(label, "readline"), chardev, is_shared=True)


def default_options(options: Sequence[Option]) -> list[Option]:
    """Return QEMU's default monitor, serial line and network as explicit options.

    QEMU drops defaults because of options that we take away or add, so they must be explicit.
    """
    names = {option.name for option in options if not option.from_file}
    if "nodefaults" in names:
        return []
    return _default_monitor(options, names) + _default_network(options, names)


def _default_network(options: Sequence[Option], names: set[str]) -> list[Option]:
    """A network in a -readconfig file leaves the default one in place; as an option it would replace it."""
    if names & NETWORK or not any(option.from_file and option.name in NETWORK for option in options):
        return []
    return [_default("net", "nic"), _default("net", "user")]


def _default_monitor(options: Sequence[Option], names: set[str]) -> list[Option]:
    values = [value for _, value in arguments_of(options, *SHARED_LINES)]
    has_monitor = (
        bool(names & {*MODES, "mon"})
        or any(value.startswith("mon:") for value in values)
        or any(object_kind(value) in OBJECTS for _, value in arguments_of(options, "object"))
    )
    has_serial = "serial" in names or _has_serial_device(options)
    if "nographic" not in names:
        return [] if has_monitor else [_default("monitor", "vc")]
    if has_monitor:
        return []
    return [_default("monitor", "stdio") if has_serial else _default("serial", "mon:stdio")]


def _has_serial_device(options: Sequence[Option]) -> bool:
    for option, value in arguments_of(options, "device", "global"):
        try:
            driver = str(keyval.parse_options(value, "driver").get("driver"))
        except ConfigError:
            continue
        if (driver.partition(".")[0] if option.name == "global" else driver) in WITH_DEFAULT_SERIAL:
            return True
    return False


def _default(name: str, value: str) -> Option:
    return Option(name, value, [f"-{name}", value], is_default=True)
