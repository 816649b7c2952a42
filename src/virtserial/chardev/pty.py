"""chardev pty: a new pseudo-terminal in raw mode, with a symbolic link to it if `path=` is given (QEMU 9.2)."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from virtserial.channel.connections import PtyConnection
from virtserial.chardev.base import Chardev
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from virtserial.chardev.base import ConnectionSink, Put, Take
    from virtserial.loop import EventLoop

IN_OPEN = 0x20
"""linux/inotify.h"""


class PtyChardev(Chardev):
    """Holds the master only: "connected" means that a process has the terminal open."""

    kind = "pty"

    def __init__(self, chardev_id: str, path: str | None = None) -> None:
        super().__init__(chardev_id)
        self.path = path
        self.terminal = ""

    @property
    def filename(self) -> str:
        return f"pty:{self.terminal}" if self.terminal else "pty"

    def paths(self) -> Sequence[str]:
        return [self.path] if self.path else []

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        import tty

        try:
            master_fd, slave_fd = os.openpty()
        except OSError as error:
            hint = "" if os.path.exists("/dev/pts/ptmx") else "/dev/pts is missing: mount -t devpts devpts /dev/pts"
            raise ConfigError(f"Failed to create PTY: {error.strerror}", hint) from error
        try:
            self.terminal = os.ttyname(slave_fd)
            tty.setraw(slave_fd)
            if self.path is not None:
                self._link(self.path)
        except BaseException:
            os.close(master_fd)
            raise
        finally:
            os.close(slave_fd)
        os.set_blocking(master_fd, False)
        self.announcement = f"char device redirected to {self.terminal} (label {self.id})"
        open_watch_fd = _watch_opens(self.terminal)
        fds = (master_fd,) if open_watch_fd is None else (master_fd, open_watch_fd)
        sink.connection_opened(self, PtyConnection(f"chardev '{self.id}'"), fds)

    def _link(self, path: str) -> None:
        # Replace the dangling link of a killed server, as a stale socket.
        try:
            with self.reach.at(path) as place:
                with contextlib.suppress(OSError):
                    if os.readlink(place).startswith("/dev/pts/") and not os.path.exists(place):
                        os.unlink(place)
                os.symlink(self.terminal, place)
        except OSError as error:
            raise ConfigError(f"Failed to create PTY symlink: {error.strerror}") from error

    def hand_over(self, put: Put) -> dict[str, object]:
        return {"terminal": self.terminal}

    def take_over(self, loop: EventLoop, sink: ConnectionSink, saved: Mapping[str, Any], take: Take) -> None:
        self.terminal = saved["terminal"]

    def release(self) -> None:
        self.terminal = ""
        self.close()

    def close(self) -> None:
        if self.path is not None and self.terminal:
            with contextlib.suppress(OSError, ConfigError), self.reach.at(self.path) as place:
                if os.readlink(place) == self.terminal:
                    os.unlink(place)
        self.terminal = ""


def _watch_opens(path: str) -> int | None:
    """Return an inotify descriptor that becomes readable when `path` is opened; None if the system has none left."""
    import ctypes

    libc = ctypes.CDLL(None)
    fd: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        return None
    if libc.inotify_add_watch(fd, os.fsencode(path), IN_OPEN) < 0:
        os.close(fd)
        return None
    return fd
