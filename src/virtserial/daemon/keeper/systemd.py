"""What systemd and a service say to each other: readiness and status, and the descriptors it hands over.

Sources: sd_notify(3), sd_listen_fds(3), sd_pid_notify_with_fds(3); a supervisor of another name that speaks the same
is as good.
"""

from __future__ import annotations

import logging
import os
import select
import socket
from array import array
from typing import TYPE_CHECKING

from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping, Sequence

log = logging.getLogger("virtserial.keeper")

BARRIER_TIMEOUT = 5.0
SYSTEMCTL_TIMEOUT = 3.0
FIRST_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START."""
MAX_DESCRIPTORS = 253
"""SCM_MAX_FD: so many go with one message."""


def notify(*assignments: str, fds: Sequence[int] = ()) -> bool:
    """Tell the service manager something; without one that listens, nothing happens.

    Args:
        assignments: as `READY=1`, `STATUS=...`, `STOPPING=1`, `FDSTORE=1`.
        fds: descriptors that go with them, for FDSTORE=1; they stay open here.  What is above 253 is left out.

    Returns:
        Whether it was told.
    """
    name = os.environ.get("NOTIFY_SOCKET", "")
    if name[:1] not in ("/", "@"):
        return False
    address = "\0" + name[1:] if name.startswith("@") else name
    text = "\n".join(assignments).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            # socket.send_fds leaves out the address.
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds[:MAX_DESCRIPTORS]))] if fds else []
            channel.sendmsg([text], rights, 0, address)
        except OSError:
            # A manager that is gone is no reason not to serve.
            return False
    return True


def store(name: str, fd: int) -> bool:
    """Leave a descriptor in the service manager's store (FileDescriptorStoreMax=) for the next process of this service.

    Returns:
        Whether the manager has taken it in.
    """
    ours, theirs = os.pipe()
    try:
        # Whatever the descriptor's state, it is not to be dropped (FDPOLL).
        told = notify("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=[fd]) and notify("BARRIER=1", fds=[theirs])
        os.close(theirs)
        # The manager closes its end when it has handled all that came before.
        return told and bool(select.select([ours], [], [], BARRIER_TIMEOUT)[0])
    finally:
        os.close(ours)


def forget(name: str) -> None:
    """Have the service manager close what it has stored under a name."""
    notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def restarts_this_service() -> bool:
    """Whether the service manager ends this process only to start it again (`systemctl restart`), and has a store for
    what it leaves: as systemctl says."""
    unit = _own_unit()
    if unit is None or "NOTIFY_SOCKET" not in os.environ:
        return False
    try:
        jobs = _systemctl("list-jobs", "--no-legend", "--plain")
        if not any(line.split()[1:3] == [unit, "restart"] for line in jobs.splitlines()):
            return False
        room = _systemctl("show", "--property=FileDescriptorStoreMax", "--value", unit).strip()
    except OSError as error:
        log.warning("systemctl does not say whether this is a restart, so it is taken for a stop: %s", error)
        return False
    if room in ("", "0"):
        log.warning("%s has no FileDescriptorStoreMax=, so this restart is a stop and a start", unit)
        return False
    return True


def _systemctl(*words: str) -> str:
    """What systemctl prints.

    Raises:
        OSError: it cannot be started, or does not end.
    """
    import subprocess

    user = ["--user"] if "MANAGERPID" in os.environ else []
    try:
        done = subprocess.run(
            ["systemctl", "--no-pager", *user, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SYSTEMCTL_TIMEOUT,
            check=False,
        )
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from error
    if done.returncode:
        raise OSError(done.stderr.strip() or f"it ended with status {done.returncode}")
    return done.stdout


def _own_unit() -> str | None:
    """The service this process belongs to: the last part of its control group's path."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as groups:
            for line in groups:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                if controllers in ("", "name=systemd") and path.endswith(".service"):
                    return path.rpartition("/")[2]
    except (OSError, ValueError):
        pass
    return None


def take_descriptors(environment: MutableMapping[str, str] | None = None) -> list[tuple[str, int]]:
    """Take the descriptors that the service manager has passed; a second call finds none.

    Returns:
        (name, descriptor) in the order they were passed, closed on exec from now on.  Names are the socket unit's
        FileDescriptorName=, its own name by default; several descriptors may have the same.

    Raises:
        ConfigError: the variables make no sense.
    """
    environment = os.environ if environment is None else environment
    pid, count, names = (environment.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count:
        return []
    try:
        last = FIRST_DESCRIPTOR + int(count)
        descriptors = range(FIRST_DESCRIPTOR, last)
        for fd in descriptors:
            os.set_inheritable(fd, False)
    except (ValueError, OSError, OverflowError):
        raise ConfigError(f"LISTEN_FDS={count}: there are no such descriptors") from None
    words = names.split(":") if names else []
    return [(words[place] if place < len(words) else "unknown", fd) for place, fd in enumerate(descriptors)]


class ActivatedListener:
    """A listening UNIX socket that the service manager has made; its path is the manager's to remove.

    Args:
        name: the descriptor's name, for messages.
        fd: the descriptor; it is owned from now on, also when this raises.

    Raises:
        ConfigError: it is no listening UNIX stream socket.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        try:
            self.socket = socket.socket(fileno=fd)
        except OSError as error:
            os.close(fd)
            raise ConfigError(f"passed descriptor {fd} ('{name}'): {error.strerror}") from error
        listens = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        is_unix = (self.socket.family, self.socket.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
        self.path = os.fsdecode(self.socket.getsockname()) if listens and is_unix else ""
        if not self.path.startswith("/"):
            self.socket.close()
            raise ConfigError(f"passed descriptor {fd} ('{name}'): not a UNIX stream socket that listens at a path")

    def close(self) -> None:
        """Close the socket; the manager keeps listening."""
        self.socket.close()


def listeners_by_controller(
    passed: Iterable[tuple[str, int]], controllers: Sequence[str | None]
) -> dict[str | None, ActivatedListener]:
    """Give each passed socket to the controller of its name.

    Args:
        passed: what `take_descriptors` returned; all of them are owned from now on.
        controllers: the controllers' ids.  A single socket goes to a single controller whatever their names are.

    Raises:
        ConfigError: a socket is none to listen at, or no controller or two sockets have its name.
    """
    waiting = list(passed)
    alone = len(waiting) == len(controllers) == 1
    listeners: dict[str | None, ActivatedListener] = {}
    try:
        while waiting:
            name, fd = waiting.pop(0)
            listener = ActivatedListener(name, fd)
            owner = controllers[0] if alone else name
            if owner in listeners or owner not in controllers:
                listener.close()
                known = ", ".join(f"'{each}'" for each in controllers if each is not None) or "none has one"
                problem = "there are two" if owner in listeners else f"no controller has this id ({known})"
                raise ConfigError(f"passed descriptor {fd} ('{name}'): {problem}")
            listeners[owner] = listener
    except ConfigError:
        for _, fd in waiting:
            os.close(fd)
        for listener in listeners.values():
            listener.close()
        raise
    return listeners
