"""A QEMU that speaks vfio-user: the system's if it is new enough, else Debian's backport unpacked in a folder.

vfio-user-pci came with QEMU 10.1.  $VIRTSERIAL_QEMU names a program to use; else `qemu-system-x86_64` on PATH; else
the packages are fetched (37 MB) and run through the folder's own loader, so that neither root nor a matching libc is
needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

from virtserial.rig.cache import RigUnavailable, build_once
from virtserial.rig.debian import PackageSet, unpack

if TYPE_CHECKING:
    from pathlib import Path

QEMU_VERSION = "1:11.1.3+ds-1~bpo13+1"
OLDEST_VERSION = (10, 1)
PACKAGES = PackageSet(
    release="trixie",
    backports=True,
    wanted=(f"qemu-system-x86={QEMU_VERSION}",),
    fallback=("qemu-system-x86",),
)
LIBRARIES = "usr/lib/x86_64-linux-gnu"


@dataclass(frozen=True, slots=True)
class QemuProgram:
    """How to start a QEMU: the words of the command line that come before its own options, and its environment."""

    command: tuple[str, ...]
    version: tuple[int, ...]
    environment: dict[str, str] = field(default_factory=dict)


@cache
def find_qemu() -> QemuProgram:
    """The QEMU for tests; see the module's text for the order.

    Raises:
        RigUnavailable: no QEMU >= 10.1 here and none can be fetched, or $VIRTSERIAL_QEMU is too old.
    """
    if chosen := os.environ.get("VIRTSERIAL_QEMU"):
        program = _probe((chosen,))
        if program is None or program.version < OLDEST_VERSION:
            raise RigUnavailable(f"VIRTSERIAL_QEMU={chosen} is not a QEMU >= 10.1")
        return program
    if found := shutil.which("qemu-system-x86_64"):
        program = _probe((found,))
        if program is not None and program.version >= OLDEST_VERSION:
            return program
    folder = build_once(f"qemu-{QEMU_VERSION.partition(':')[2]}", _fetch)
    program = _probe(*_command_in(folder))
    if program is None:
        raise RigUnavailable(f"the QEMU unpacked in {folder} does not run")
    return program


def _fetch(folder: Path) -> None:
    unpack(PACKAGES, folder)
    program = _probe(*_command_in(folder))
    if program is None or program.version < OLDEST_VERSION:
        raise RigUnavailable("the QEMU that was fetched does not run here")


def _command_in(folder: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    data = [("-L", str(folder / name)) for name in ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")]
    command = (
        str(folder / LIBRARIES / "ld-linux-x86-64.so.2"),
        "--library-path", str(folder / LIBRARIES),
        str(folder / "usr/bin/qemu-system-x86_64"),
        *chain.from_iterable(data),
    )  # fmt: skip
    return command, {"QEMU_MODULE_DIR": str(folder / LIBRARIES / "qemu")}


def _probe(command: tuple[str, ...], environment: dict[str, str] | None = None) -> QemuProgram | None:
    """Runs --version; None if that is not a QEMU."""
    environment = environment or {}
    try:
        done = subprocess.run(
            [*command, "--version"], env={**os.environ, **environment}, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", done.stdout)
    return QemuProgram(command, tuple(map(int, match.groups())), environment) if match else None
