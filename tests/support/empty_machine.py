"""A machine with nothing but what a page says it needs: an unpacked Debian with Python, in namespaces of its own."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from support.fetched import fetch_or_skip
from support.waiting import wait_until

from virtserial.rig.cell import Cell
from virtserial.rig.programs import programs

PACKAGES = ("python3", "coreutils", "dash", "socat")
ACCOUNTS = {"/etc/passwd": "root:x:0:0::/root:/bin/sh\n", "/etc/group": "root:x:0:\n"}


class EmptyMachine:
    """Runs commands in the root of a cell.

    Args:
        pid: a process whose root it is.
    """

    def __init__(self, pid):
        self._pid = pid

    def command(self, *words, network=True):
        """The words that run a command there, with no variables but PATH, HOME and TERM.

        Args:
            network: False: with no network but a loopback device that is down; only as root.
        """
        rights = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        alone = ["unshare", "--net"] if not network and os.geteuid() == 0 else []
        there = [*alone, "nsenter", f"--target={self._pid}", *rights, "--mount", "--pid", "--root", "--wdns=/"]
        path = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return [*there, "/usr/bin/env", "-i", f"PATH={path}", "HOME=/root", "TERM=dumb", *words]

    def path(self, name):
        """A path of the machine, as this one reaches it."""
        return f"/proc/{self._pid}/root{name}"


@contextlib.contextmanager
def empty_machine(programs_there=(), shared=(), root=None):
    """Start one; it ends with all that it runs.

    Args:
        programs_there: files to copy into its /usr/local/bin: pairs of a name and a path.
        shared: folders that are there at the same place.
        root: an installed Debian, which stays as it is; default: PACKAGES, unpacked.
    """
    lower, files = (root, {}) if root else (fetch_or_skip(programs, *PACKAGES).root, ACCOUNTS)
    with tempfile.TemporaryDirectory(prefix="vs-") as scratch:
        cell = Cell(lower, Path(scratch), shared, files)
        binaries = Path(scratch, "written/usr/local/bin")
        binaries.mkdir(parents=True)
        for name, source in programs_there:
            (binaries / name).write_bytes(Path(source).read_bytes())
            (binaries / name).chmod(0o755)
        with cell:
            process = fetch_or_skip(cell.start, ["/bin/sleep", "infinity"], Path(scratch, "output"))
            yield EmptyMachine(_process_in(process.pid))


def _children(pid):
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _process_in(pid):
    """The program of the cell: the innermost child, once it is the program."""
    found = []

    def is_there():
        found[:] = [pid]
        while children := _children(found[0]):
            found[:] = children[:1]
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{found[0]}/exe").endswith("/sleep")
        return False

    wait_until(is_there, 20, "the cell has not started")
    return found[0]
