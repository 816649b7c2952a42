"""Runs a program of Debian's that expects its files at fixed places, with the unpacked packages as its root.

Mount and process namespaces of its own and an overlay: what it writes goes to a scratch folder, what it starts ends
with it, and the machine sees nothing of either.  As root, or where user namespaces may be made by everybody.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Self

from virtserial.rig.cache import RigUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

# Process 1 of the cell: it mounts, starts the program, and reaps what the program leaves behind.
START = """
set -e
mount -t overlay overlay -o "lowerdir=$CELL_LOWER,upperdir=$CELL_SCRATCH/written,workdir=$CELL_SCRATCH/work" \
    "$CELL_SCRATCH/root"
cd "$CELL_SCRATCH/root"
mkdir -p dev sys proc tmp run
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
for path in $CELL_SHARED; do
    mkdir -p ".$path"
    mount --rbind "$path" ".$path"
done
unset CELL_LOWER CELL_SHARED
root=$CELL_SCRATCH/root
unset CELL_SCRATCH
chroot "$root" "$@" &
trap 'kill -TERM $!' TERM
until wait $!; do kill -0 $! 2>/dev/null || break; done
"""
PROGRAMS = ("unshare", "mount", "chroot")


class Cell:
    """A root file system for one program at a time.

    Args:
        lower: the unpacked packages.
        scratch: an empty folder for what is written; its name has no blanks, commas or colons.
        shared: folders and files of the machine that are at the same place inside.
        files: what is there beside the packages: absolute path to content.
    """

    def __init__(self, lower: Path, scratch: Path, shared: Iterable[Path], files: Mapping[str, str]) -> None:
        self._lower, self._scratch, self._shared = lower, scratch, [str(path) for path in shared]
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("written", "work", "root"):
            (scratch / name).mkdir()
        for name, content in files.items():
            path = scratch / "written" / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            path.chmod(0o755)

    def start(self, command: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
        """Start a program; it ends with the cell, and its children with it.

        Raises:
            RigUnavailable: this machine lets nobody make such a cell.
        """
        settings = {"CELL_LOWER": self._lower, "CELL_SCRATCH": self._scratch, "CELL_SHARED": " ".join(self._shared)}
        environment = {name: str(value) for name, value in settings.items()}
        with output.open("wb") as said:
            self._process = subprocess.Popen(
                [*_unshare(), "sh", "-c", START, "sh", *command],
                env={**environment, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/root"},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        return self._process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        # The overlay's work folder has a folder of the kernel's, without permissions.
        shutil.rmtree(self._scratch, ignore_errors=True)


def _unshare() -> list[str]:
    for program in PROGRAMS:
        if not shutil.which(program):
            raise RigUnavailable(f"{program} is not on this machine: no root of a test's own")
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *rights, "--mount", "--pid", "--fork", "--kill-child"]
    done = subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True)
    if done.returncode:
        raise RigUnavailable(f"namespaces are not allowed on this machine: {done.stderr.strip()}")
    return command
