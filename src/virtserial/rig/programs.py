"""Debian's programs for tests of real clients, run where they were unpacked: no root, nothing installed.

A program is started through the folder's own loader, so that no matching libc is needed; what looks for its files at
fixed places (libvirtd, libguestfs) is run in a `Cell` (rig/cell.py) instead.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from virtserial.rig.cache import RigUnavailable, build_once
from virtserial.rig.debian import PackageSet, unpack

RELEASE = "bookworm"
FOLDERS = ("usr/bin", "bin", "usr/sbin", "sbin")
LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
LOADER = "lib64/ld-linux-x86-64.so.2"


@dataclass(frozen=True, slots=True)
class Programs:
    """A folder of unpacked packages."""

    root: Path

    def path(self, name: str) -> Path:
        """A program's file.

        Raises:
            RigUnavailable: the packages have no such program.
        """
        for folder in FOLDERS:
            if (path := self.root / folder / name).exists():
                return path
        raise RigUnavailable(f"no program {name} in {self.root}")

    def command(self, name: str) -> list[str]:
        """The words that start a program, before its own arguments.

        Raises:
            RigUnavailable: the packages have no such program.
        """
        return [*self._loader(), str(self.path(name))]

    def guest_files(self, *names: str) -> dict[str, bytes]:
        """Programs and the libraries they need, as `files` of a Guest.

        Raises:
            RigUnavailable: a program or a library is not in the packages.
        """
        files = {}
        for name in names:
            path = self.path(name)
            files[f"/{path.relative_to(self.root)}"] = path.read_bytes()
            files |= self.guest_libraries(path)
        return files

    def guest_libraries(self, program: Path) -> dict[str, bytes]:
        """The libraries that a program needs, as `files` of a Guest.

        Raises:
            RigUnavailable: one is not in the packages.
        """
        listed = subprocess.run([*self._loader(), "--list", str(program)], capture_output=True, text=True).stdout
        if "not found" in listed:
            raise RigUnavailable(f"{program} lacks a library: {listed}")
        found = re.findall(rf"=> ({re.escape(str(self.root))}/\S+)", listed)
        return {f"/lib/x86_64-linux-gnu/{Path(path).name}": Path(path).read_bytes() for path in found}

    def _loader(self) -> list[str]:
        libraries = ":".join(str(self.root / folder) for folder in LIBRARY_FOLDERS)
        return [str(self.root / LOADER), "--library-path", libraries]


def programs(name: str, *more: str) -> Programs:
    """Debian's packages with all they depend on, fetched on first use.

    Args:
        name: the package it is about, which the cache's entry is called after.
        more: further packages.

    Raises:
        RigUnavailable: they cannot be had.
    """
    wanted = (name, *sorted(more))
    digest = hashlib.sha256(" ".join((RELEASE, *wanted)).encode()).hexdigest()[:8]
    packages = PackageSet(release=RELEASE, wanted=wanted)
    return Programs(build_once(f"programs-{name}-{digest}", lambda folder: unpack(packages, folder)))
