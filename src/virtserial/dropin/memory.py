"""Make guest memory shareable: QEMU's RAM becomes memory-backend-memfd,share=on, which is sealed.

QEMU's rules are those of system/vl.c (parse_memory_options, qemu_resolve_machine_memdev) and hw/core/machine.c.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from virtserial.dropin.command_line import Option, arguments_of
from virtserial.errors import ConfigError
from virtserial.options import keyval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MEMFD = "memory-backend-memfd"
CONVERTIBLE = ("memory-backend-ram", "memory-backend-file", "memory-backend-shm", MEMFD)
FILE_ONLY = ("mem-path", "align", "offset", "discard-data", "pmem", "readonly", "rom")
"""Properties of memory-backend-file that a memfd does not have."""
MEANS_THE_FILE = ("offset", "pmem", "readonly", "rom")
"""Those of them that say that the file's content matters."""
NEED_THEIR_BACKEND = ("nvdimm", "virtio-pmem-pci", "virtio-pmem-device", "ivshmem-plain")
"""Devices whose memory is a file or shared on purpose, not RAM."""

DEFAULT_SIZE = 128 << 20
SIZE_UNIT = 8192
"""Machines round their memory up to a multiple of this (machine_set_mem)."""
RAM_IDS = {
    # Proxmox VE's QEMU has its machines twice: `pc+pve0` and `pc-q35-9.2+pve1` are versions of the plain ones.
    "x86_64": ((r"(pc|q35|pc-(i440fx|q35)-[0-9.]+)(\+pve[0-9]+)?", "pc.ram"), (r"microvm", "microvm.ram")),
    "aarch64": ((r"virt(-.*)?", "mach-virt.ram"),),
    "riscv64": ((r"virt", "riscv_virt_board.ram"),),
}
"""By architecture: machines that take -machine memory-backend=, and QEMU's id for their RAM."""
DEFAULT_MACHINE = {"x86_64": "pc"}


class Machine(NamedTuple):
    """The content of -machine and -m.

    Attributes:
        backend: memory-backend=, or None.
        size: bytes of RAM; None if the given size is invalid.
    """

    type: str | None
    backend: str | None
    size: int | None


