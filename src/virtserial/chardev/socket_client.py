"""chardev socket with server=off: connects, once or again and again (`reconnect-ms`)."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from virtserial.chardev.base import Chardev
from virtserial.chardev.socket_address import (
    FdAddress,
    InetAddress,
    UnixAddress,
    connected_text,
    prepare_stream,
)
from virtserial.chardev.socket_layers import SocketLayers
from virtserial.closing import pass_descriptors
from virtserial.errors import ConfigError
from virtserial.loop import EPOLLIN, EPOLLOUT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from virtserial.chardev.base import ConnectionSink, Put, Take
    from virtserial.chardev.preparation import Preparation
    from virtserial.chardev.socket_address import Address
    from virtserial.loop import EventLoop, Timer


class SocketClientChardev(Chardev):
    """Without `reconnect_seconds` `open` connects, and the chardev stays closed when the server leaves.  With it, it
    tries without blocking until it is closed, and reports the first failure of a row, as QEMU."""

    kind = "socket"

    def __init__(
        self,
        chardev_id: str,
        address: Address,
        *,
        reconnect_seconds: float = 0,
        nodelay: bool = True,
        layers: SocketLayers | None = None,
    ) -> None:
        super().__init__(chardev_id)
        self.address = address
        self.layers = layers or SocketLayers(server=False)
        self.reconnect_seconds = reconnect_seconds
        self.connected = False
        self._nodelay = nodelay
        self._loop: EventLoop | None = None
        self._sink: ConnectionSink | None = None
        self._timer: Timer | None = None
        self._connecting: socket.socket | None = None
        self._places: list[tuple[int, object]] = []
        self._resolver: _Resolver | None = None
        self._failure_reported = False
        self._connected_text = ""

    @property
    def filename(self) -> str:
        return self._connected_text if self.connected else f"disconnected:{self.layers.text(self.address.text())}"

    def paths(self) -> Sequence[str]:
        return [self.address.path] if isinstance(self.address, UnixAddress) and not self.address.abstract else []

    def preparations(self) -> Sequence[Preparation]:
        return self.layers.preparations(f"chardev '{self.id}'")

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        self._loop, self._sink = loop, sink
        if isinstance(self.address, UnixAddress):
            self.address.binary()  # A path that is too long stays too long.
        if self.reconnect_seconds:
            self._try_to_connect()
        else:
            self._connected(self._connect_now())

    def connection_ended(self) -> None:
        if self.connected:
            self.connected = False
            self._try_later()

    def close(self) -> None:
        self.reconnect_seconds = 0
        self.connected = False
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._forget_connecting(self._connecting)
        if self._resolver is not None:
            self._resolver.close()
            self._resolver = None

    def hand_over(self, put: Put) -> dict[str, object]:
        return {"connected": self._connected_text if self.connected else None}

    def take_over(self, loop: EventLoop, sink: ConnectionSink, saved: Mapping[str, Any], take: Take) -> None:
        self._loop, self._sink = loop, sink
        self.connected, self._connected_text = saved["connected"] is not None, saved["connected"] or ""
        if not self.connected and self.reconnect_seconds:
            # From inside the loop, as every attempt but the first.
            self._timer = loop.call_later(0, self._try_to_connect)

    # Connecting at once

    def _connect_now(self) -> socket.socket:
        if isinstance(self.address, FdAddress):
            return self.address.adopt()
        failure: OSError | None = None
        for family, place in self._resolve_now(self.address):
            connection = socket.socket(family, socket.SOCK_STREAM)
            try:
                self._connect(connection, place)
            except OSError as error:
                connection.close()
                failure = error
            except ConfigError:
                connection.close()
                raise
            else:
                return connection
        reason = failure.strerror if failure else "no address"
        raise ConfigError(
            f"Failed to connect to '{self.address.peer_text()}': {reason}",
            "is it running? add server=on to listen there, or reconnect-ms=1000 to wait for it",
        )

    def _connect(self, connection: socket.socket, place: object) -> None:
        if isinstance(self.address, UnixAddress) and not self.address.abstract:
            with self.reach.socket_at(self.address.path) as path:
                connection.connect(os.fsencode(path))
        else:
            connection.connect(place)  # type: ignore[arg-type]

    @staticmethod
    def _resolve_now(address: UnixAddress | InetAddress) -> list[tuple[int, object]]:
        if isinstance(address, UnixAddress):
            return [(socket.AF_UNIX, address.binary())]
        return list(address.resolve())

    # Connecting without waiting

    def _try_to_connect(self) -> None:
        self._timer = None
        if isinstance(self.address, InetAddress) and not self.address.is_numeric():
            if self._loop is not None:
                self._resolver = _Resolver(self._loop, self.address, self._resolved)
            return
        if isinstance(self.address, FdAddress):
            return
        try:
            self._places = self._resolve_now(self.address)
        except ConfigError as error:
            self._failed(str(error))
            return
        self._try_next_place("no address")

    def _resolved(self, places: list[tuple[int, object]], failure: str) -> None:
        self._resolver = None
        if failure:
            self._failed(failure)
        else:
            self._places = places
            self._try_next_place("no address")

    def _try_next_place(self, last_failure: str) -> None:
        while self._places:
            family, place = self._places.pop(0)
            connection = socket.socket(family, socket.SOCK_STREAM)
            connection.setblocking(False)
            outcome = 0
            try:
                self._connect(connection, place)
            except OSError as error:
                outcome = error.errno or errno.EIO
            except ConfigError as error:
                connection.close()
                self._failed(str(error))
                return
            if outcome == 0:
                self._connected(connection)
                return
            if outcome == errno.EINPROGRESS and self._loop is not None:
                self._connecting = connection
                self._loop.watch(connection.fileno(), EPOLLOUT, self._connect_finished)
                return
            connection.close()
            last_failure = os.strerror(outcome)
        self._failed(f"Failed to connect to '{self.address.peer_text()}': {last_failure}")

    def _connect_finished(self, _events: int) -> None:
        connection = self._connecting
        if connection is None:
            return
        outcome = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if outcome:
            self._forget_connecting(connection)
            self._try_next_place(os.strerror(outcome))
        else:
            self._connecting = None
            if self._loop is not None:
                self._loop.unwatch(connection.fileno())
            self._connected(connection)

    def _forget_connecting(self, connection: socket.socket) -> None:
        self._connecting = None
        if self._loop is not None:
            self._loop.unwatch(connection.fileno())
        connection.close()

    def _failed(self, reason: str) -> None:
        if not self._failure_reported:
            self._failure_reported = True
            self.report(f"Unable to connect character device {self.id}: {reason}")
        self._try_later()

    def _try_later(self) -> None:
        if self.reconnect_seconds and self._loop is not None and self._timer is None:
            self._timer = self._loop.call_later(self.reconnect_seconds, self._try_to_connect)

    def _connected(self, connection: socket.socket) -> None:
        self._failure_reported = False
        self._places = []
        prepare_stream(connection, nodelay=self._nodelay)
        pass_descriptors(connection, False)
        self.connected = True
        self._connected_text = self.layers.text(connected_text(connection, self.address, server=False))
        if self._sink is not None:
            name = f"chardev '{self.id}' ({self._connected_text})"
            hostname = self.address.host or None if isinstance(self.address, InetAddress) else None
            reconnects = self.reconnect_seconds > 0
            made = self.layers.connection(name, connection.detach(), hostname=hostname, reconnects=reconnects)
            self._sink.connection_opened(self, *made)


class _Resolver:
    """Resolves in a thread, because getaddrinfo blocks; an eventfd wakes the loop."""

    def __init__(self, loop: EventLoop, address: InetAddress, done: _Resolved) -> None:
        import threading

        self._loop = loop
        self._address = address
        self._done = done
        self._answer: tuple[list[tuple[int, object]], str] = ([], "")
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        loop.watch(self._event_fd, EPOLLIN, self._answered)
        self._thread = threading.Thread(target=self._ask, daemon=True, name="virtserial-resolver")
        self._thread.start()

    def _ask(self) -> None:
        try:
            self._answer = (list(self._address.resolve()), "")
        except ConfigError as error:
            self._answer = ([], str(error))
        os.eventfd_write(self._event_fd, 1)

    def _answered(self, _events: int) -> None:
        self._thread.join()
        self._loop.unwatch(self._event_fd)
        os.close(self._event_fd)
        if not self._closed:
            self._done(*self._answer)

    def close(self) -> None:
        """Drop the answer.  The thread cannot be stopped: its eventfd is closed by the loop when it has answered."""
        self._closed = True


if TYPE_CHECKING:
    from collections.abc import Callable

    _Resolved = Callable[[list[tuple[int, object]], str], None]
