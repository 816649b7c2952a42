"""How a chardev uses a path: freely, as the operator, or inside allowed folders only (daemon/keeper/path_policy.py).

A check of a path and the use of it are two moments, between which whoever may write in a folder can put a symbolic link
in its place.  So a chardev does not use paths itself: it asks its `reach`, which checks and uses in one step.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


class Reach(Protocol):
    """Uses paths for a chardev."""

    def open(self, path: str, flags: int) -> int:
        """Open as os.open does, with permissions 0666 less the umask.

        Raises:
            OSError: it cannot be opened.
            ConfigError: the path is not allowed.
        """
        ...

    def at(self, path: str) -> AbstractContextManager[str]:
        """While it is entered: a path for bind, lstat, unlink, readlink and symlink, which follow no link at its end.

        Raises:
            ConfigError: the path is not allowed.
        """
        ...

    def socket_at(self, path: str) -> AbstractContextManager[str]:
        """While it is entered: a path for connect.

        Raises:
            OSError: nothing is there.
            ConfigError: the path is not allowed.
        """
        ...


class _Anywhere:
    """The operator's paths are used as they are."""

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags, 0o666)

    @contextlib.contextmanager
    def at(self, path: str) -> Iterator[str]:
        yield path

    socket_at = at


ANYWHERE: Reach = _Anywhere()
