"""chardev pipe: a pair of FIFOs, `path`.in (towards the guest) and `path`.out, or one FIFO for both."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.channel.connections import StreamConnection
from virtserial.chardev.base import Chardev, could_not_open
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.chardev.base import ConnectionSink
    from virtserial.loop import EventLoop


class PipeChardev(Chardev):
    """Opens each FIFO for reading and writing, as QEMU: opening does not wait for the other side, and it does not
    notice when that leaves."""

    kind = "pipe"

    def __init__(self, chardev_id: str, path: str) -> None:
        super().__init__(chardev_id)
        self.path = path

    def paths(self) -> Sequence[str]:
        return [self.path, f"{self.path}.in", f"{self.path}.out"]

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        name = f"chardev '{self.id}' (pipe '{self.path}')"
        fds = self._open_pair(f"{self.path}.in", f"{self.path}.out")
        if not fds:
            try:
                fds = (self._open(self.path),)
            except OSError as error:
                raise ConfigError(could_not_open(self.path, error)) from error
        sink.connection_opened(self, StreamConnection(name, 0, len(fds) - 1), fds)

    def _open_pair(self, input_path: str, output_path: str) -> tuple[int, ...]:
        """Open both, or neither."""
        try:
            input_fd = self._open(input_path)
        except OSError:
            return ()
        try:
            return input_fd, self._open(output_path)
        except OSError:
            os.close(input_fd)
            return ()

    def _open(self, path: str) -> int:
        return self.reach.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
