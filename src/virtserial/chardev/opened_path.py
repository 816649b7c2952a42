"""Opens a file by its path, or duplicates the descriptor that a path names (`/proc/self/fd/N`)."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtserial.chardev.reach import Reach

OWN_DESCRIPTOR = re.compile(r"/proc/self/fd/([0-9]{1,9})")

DESCRIPTOR_SETS = "/dev/fdset/"
"""Where QEMU's paths into its sets of descriptors begin."""


def named_files(*paths: str | None) -> list[str]:
    """The paths that name files: a path into a descriptor set does not."""
    return [path for path in paths if path is not None and not path.startswith(DESCRIPTOR_SETS)]


def open_path(path: str, flags: int, reach: Reach) -> int:
    """Return a descriptor that never waits; flags: os.O_RDONLY, O_WRONLY, O_CREAT, O_TRUNC, O_APPEND.

    A descriptor is duplicated, as QEMU does for its sets: opening the file anew needs rights that
    perhaps only the process had that passed it.

    Raises:
        OSError: it cannot be opened.
    """
    matched = OWN_DESCRIPTOR.fullmatch(path)
    if matched is None:
        return reach.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    fd = os.dup(int(matched[1]))
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK | (flags & os.O_APPEND))
        if flags & os.O_TRUNC and stat.S_ISREG(os.fstat(fd).st_mode):
            os.ftruncate(fd, 0)
    except OSError:
        os.close(fd)
        raise
    return fd
