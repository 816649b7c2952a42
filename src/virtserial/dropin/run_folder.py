"""The folder of one virtual machine's sockets.

Each process that uses it holds a lock on it, which ends with the process.  So the folder that a killed device process
has left is known, and removed at the next start.
"""

from __future__ import annotations

import fcntl
import os
import re

from virtserial.errors import ConfigError

NAME = re.compile("virtserial-[0-9a-f]{12}")


def choose_run_folder() -> str:
    """Return a path for the sockets of one virtual machine's controllers; it is not created yet."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        parent = "/run"
    elif runtime and os.access(runtime, os.W_OK):
        parent = runtime
    else:
        parent = os.environ.get("TMPDIR", "/tmp")
    return os.path.join(parent, f"virtserial-{os.urandom(6).hex()}")


def run_folder_of(place: str) -> str:
    """Return the folder of a virtual machine that runs.

    Args:
        place: its path, or the process id of the machine's QEMU, whose command line names it.

    Raises:
        ConfigError: there is none.
    """
    if not place.isdecimal():
        if not os.path.isdir(place):
            raise ConfigError(f"{place}: no run directory of a virtserial-qemu")
        return place
    try:
        with open(f"/proc/{place}/cmdline", "rb") as file:
            words = os.fsdecode(file.read())
    except OSError as error:
        raise ConfigError(f"process {place}: {error.strerror}") from None
    found = re.search(rf'"path":"(/[^"]*/{NAME.pattern})/', words)
    if found is None:
        raise ConfigError(f"process {place} is no QEMU with a virtio-serial controller of virtserial's")
    return found[1]


def make_run_folder(path: str) -> int:
    """Make the folder, after removing those beside it that nobody uses any more; return what holds it (`hold`).

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        _sweep(os.path.dirname(path))
        while True:
            os.mkdir(path, 0o700)
            held = hold(path)
            # Somebody who swept between the two has removed it.
            if os.path.exists(path):
                return held
            os.close(held)
    except OSError as error:
        raise ConfigError(f"Could not create '{path}': {error.strerror}") from None


def hold(path: str) -> int:
    """Return a descriptor; while any is open, the folder is in use.

    Raises:
        OSError: there is no such folder.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def _sweep(parent: str) -> None:
    for entry in os.scandir(parent):
        if not NAME.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
            continue
        if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
            _remove_if_unused(entry.path)


def _remove_if_unused(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _has_sockets(path):
            import shutil

            shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass  # It is in use.
    finally:
        os.close(fd)


def _has_sockets(path: str) -> bool:
    """Whether somebody still has a socket that was bound there: a device process of a version before the lock."""
    with open("/proc/net/unix", "rb") as table:
        return os.fsencode(path) + b"/" in table.read()
