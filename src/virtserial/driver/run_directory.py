"""Finds ports by name: nodes, links and name files, laid out as Linux and udev do under /dev and /sys.

    PATH/vportDpN                         the port (each kind of node decides what it is)
    PATH/virtio-ports/NAME -> ../vportDpN for a name that can be a file's
    PATH/hvcK                             the K-th console
    STATE/class/virtio-ports/vportDpN/name

A device chooses the names and is not trusted: nothing is created outside these folders, and no file of another process
is replaced.  A process holds a name by a record lock on PATH, one byte for each: the kernel frees it when the process
ends, and tells others who it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from typing import TYPE_CHECKING, Final

from virtserial.driver.ports import file_name
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from virtserial.driver.ports import Port

MAX_CONSOLES: Final = 64
NAMES: Final = "virtio-ports"
FLOCK: Final = struct.Struct("hhqqi4x")
"""struct flock: l_type, l_whence, l_start, l_len, l_pid."""


class RunDirectory:
    """Names and console numbers of all devices of a process; each belongs to one port.

    Args:
        path: for nodes and links.
        state: for name files; default `path`.

    Raises:
        ConfigError: a folder cannot be created.
    """

    def __init__(self, path: Path, state: Path | None = None) -> None:
        self.path = path
        self._classes = (state or path) / "class" / NAMES
        self._links: dict[str, str] = {}
        try:
            for folder in (path / NAMES, self._classes):
                folder.mkdir(parents=True, exist_ok=True)
            # Closing any other descriptor of this folder (but an O_PATH one) would free the locks: never list it here.
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}") from error

    def link(self, name: str, target: str) -> bool:
        """Make the link PATH/`name`; False if the name is taken."""
        if name in self._links:
            return False
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _place(name))
            if self.holder(name) or not self._make_room(name):
                raise FileExistsError
            (self.path / name).symlink_to(target)
        except OSError:
            self._free(name)
            return False
        self._links[name] = target
        return True

    def holder(self, name: str) -> str | None:
        """Return which other process holds a name, as `process 123`; None for none."""
        asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _place(name), 1, 0)
        kind, _, _, _, process = FLOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_GETLK, asked))
        if kind == fcntl.F_UNLCK:
            return None
        return f"process {process}" if process else "a process of another PID namespace"

    def _free(self, name: str) -> None:
        with contextlib.suppress(OSError):
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _place(name))

    def _make_room(self, name: str) -> bool:
        """Remove a link that a killed process left; False if it is somebody's."""
        link = self.path / name
        try:
            target = os.readlink(link)
        except OSError:
            return not os.path.lexists(link)
        # Another process may have a terminal of that number by now.
        if link.exists() and not target.startswith("/dev/pts/") and os.path.basename(target) not in self._links:
            return False
        with contextlib.suppress(OSError):
            link.unlink()
        return True

    def link_name(self, port: Port, node: str) -> str | None:
        """Make the link from a port's name to its node, and its name file; return the link or None."""
        name = file_name(port.name)
        if name is None:
            return None
        link = f"{NAMES}/{name}"
        if not self.link(link, f"../{node}"):
            return None
        with contextlib.suppress(OSError):
            (self._classes / node).mkdir(exist_ok=True)
            (self._classes / node / "name").write_bytes(os.fsencode(f"{name}\n"))
        return link

    def link_console(self, target: str) -> str | None:
        """Make the first free `hvcK`; None if none is free."""
        return next((name for name in map("hvc{}".format, range(MAX_CONSOLES)) if self.link(name, target)), None)

    def own(self, node: str) -> None:
        """Count PATH/`node`, made by other means, as ours: links to it may be replaced."""
        self._links[node] = ""

    def unlink(self, name: str) -> None:
        """Remove a link of ours, and the other files of its node."""
        target = self._links.pop(name, None)
        if target is None:
            return
        if target:
            with contextlib.suppress(OSError):
                (self.path / name).unlink()
            self._free(name)
        if "/" not in name:
            with contextlib.suppress(OSError):
                (self._classes / name / "name").unlink()
            with contextlib.suppress(OSError):
                (self._classes / name).rmdir()

    def close(self) -> None:
        """Remove empty folders."""
        os.close(self._fd)
        for folder in (self.path / NAMES, self._classes, self._classes.parent):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _place(name: str) -> int:
    """Return the byte that stands for a name."""
    return zlib.crc32(os.fsencode(name))
