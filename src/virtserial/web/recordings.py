"""The recordings of a folder: asciicast v2 (docs/recording.md), which the page plays.

A recording is shown to whom its port is shown: the port's name is its title.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import stat
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from virtserial.errors import ConfigError
from virtserial.web.people import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from virtserial.web.hub import Hub
    from virtserial.web.people import User

ENDING: Final = ".cast"
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:+-]{0,200}\.cast")
MAX_HEADER: Final = 64 << 10
MAX_LISTED: Final = 1000
MAX_PLAYED: Final = 64 << 20
"""Bytes of a recording that is played: the page holds all of it."""
MAX_FOLDER: Final = 1 << 30
"""Bytes in the folder, up to which new recordings are begun."""


class Listed(NamedTuple):
    """A recording.

    Attributes:
        title: the port.
        begun: seconds since 1970.
        size: bytes.
    """

    name: str
    title: str
    begun: int
    size: int


class Recordings:
    """
    Args:
        folder: where they are; "" for nowhere.
        limit: the most bytes of a new one.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.folder = folder
        self._limit = limit
        if folder and not os.path.isdir(folder):
            raise ConfigError(f"--recordings {folder}: there is no such folder")

    def list(self, user: User) -> list[Listed]:
        """Those that a user may see, the newest first."""
        seen = [each for each in self._all() if user.may(Role.WATCH, each.title)]
        return sorted(seen, key=lambda each: (-each.begun, each.name))[:MAX_LISTED]

    def open(self, user: User, name: str) -> int | None:
        """A descriptor of a recording that a user may see; None for none."""
        if not self.folder or not NAME.fullmatch(name):
            return None
        fd = self._open(name)
        if fd is None:
            return None
        listed = _read_header(fd, name)
        if listed is None or not user.may(Role.WATCH, listed.title) or listed.size > MAX_PLAYED:
            os.close(fd)
            return None
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def begin(self, hub: Hub) -> str:
        """Record a port; return the recording's name.

        Raises:
            ConfigError: it cannot be.
        """
        if not self.folder:
            raise ConfigError("there is no folder for recordings", "`virtserial web --recordings FOLDER`")
        if sum(each.size for each in self._all()) > MAX_FOLDER:
            raise ConfigError(f"the recordings take {MAX_FOLDER >> 30} GiB already")
        port = re.sub(r"[^A-Za-z0-9_.-]+", "_", hub.name)[:100].lstrip(".-") or "port"
        try:
            name = self._new_name(f"{port}@{time.strftime('%Y%m%d-%H%M%S')}")
            hub.record(os.path.join(self.folder, name), self._limit)
        except OSError as error:
            raise ConfigError(f"the recording cannot be made: {error.strerror}") from error
        return name

    def _new_name(self, stem: str) -> str:
        """Make an empty file: a name that nobody else has, neither another port in this second nor another console."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        for number in itertools.count(1):
            name = f"{stem}{f'-{number}' if number > 1 else ''}{ENDING}"
            with contextlib.suppress(FileExistsError):
                os.close(os.open(os.path.join(self.folder, name), flags, 0o600))
                break
        return name

    def _all(self) -> Iterator[Listed]:
        if not self.folder:
            return
        try:
            names = [name for name in os.listdir(self.folder) if NAME.fullmatch(name)]
        except OSError:
            return
        for name in names:
            fd = self._open(name)
            if fd is not None:
                try:
                    listed = _read_header(fd, name)
                finally:
                    os.close(fd)
                if listed is not None:
                    yield listed

    def _open(self, name: str) -> int | None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return os.open(os.path.join(self.folder, name), flags)
        except OSError:
            return None


def _read_header(fd: int, name: str) -> Listed | None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return None
    try:
        header = json.loads(os.read(fd, MAX_HEADER).partition(b"\n")[0])
        title, begun = header.get("title", ""), header.get("timestamp", 0)
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    if header.get("version") != 2 or not isinstance(title, str) or not isinstance(begun, int):
        return None
    return Listed(name, title, begun, status.st_size)
