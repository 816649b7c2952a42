"""Which paths a monitor's client may use: without a limit, whoever reaches a monitor has the keeper's rights.

The client's partner may own an allowed folder and change links in it at any moment, so a path is checked where it is
used (chardev/reach.py):

| step | what holds |
|---|---|
| the path's real folder is inside an allowed one | links are followed here, to wherever they lead now |
| that folder is opened part by part, and no link followed | a link that came since is an error; the folder is fixed |
| the last part is used below that descriptor, and no link followed | what is opened or bound lies in it |

openat2(RESOLVE_NO_SYMLINKS) would do the second step at once; but systemd's RestrictSUIDSGID= makes it ENOSYS.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
    fd = os.open("/", _FOLDER)
    for part in filter(None, folder.split("/")):
        try:
            below = os.open(part, _FOLDER, dir_fd=fd)
        except NotADirectoryError as error:
            raise OSError(error.errno, "a symbolic link has just taken its place", folder) from error
        finally:
            os.close(fd)
        fd = below
    return fd
