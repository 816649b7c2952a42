"""`logfile=`: a copy of what the guest writes, of any chardev; the keeper's half."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.chardev.base import Connection
from virtserial.chardev.opened_path import open_path
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from virtserial.chardev.base import Chardev, ConnectionSink, Put, Take


class ChardevLog:
    """Stands between a chardev and the sink of its connections, and adds the log's descriptor to each.

    While there is no connection a "log" one stands in, since what a console writes is logged all the same
    (QEMU's chardev/char.c: what the front end has written, whether somebody listened or not).

    Args:
        path: the file; made if it is not there.
        append: keep what is in it.
    """

    def __init__(self, path: str, *, append: bool = False) -> None:
        self.path = path
        self.append = append
        self._fd = -1
        self._chardev: Chardev | None = None
        self._sink: ConnectionSink | None = None
        self._is_connected = False

    def open(self, chardev: Chardev, sink: ConnectionSink) -> ConnectionSink:
        """Open the file; returns the sink that the chardev's connections go through.

        Raises:
            ConfigError: the file cannot be had.
        """
        mode = os.O_APPEND if self.append else os.O_TRUNC
        try:
            # Never waits: a FIFO that nobody reads is refused.
            self._fd = open_path(self.path, os.O_WRONLY | os.O_CREAT | mode)
        except OSError as error:
            raise ConfigError(f"Could not create '{self.path}': {os.strerror(error.errno or 0)}") from error
        self._chardev, self._sink = chardev, sink
        return self

    def hand_over(self, put: Put) -> dict[str, object]:
        """See Chardev.hand_over."""
        return {"fd": put(self._fd), "connected": self._is_connected}

    def resume(
        self, chardev: Chardev, sink: ConnectionSink, saved: Mapping[str, Any], take: Take
    ) -> ConnectionSink:
        """See Chardev.resume; returns what `open` returns."""
        self._fd, self._is_connected = take(saved["fd"]), saved["connected"]
        self._chardev, self._sink = chardev, sink
        return self

    def close(self) -> None:
        """Close the file.  Twice is harmless."""
        fd, self._fd = self._fd, -1
        self._chardev = self._sink = None
        if fd >= 0:
            os.close(fd)

    def connection_opened(self, chardev: Chardev, connection: Connection) -> None:
        """ConnectionSink: pass a connection on, with the log."""
        if self._sink is None:
            for fd in connection.fds:
                os.close(fd)
            return
        self._is_connected = connection.flavour != "log"
        fds = (*connection.fds, os.dup(self._fd))
        params = {**connection.params, "log": len(connection.fds)}
        self._sink.connection_opened(chardev, Connection(connection.flavour, fds, params))

    def connection_ended(self) -> None:
        """The present connection is over."""
        self._is_connected = False

    def stand_in(self) -> None:
        """Hand out a connection for the log alone, if there is none."""
        if not self._is_connected and self._chardev is not None:
            self.connection_opened(self._chardev, Connection("log", (), {"name": f"chardev '{self._chardev.id}'"}))
