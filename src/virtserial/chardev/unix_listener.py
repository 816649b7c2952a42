"""A listening UNIX socket in the file system.  It replaces the socket of a dead server, never that of a live one, and
removes its own only."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

from virtserial.chardev.reach import ANYWHERE
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.chardev.reach import Reach

MAX_PATH = 107
"""Bytes, without the zero at the end of sun_path."""

SO_ACCEPTCON = 0x10000
"""linux/net.h __SO_ACCEPTCON, in the flags of /proc/net/unix."""


class UnixListener:
    """Binds and listens.

    Attributes:
        socket: the listening socket.
        inode: device and number of the file it is bound to.
    """

    def __init__(self, path: str, backlog: int, mode: int | None = None, reach: Reach = ANYWHERE) -> None:
        """
        Args:
            path: where in the file system.
            backlog: clients that may wait.
            mode: the file's permissions less the umask; None for those that a socket gets by itself.
            reach: uses the path.

        Raises:
            ConfigError: the path is in use, is not a socket, or cannot be bound; in QEMU's words where QEMU has some.
        """
        self._path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if mode is not None:
                os.fchmod(self.socket.fileno(), mode)  # before bind: the name never exists with other permissions
            with reach.at(path) as place:
                _make_room(path, place)
                self.socket.bind(os.fsencode(place))
                status = os.lstat(place)
            self.socket.listen(backlog)
        except ConfigError:
            self.socket.close()
            raise
        except OSError as error:
            self.socket.close()
            text = f"Failed to bind socket to {path}: {error.strerror or error}"
            raise ConfigError(text, _way_out(path, error)) from error
        self.inode = (status.st_dev, status.st_ino)

    @classmethod
    def resume(cls, path: str, fd: int, inode: Sequence[int]) -> UnixListener:
        """Take over the listener of another process, by its path, descriptor and `inode`."""
        listener = cls.__new__(cls)
        listener._path = path
        listener.socket = socket.socket(fileno=fd)
        listener.inode = (inode[0], inode[1])
        return listener

    def close(self) -> None:
        """Remove the path unless it is another socket by now, then close."""
        folder, name = os.path.split(os.path.abspath(self._path))
        with contextlib.suppress(OSError):
            # Looked at and removed in one folder, whatever takes that folder's place meanwhile.
            fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                status = os.lstat(name, dir_fd=fd)
                if (status.st_dev, status.st_ino) == self.inode:
                    os.unlink(name, dir_fd=fd)
            finally:
                os.close(fd)
        self.socket.close()


def _make_room(path: str, place: str) -> None:
    try:
        status = os.lstat(place)
    except OSError:
        return  # Nothing there, or bind will say what is wrong.
    if stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"Failed to unlink socket {path}: Is a directory", "add the socket's name to the path")
    if not stat.S_ISSOCK(status.st_mode):
        # QEMU removes whatever file it finds here.
        hint = "remove it, or give another path"
        raise ConfigError(f"Failed to bind socket to {path}: it exists and is not a socket", hint)
    if _is_served(path, place):
        hint = "is another server running? End it, or give another path"
        raise ConfigError(f"Failed to bind socket to {path}: it is in use by a live server", hint)
    try:
        os.unlink(place)
    except OSError as error:
        raise ConfigError(f"Failed to unlink socket {path}: {error.strerror}", _way_out(path, error)) from error


def _way_out(path: str, error: OSError) -> str:
    folder = os.path.dirname(path) or "."
    if error.errno is None:  # Python's, of a long path.
        return f"a socket's path has at most {MAX_PATH} bytes: give a shorter one"
    if error.errno == errno.ENOENT:
        import shlex  # late: a start that succeeds does not need it

        return f"create the folder first: mkdir -p {shlex.quote(folder)}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"this user cannot write in {folder}: give a path in another folder"
    return ""


def _is_served(path: str, place: str) -> bool:
    """Whether a server listens at `path`.

    The kernel's list is asked first, because connecting to find out would be a client to a server that takes one at a
    time.  It shows this network namespace only and paths as they were bound, so a connection has the last word.
    """
    with contextlib.suppress(OSError), open("/proc/net/unix", "rb") as table:
        wanted = os.fsencode(path)
        for line in table:
            fields = line.split(None, 7)
            if len(fields) == 8 and fields[7].rstrip(b"\n") == wanted and int(fields[3], 16) & SO_ACCEPTCON:
                return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fsencode(place))
        except OSError as error:
            # EAGAIN: its backlog is full.  Anything but a refusal (no rights, another socket type) is no proof of
            # death.
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True
