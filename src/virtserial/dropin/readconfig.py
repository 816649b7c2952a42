"""-readconfig: QEMU's INI files (util/qemu-config.c), read as options.

    [device "ser0"]
      driver = "virtio-serial-pci"

is `-device driver=virtio-serial-pci,id=ser0`.  QEMU reads a file itself unless something in it concerns the drop-in.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, NamedTuple

from virtserial.dropin.command_line import Option
from virtserial.dropin.drivers import is_virtio_serial
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

GROUP_WITH_ID = re.compile(r'\[([^] "]{1,63}) "([^"]{1,63})"\]')
GROUP = re.compile(r"\[([^]]{1,63})\]")
KEY = re.compile(r'\s*([^\s=]{1,63})\s*=\s*"([^"]{0,1023})"')

OPTIONS = {"memory": "m", "smp-opts": "smp", "boot-opts": "boot", "acpi": "acpitable"}
"""Options that are not named like their group."""
RELEVANT_GROUPS = ("chardev", "mon", "memory", "machine", "add-fd", "numa", "global")


class Group(NamedTuple):
    """A section of such a file."""

    name: str
    id: str | None
    values: dict[str, str]


def read_config_files(options: Sequence[Option]) -> list[Option]:
    """Return the options, with each -readconfig that concerns the drop-in replaced by the file's options.

    An unreadable or malformed file stays: QEMU reports it.  A pipe can be read only once, so it is always replaced.

    Raises:
        ConfigError: a pipe's content is malformed.
    """
    result: list[Option] = []
    for option in options:
        if option.name != "readconfig" or option.value is None:
            result.append(option)
            continue
        groups, is_consumed = _read(option.value)
        if is_consumed and groups is None:
            raise ConfigError(f"{option.text}: parse error")
        if groups is not None and (is_consumed or any(map(_is_relevant, groups))):
            result += map(_option_of, groups)
        else:
            result.append(option)
    return result


def _read(path: str) -> tuple[list[Group] | None, bool]:
    """Return (the groups, or None if unreadable or malformed; whether reading has consumed the file)."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return parse(file.read()), not stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:
        return None, False


def parse(text: str) -> list[Group] | None:
    """Return the groups of a file; None if it is malformed."""
    groups: list[Group] = []
    for line in text.split("\n"):
        if not line.strip() or line.startswith("#"):
            continue
        if matched := GROUP_WITH_ID.match(line):
            groups.append(Group(matched[1], matched[2], {}))
        elif matched := GROUP.match(line):
            groups.append(Group(matched[1], None, {}))
        elif (matched := KEY.match(line)) and groups:
            groups[-1].values[matched[1]] = matched[2]
        else:
            return None
    return groups


def _is_relevant(group: Group) -> bool:
    if group.name == "device":
        return is_virtio_serial(group.values.get("driver", ""))
    if group.name == "object":
        return group.values.get("qom-type", "").startswith(("memory-backend-", "tls-creds-"))
    return group.name in RELEVANT_GROUPS


def _option_of(group: Group) -> Option:
    values = {"id": group.id, **group.values} if group.id is not None else group.values
    argument = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in values.items() if value is not None)
    name = OPTIONS.get(group.name, group.name)
    return Option(name, argument, [f"-{name}", argument], from_file=True)
