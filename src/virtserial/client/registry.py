"""The virtual machines that run here, from the entries that their keepers keep (monitor/registry.py).

Whoever may write into the folder may write entries, so an entry is followed only if the kernel confirms it:

| what it must be | else |
|---|---|
| its folder is the caller's or root's, and nobody else can replace files there | nothing in it is read |
| a regular file of one user, no link, which others cannot write | it is left alone |
| its process lives, is the same user's, and started when the entry says | that user's own commands remove it |
| that process, and no other, listens at the socket beside it | PeerError |

For root these are the entries of all users; what it shows of other users' machines is their word.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pwd
import re
import socket
import stat
import struct
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from virtserial.client.monitor import Monitor
from virtserial.daemon.keeper.run_directory import REGISTRY, registry_directory
from virtserial.errors import ConfigError, PeerError
from virtserial.monitor.registry import start_time

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = re.compile(r"([1-9][0-9]{0,9})\.json")
MAX_ENTRY = 4096
MAX_NAME = 256
USERS_FOLDERS = "/run/user/*/virtserial/vms"
ANSWER_TIME = 3.0
_LOOK_AGAIN = 0.02
_CREDENTIALS = struct.Struct("3i")


class Vm(NamedTuple):
    """A virtual machine whose keeper runs.

    Attributes:
        name: its own word.
        pid: the keeper's.
        owner: the user it runs as.
        folder: where its entry is.
    """

    name: str
    pid: int
    owner: int
    folder: str

    @property
    def user(self) -> str:
        """The owner's name."""
        try:
            return pwd.getpwuid(self.owner).pw_name
        except KeyError:
            return str(self.owner)

    def connect(self, answer_time: float = ANSWER_TIME) -> Monitor:
        """Connect to its keeper.

        Raises:
            ConfigError, PeerError: it does not answer, or it is not the keeper that answers.
        """
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(answer_time)
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._reach(connection, f"/proc/self/fd/{folder}/{self.pid}.qmp", answer_time)
            finally:
                os.close(folder)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, owner, _ = _CREDENTIALS.unpack(credentials)
            if (pid, owner) != (self.pid, self.owner):
                raise PeerError(f"VM '{self.name}': process {pid} listens in the place of {self.pid}")
        except OSError as error:
            connection.close()
            reason = error.strerror or error
            raise PeerError(f"VM '{self.name}' (process {self.pid}) does not answer: {reason}") from error
        except BaseException:
            connection.close()
            raise
        return Monitor(connection, answer_time, f"VM '{self.name}' (process {self.pid})")

    def _reach(self, connection: socket.socket, path: str, seconds: float) -> None:
        """Connect; a keeper that changes to newer code does not listen until that has begun, and is waited for.

        Raises:
            OSError: nobody listens; where the process lives, after so many seconds.
        """
        limit = time.monotonic() + seconds
        while True:
            try:
                connection.connect(path)
            except (ConnectionRefusedError, FileNotFoundError):
                if time.monotonic() >= limit or not os.path.exists(f"/proc/{self.pid}"):
                    raise
                time.sleep(_LOOK_AGAIN)
            else:
                return

    def inventory(self, *, ping: bool = False) -> dict[str, Any]:
        """What it serves: see monitor/inventory.py.

        Args:
            ping: let the keeper ask its worker for a sign of life; a later answer has the result.

        Raises:
            ConfigError, PeerError: it does not answer.
        """
        with self.connect() as monitor:
            answer = monitor.execute("x-virtserial-inventory", {"ping": True} if ping else None)
        if not isinstance(answer, dict) or not all(
            isinstance(answer.get(part), list) and all(isinstance(each, dict) for each in answer[part])
            for part in ("controllers", "ports")
        ):
            raise PeerError(f"VM '{self.name}': its inventory makes no sense")
        return answer

    def restart(self, *, with_keeper: bool = True) -> None:
        """Begin to upgrade its worker, and its keeper where that can be: not under virtserial-qemu.

        Raises:
            ConfigError, PeerError: it does not answer, or refuses.
        """
        with self.connect() as monitor:
            whole = with_keeper and bool(monitor.execute("x-virtserial-query").get("keeper-can-restart"))
            monitor.execute("x-virtserial-restart", {"keeper": True} if whole else {})


def registry_folders() -> list[str]:
    """Return where entries are looked for: for root all users' folders."""
    folders = [registry_directory()]
    if os.geteuid() == 0 and not os.environ.get(REGISTRY):
        folders += sorted(glob.glob(USERS_FOLDERS))
    return folders


def running_vms() -> list[Vm]:
    """Return every VM of this user, for root of all users, by name."""
    return sorted(vm for folder in registry_folders() for vm in _vms_of(folder))


def find_vm(name: str) -> Vm:
    """Return the VM of a name, or of its keeper's process number.

    Raises:
        ConfigError: there is none, or more than one.
    """
    vms = running_vms()
    found = [vm for vm in vms if vm.name == name] or [vm for vm in vms if str(vm.pid) == name]
    if len(found) > 1:
        pids = ", ".join(str(vm.pid) for vm in found)
        raise ConfigError(f"{len(found)} VMs are called '{name}': say which by its process, {pids}")
    if not found:
        raise ConfigError(f"no VM called '{name}' runs here", suggestion(name, [vm.name for vm in vms]))
    return found[0]


def suggestion(name: str, known: list[str]) -> str:
    """A hint at the nearest names, or at all if they are few."""
    import difflib

    near = difflib.get_close_matches(name, known, 3) or ([] if len(known) > 8 else known)
    if not near:
        return f"there are {len(known)}; `virtserial ls` and `virtserial ports` list them" if known else "there is none"
    quoted = ", ".join(f"'{each}'" for each in near)
    return f"did you mean {quoted}?" if near is not known else f"there is: {quoted}"


def _vms_of(path: str) -> Iterator[Vm]:
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        status = os.fstat(folder)
        is_own = os.geteuid() in (0, status.st_uid) or status.st_uid == 0
        if not is_own or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
            return
        for name in os.listdir(folder):
            if (matched := ENTRY.fullmatch(name)) is not None:
                vm = _read_entry(folder, path, name, int(matched[1]))
                if vm is not None:
                    yield vm
    finally:
        os.close(folder)


def _read_entry(folder: int, path: str, name: str, pid: int) -> Vm | None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o022 or status.st_nlink != 1:
            return None
        if os.geteuid() not in (0, status.st_uid):
            return None
        try:
            entry = json.loads(file.read(MAX_ENTRY))
            told, started, vm_name = entry["pid"], entry["start"], entry["name"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
    try:
        lives = start_time(pid) == started and _user_of(pid) == status.st_uid
    except OSError:
        lives = False
    if not lives:
        if status.st_uid == os.geteuid():
            _remove(folder, pid)
        return None
    if told != pid or not isinstance(vm_name, str) or not vm_name:
        return None
    return Vm(vm_name[:MAX_NAME], pid, status.st_uid, path)


def _user_of(pid: int) -> int:
    """The user a process runs as.  (/proc/PID itself belongs to root, if the process cannot be traced.)"""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return next(int(line.split()[2]) for line in file if line.startswith("Uid:"))


def _remove(folder: int, pid: int) -> None:
    """Remove what a killed keeper has left."""
    for ending in ("json", "qmp"):
        with contextlib.suppress(OSError):
            os.unlink(f"{pid}.{ending}", dir_fd=folder)
