"""fstat(2) by its own system call.

glibc's fstat calls newfstatat, which takes a path: the worker's sandbox refuses that, because a filter cannot see that
the path is empty.
"""

from __future__ import annotations

import ctypes
import os
from struct import Struct
from typing import Final, NamedTuple

_SYS_FSTAT: Final = 5
_STAT: Final = Struct("=QQ32xqq80x")
"""struct stat of x86-64: st_dev, st_ino, then st_size and st_blksize at 48 and 56 of 144 bytes."""
_syscall: Final = ctypes.CDLL(None, use_errno=True).syscall
_buffer: Final = ctypes.create_string_buffer(_STAT.size)


class FileStatus(NamedTuple):
    """What a mapping needs to know of a file; sizes in bytes."""

    device: int
    inode: int
    size: int
    block_size: int


def status_of(fd: int) -> FileStatus:
    """Return the status of an open file.

    Raises:
        OSError: `fd` is not open.
    """
    if _syscall(_SYS_FSTAT, fd, _buffer):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return FileStatus(*_STAT.unpack_from(_buffer))
