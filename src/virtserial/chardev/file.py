"""chardev file: what the guest writes goes to `path`; what it reads comes from `input-path`."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from virtserial.channel.connections import StreamConnection
from virtserial.chardev.base import Chardev, could_not_open
from virtserial.chardev.opened_path import named_files, open_path
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.chardev.base import ConnectionSink
    from virtserial.loop import EventLoop


class FileChardev(Chardev):
    """Truncates `path` unless `append`.  At the end of the input file the host hangs up, as with QEMU, so
    that a guest that reads until the end of file stops."""

    kind = "file"

    def __init__(
        self, chardev_id: str, path: str, *, input_path: str | None = None, append: bool = False
    ) -> None:
        super().__init__(chardev_id)
        self.path = path
        self.input_path = input_path
        self.append = append

    def paths(self) -> Sequence[str]:
        return named_files(self.path, self.input_path)

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        # The input first: a wrong input-path must not truncate the output file.
        fds = [] if self.input_path is None else [self._open(self.input_path, os.O_RDONLY)]
        try:
            mode = os.O_APPEND if self.append else os.O_TRUNC
            fds.append(self._open(self.path, os.O_WRONLY | os.O_CREAT | mode))
        except ConfigError:
            with contextlib.suppress(IndexError):
                os.close(fds[0])
            raise
        read = None if self.input_path is None else 0
        name = f"chardev '{self.id}' (file '{self.path}')"
        sink.connection_opened(self, StreamConnection(name, read, len(fds) - 1), tuple(fds))

    def _open(self, path: str, flags: int) -> int:
        """Open without waiting; refuse a FIFO that has no reader."""
        try:
            return open_path(path, flags, self.reach)
        except OSError as error:
            if error.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(path).st_mode):
                raise ConfigError(f"Could not open '{path}': it is a FIFO that nobody reads") from error
            raise ConfigError(could_not_open(path, error)) from error