def read_machine(options: Sequence[Option], architecture: str) -> Machine:
    """Return the machine that the options describe."""
    properties: dict[str, str] = {}
    for _, value in arguments_of(options, "machine", "M"):
        properties |= {key.replace("_", "-"): text for key, text in keyval.key_values(value, "type")}
    size: int | None = DEFAULT_SIZE
    try:
        if "memory.size" in properties:
            size = keyval.to_size("size", properties["memory.size"])
        for _, value in arguments_of(options, "m"):
            if (given := dict(keyval.key_values(value, "size")).get("size")) is not None:
                # A bare number is in mebibytes.
                size = keyval.to_size("size", given + "M" if given[-1:].isdigit() else given)
    except ConfigError:
        size = None
    if size is not None:
        size = -(-(size or DEFAULT_SIZE) // SIZE_UNIT) * SIZE_UNIT
    kind = properties.get("type", DEFAULT_MACHINE.get(architecture))
    return Machine(kind, properties.get("memory-backend"), size)


def make_shareable(
    options: Sequence[Option], architecture: str, remarks: list[str], *, has_controller: bool = True
) -> list[str]:
    """Make guest memory shareable: change its back ends in place, or return the options that add one.

    Raises:
        ConfigError: a controller of ours would see other memory than the guest's.
    """
    machine = read_machine(options, architecture)
    kept = _kept_backends(options)
    ids: set[str] = set()
    for option, value in arguments_of(options, "object"):
        properties = keyval.parse_options(value, "qom-type")
        if not str(properties.get("qom-type")).startswith("memory-backend-"):
            continue
        ids.add(str(properties.get("id")))
        if str(properties.get("id")) not in kept:
            if has_controller:
                _refuse_unreachable(option, properties)
            _share_option(option, value, properties, remarks)
    if machine.backend is not None:
        if machine.backend not in ids:
            remarks.append(f"guest memory: there is no -object {machine.backend}; if it is not shared, ports are slow")
        return []
    if any("memdev" in dict(keyval.key_values(value, "type")) for _, value in arguments_of(options, "numa")):
        return []
    return _add_backend(options, machine, architecture, ids, remarks)


def _add_backend(
    options: Sequence[Option], machine: Machine, architecture: str, ids: set[str], remarks: list[str]
) -> list[str]:
    known = RAM_IDS.get(architecture, ())
    ram_id = next((name for pattern, name in known if re.fullmatch(pattern, machine.type or "")), None)
    if ram_id is None or machine.size is None:
        if machine.size is not None:
            remarks.append(
                f"guest memory: cannot give machine {machine.type or '(default)'} a memory back end; "
                f"every access is a message to QEMU, which is slow"
            )
        return []
    if ram_id in ids:
        ram_id = "virtserial-ram"
    pairs: list[tuple[str, object]] = [("id", ram_id), ("size", _size_text(machine.size)), ("share", "on")]
    for option, path in arguments_of(options, "mem-path"):
        option.replace()
        pairs += huge_pages(path)
        if len(pairs) == 3:
            remarks.append(f"guest memory: ignoring -mem-path {path}: shared memory is a memfd")
    return ["-object", f"{MEMFD},{keyval.to_text(pairs)}", "-machine", f"memory-backend={ram_id}"]


def _size_text(size: int) -> str:
    return f"{size >> 20}M" if size % (1 << 20) == 0 else f"{size >> 10}K"


def _kept_backends(options: Sequence[Option]) -> set[str]:
    kept: set[str] = set()
    for _, value in arguments_of(options, "device"):
        device = keyval.parse_options(value, "driver")
        if device.get("driver") in NEED_THEIR_BACKEND:
            kept.add(str(device.get("memdev")))
    return kept


def _refuse_unreachable(option: Option, properties: Mapping[str, object]) -> None:
    """Refuse a file from which the device cannot find the guest's memory (seen with QEMU 11.1.3)."""
    if properties.get("qom-type") not in CONVERTIBLE or why_it_stays(properties) is None:
        return
    why = None
    if properties.get("offset") not in (None, "0", 0):
        why = "QEMU does not tell the device offset="
    elif properties.get("share") is not True and properties.get("share") not in keyval.ON:
        why = "without share=on it is a private copy of the file"
    if why is not None:
        raise ConfigError(
            f"{option.text}: virtserial's virtio-serial controllers cannot reach the guest's memory there: {why}"
        )


def _share_option(option: Option, value: str, properties: Mapping[str, object], remarks: list[str]) -> None:
    if (reason := why_it_stays(properties)) is not None:
        remarks.append(f"{option.text}: {reason}; if it is the guest's memory, ports are slow")
        return
    if value.startswith("{"):
        shared = share_object(properties)
        if shared != properties:
            option.replace_value(json.dumps(shared, separators=(",", ":")))
        return
    changes, dropped = _changes(properties, "on")
    if changes or dropped:
        pairs = [pair for pair in keyval.key_values(value, "qom-type") if pair[0] not in (*dropped, *changes)]
        kind = str(changes.pop("qom-type", properties["qom-type"]))
        pairs = [pair for pair in pairs if pair[0] != "qom-type"]
        option.replace_value(f"{kind},{keyval.to_text([*pairs, *changes.items()])}")


def share_object(properties: Mapping[str, object]) -> dict[str, object]:
    """Return the properties of an object (as JSON), a memory back end as a shared memfd.

    Others, and those that cannot be shared (`why_it_stays`), are returned unchanged.
    """
    if why_it_stays(properties) is not None or properties.get("qom-type") not in CONVERTIBLE:
        return dict(properties)
    changes, dropped = _changes(properties, True)
    return {name: value for name, value in properties.items() if name not in dropped} | changes


def why_it_stays(properties: Mapping[str, object]) -> str | None:
    """Return why a memory back end cannot become a memfd; None if it can, or is another object."""
    kind = str(properties.get("qom-type"))
    if not kind.startswith("memory-backend-"):
        return None
    if kind not in CONVERTIBLE:
        return f"{kind} cannot become a memfd"
    for name in MEANS_THE_FILE:
        if properties.get(name) not in (None, "off", "no", "false", "n", "0", "auto", False, 0):
            return f"{name}={properties[name]} needs the file itself"
    return None


def _changes(properties: Mapping[str, object], on: object) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return (properties to set, names to drop) that make a memory back end a shared memfd."""
    changes: dict[str, object] = {}
    if properties["qom-type"] != MEMFD:
        changes["qom-type"] = MEMFD
    shared = properties.get("share", properties["qom-type"] == MEMFD)
    if shared is not True and shared not in keyval.ON:
        changes["share"] = on
    if properties["qom-type"] != "memory-backend-file":
        return changes, ()
    typed = on is True
    for name, value in huge_pages(str(properties.get("mem-path", ""))):
        changes[name] = on if name == "hugetlb" else keyval.to_size(name, value) if typed else value
    return changes, FILE_ONLY


def huge_pages(path: str) -> list[tuple[str, str]]:
    """Return the properties of a memfd with the huge pages of `path`'s file system; none if that has no huge pages."""
    path = os.path.realpath(path)
    best, kind = "", ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.split()
                place = fields[4].encode().decode("unicode_escape") if "\\" in fields[4] else fields[4]
                if (path + "/").startswith(place.rstrip("/") + "/") and len(place) >= len(best):
                    best, kind = place, fields[fields.index("-") + 1]
        if kind == "hugetlbfs":
            return [("hugetlb", "on"), ("hugetlbsize", _size_text(os.statvfs(best).f_bsize))]
    except (OSError, ValueError):
        pass
    return []
