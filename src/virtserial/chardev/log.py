"""`logfile=`: a copy of what the guest writes, of any chardev; the keeper's half."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.channel.connections import ClientConnection, LoggedConnection, NullConnection
from virtserial.chardev.base import Chardev
from virtserial.chardev.opened_path import named_files, open_path
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from virtserial.channel.connections import BareConnection, Connection
    from virtserial.chardev.base import ConnectionSink, Put, Take
    from virtserial.chardev.preparation import Preparation
    from virtserial.loop import EventLoop


class LoggedChardev(Chardev):
    """Wraps a chardev, and adds the log's descriptor to each of its connections.

    While it has no connection it hands out a NullConnection, because console output is logged whether or not a host is
    connected (QEMU's chardev/char.c).

    Args:
        backend: the chardev; its id is this one's.
        path: the file; created if it does not exist.
        append: do not truncate it.
    """

    def __init__(self, backend: Chardev, path: str, *, append: bool = False) -> None:
        super().__init__(backend.id)
        self.kind, self.wait, self.is_shared = backend.kind, backend.wait, backend.is_shared
        self.path = path
        self.append = append
        self._backend = backend
        self._fd = -1
        self._sink: ConnectionSink | None = None
        self._is_connected = False

    @property
    def backend(self) -> Chardev:
        return self._backend

    @property
    def filename(self) -> str:
        return self._backend.filename

    def with_connections(self) -> Sequence[Chardev]:
        parts = self._backend.with_connections()
        return (self,) if parts == (self._backend,) else parts

    def paths(self) -> Sequence[str]:
        return [*self._backend.paths(), *named_files(self.path)]

    def preparations(self) -> Sequence[Preparation]:
        return self._backend.preparations()

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        mode = os.O_APPEND if self.append else os.O_TRUNC
        try:
            # Never waits: a FIFO that nobody reads is refused.
            self._fd = open_path(self.path, os.O_WRONLY | os.O_CREAT | mode, self.reach)
        except OSError as error:
            raise ConfigError(f"Could not create '{self.path}': {os.strerror(error.errno or 0)}") from error
        self._sink, self._backend.report, self._backend.reach = sink, self.report, self.reach
        try:
            self._backend.open(loop, self)
        except BaseException:
            self._close_file()
            raise
        self.announcement = self._backend.announcement
        self._stand_in()

    def hand_over(self, put: Put) -> dict[str, object]:
        return {**self._backend.hand_over(put), "log": {"fd": put(self._fd), "connected": self._is_connected}}

    def take_over(self, loop: EventLoop, sink: ConnectionSink, saved: Mapping[str, Any], take: Take) -> None:
        self._fd, self._is_connected = take(saved["log"]["fd"]), saved["log"]["connected"]
        self._sink, self._backend.report, self._backend.reach = sink, self.report, self.reach
        self._backend.take_over(loop, self, saved, take)

    def wait_connected(self) -> None:
        self._backend.wait_connected()

    def connection_ended(self) -> None:
        self._is_connected = False
        self._backend.connection_ended()
        self._stand_in()

    def stop_accepting(self) -> None:
        self._backend.stop_accepting()

    def accept_here(self) -> None:
        self._backend.accept_here()

    def client_left(self, place: int) -> None:
        self._backend.client_left(place)

    def clients(self, positions: Mapping[int, int]) -> dict[str, object]:
        return self._backend.clients(positions)

    def guest_opened(self) -> None:
        self._backend.guest_opened()

    def release(self) -> None:
        self._backend.release()
        self._close_file()

    def close(self) -> None:
        self._backend.close()
        self._close_file()

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        self._sink = None
        if fd >= 0:
            os.close(fd)

    # ConnectionSink of the backend

    def connection_opened(self, chardev: Chardev, connection: Connection, fds: tuple[int, ...]) -> None:
        """Pass a connection on, with the log."""
        self._is_connected = True
        if isinstance(connection, ClientConnection):
            # The log is that of all clients.
            if self._sink is not None:
                self._sink.connection_opened(self, connection, fds)
            return
        self._pass_on(connection.connection if isinstance(connection, LoggedConnection) else connection, fds)

    def _stand_in(self) -> None:
        """Hand out a connection for the log alone while there is no other."""
        if not self._is_connected:
            self._pass_on(NullConnection(f"chardev '{self.id}'"), ())

    def _pass_on(self, connection: BareConnection, fds: tuple[int, ...]) -> None:
        if self._sink is None:
            for fd in fds:
                os.close(fd)
        else:
            self._sink.connection_opened(self, LoggedConnection(connection), (*fds, os.dup(self._fd)))
