"""fstat(2) and fstatfs(2) by their own system calls.

glibc's fstat calls newfstatat, which takes a path: the worker's sandbox refuses that, because a filter cannot see that
the path is empty.  Python's fstatvfs does not tell a file system's type.
"""

from __future__ import annotations

import ctypes
import os
from struct import Struct
from typing import Final

from virtserial.named_tuple import NamedTuple

_SYS_FSTAT: Final = 5
_SYS_FSTATFS: Final = 138
_HUGETLBFS_MAGIC: Final = 0x958458F6
_STAT: Final = Struct("=QQ32xqq80x")
"""struct stat of x86-64: st_dev, st_ino, then st_size and st_blksize at 48 and 56 of 144 bytes."""
_FILE_SYSTEM: Final = Struct("=q")
"""The first field of struct statfs (120 bytes): f_type."""
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
    _ask(_SYS_FSTAT, fd)
    return FileStatus(*_STAT.unpack_from(_buffer))


def has_huge_pages(fd: int) -> bool:
    """Whether a file is on hugetlbfs: it can be mapped but not written, and a hole in it may be SIGBUS.

    Raises:
        OSError: `fd` is not open, or its file system does not answer.
    """
    _ask(_SYS_FSTATFS, fd)
    return bool(_FILE_SYSTEM.unpack_from(_buffer)[0] == _HUGETLBFS_MAGIC)


def _ask(system_call: int, fd: int) -> None:
    if _syscall(system_call, fd, _buffer):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
