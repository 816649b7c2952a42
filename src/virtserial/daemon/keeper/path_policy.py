"""Which paths a monitor's client may use: without a limit, whoever reaches a monitor has the keeper's rights.

The client's partner may own an allowed folder and change links in it at any moment, so a path is checked where it is
used (chardev/reach.py):

| step | what holds |
|---|---|
| the path's real folder is inside an allowed one | links are followed here, to wherever they lead now |
| openat2(RESOLVE_NO_SYMLINKS) opens that folder | a link that came since is ELOOP; the folder is now fixed |
| the last part is used below that descriptor, and no link followed | what is opened or bound lies in it |
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from typing import TYPE_CHECKING, Final

from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SYS_OPENAT2: Final = 437
_AT_FDCWD: Final = -100
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04


class PathPolicy:
    """Paths that are allowed, each with all that lies under it; the Reach of what monitors add."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed: set[str] = set()
        self.allow(allowed)

    def allow(self, paths: Iterable[str]) -> None:
        """Allow more."""
        self._allowed.update(map(os.path.realpath, paths))

    def allowed(self) -> list[str]:
        """Return what is allowed."""
        return sorted(self._allowed)

    def check(self, paths: Iterable[str]) -> None:
        """
        Raises:
            ConfigError: one is not allowed; it says how to allow it.
        """
        for path in paths:
            self._real(path)

    def _real(self, path: str) -> str:
        real = os.path.realpath(path)
        self._check_real(path, real)
        return real

    def _check_real(self, path: str, real: str) -> None:
        if not any(os.path.commonpath((real, allowed)) == allowed for allowed in self._allowed):
            raise ConfigError(
                f"'{path}' is not a path that a monitor may use: "
                f"start virtserial serve with --allow-path {os.path.dirname(real)}"
            )

    # Reach

    def open(self, path: str, flags: int) -> int:
        """Open a file in its real folder."""
        with _folder_of(self._real(path)) as (folder, name):
            return os.open(name, flags | os.O_NOFOLLOW, 0o666, dir_fd=folder)

    @contextlib.contextmanager
    def at(self, path: str) -> Iterator[str]:
        """The last part in its real folder."""
        above, last = os.path.split(os.path.abspath(path))
        real = os.path.join(os.path.realpath(above), last)
        self._check_real(path, real)
        with _folder_of(real) as (folder, name):
            yield f"/proc/self/fd/{folder}/{name}"

    @contextlib.contextmanager
    def socket_at(self, path: str) -> Iterator[str]:
        """The socket itself."""
        fd = self.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)


@contextlib.contextmanager
def _folder_of(real: str) -> Iterator[tuple[int, str]]:
    folder, name = os.path.split(real)
    fd = _open_without_links(folder)
    try:
        yield fd, name
    finally:
        os.close(fd)


def _open_without_links(folder: str) -> int:
    """Open a folder for use as `dir_fd`; no part of its path may be a symbolic link."""
    import ctypes  # 9 ms that a start does not need

    libc = ctypes.CDLL(None, use_errno=True)
    flags, resolve = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
    how = struct.pack("=QQQ", flags, 0, resolve)  # struct open_how: flags, mode, resolve
    fd = int(libc.syscall(_SYS_OPENAT2, _AT_FDCWD, os.fsencode(folder), how, ctypes.c_size_t(len(how))))
    if fd < 0:
        error = ctypes.get_errno()
        text = "a symbolic link has just taken its place" if error == errno.ELOOP else os.strerror(error)
        raise OSError(error, text, folder)
    return fd
