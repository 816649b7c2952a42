"""Which of QEMU's options refer to a chardev, and how to make them refer to another."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from virtserial.errors import ConfigError
from virtserial.options import keyval

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.dropin.command_line import Option

AFTER_A_WORD = ("serial", "parallel", "debugcon", "gdb", "qtest")
"""Options that say `chardev:ID`."""
IMPLIED = {
    "device": "driver",
    "netdev": "type",
    "net": "type",
    "nic": "type",
    "tpmdev": "type",
    "object": "qom-type",
    "semihosting-config": "enable",
}
"""Options that say `chardev=ID`, and the key of their first word."""
KEYS = ("chardev", "indev", "outdev", "primary_in", "secondary_in", "notify_dev")
"""Properties that name a chardev: of devices, of vhost-user, of the objects filter-*, colo-compare, rng-egd."""
ASSIGNMENT = re.compile(r"([^=]*\.chardev)=(.*)", re.DOTALL)


def chardevs_used(option: Option) -> list[str]:
    """Return the ids of the chardevs that an option refers to, in order, one entry per reference."""
    found: list[str] = []

    def note(chardev: str) -> str:
        found.append(chardev)
        return chardev

    _visit(option, note)
    return found


def redirect(option: Option, rename: Callable[[str], str]) -> None:
    """Rename the references in what QEMU gets of an option: `rename` is called for each, in order."""
    changed = _visit(option, rename)
    if changed is not None:
        option.replace_value(changed)


def _visit(option: Option, rename: Callable[[str], str]) -> str | None:
    value = option.value
    if value is None:
        return None
    if option.name in AFTER_A_WORD and value.startswith("chardev:"):
        return "chardev:" + rename(value.removeprefix("chardev:"))
    if option.name in ("set", "global"):
        # -set device.ID.chardev=ID, -global isa-serial.chardev=ID
        matched = ASSIGNMENT.fullmatch(value)
        return None if matched is None else f"{matched[1]}={rename(matched[2])}"
    if option.name not in IMPLIED:
        return None
    if value.startswith("{"):
        try:
            properties = keyval.parse_options(value, "")
        except ConfigError:
            return None
        return json.dumps(_renamed(properties, rename), separators=(",", ":"))
    pairs = list(keyval.key_values(value, IMPLIED[option.name]))
    if not any(key in KEYS for key, _ in pairs):
        return None
    return keyval.to_text((key, rename(text) if key in KEYS else text) for key, text in pairs)


def _renamed(value: object, rename: Callable[[str], str]) -> object:
    if isinstance(value, dict):
        return {
            key: rename(inner) if key in KEYS and isinstance(inner, str) else _renamed(inner, rename)
            for key, inner in value.items()
        }
    return [_renamed(inner, rename) for inner in value] if isinstance(value, list) else value
