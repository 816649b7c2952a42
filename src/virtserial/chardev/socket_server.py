"""chardev socket with server=on: listens, and serves one client at a time; others wait in the backlog."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from virtserial.channel.connections import SocketConnection
from virtserial.channel.messages import MAX_FDS
from virtserial.chardev.base import Chardev
from virtserial.chardev.socket_address import (
    FdAddress,
    InetAddress,
    UnixAddress,
    bound_text,
    connected_text,
    prepare_stream,
)
from virtserial.chardev.socket_layers import SocketLayers
from virtserial.closing import pass_descriptors
from virtserial.errors import ConfigError, StateError
from virtserial.loop import EPOLLIN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from virtserial.channel.connections import Connection
    from virtserial.chardev.base import ConnectionSink, Put, Take
    from virtserial.chardev.preparation import Preparation
    from virtserial.chardev.socket_address import Address
    from virtserial.chardev.unix_listener import UnixListener
    from virtserial.loop import EventLoop

BACKLOG = 1
"""QEMU's (chardev/char-socket.c): the kernel lets one or two clients wait."""

ACCEPT_AGAIN_SECONDS = 1.0
"""After accept has failed for want of descriptors or memory."""


class SocketServerChardev(Chardev):
    """The socket file has the mode that the umask gives, as QEMU's; `close` removes it if it is still ours."""

    kind = "socket"
    backlog = BACKLOG

    def __init__(
        self,
        chardev_id: str,
        address: Address,
        *,
        wait: bool = True,
        nodelay: bool = True,
        layers: SocketLayers | None = None,
    ) -> None:
        super().__init__(chardev_id)
        self.address = address
        self.layers = layers or SocketLayers(server=True)
        self.wait = wait
        self.connected = False
        self._waiting = False
        self._was_connected = False
        self._nodelay = nodelay
        self._loop: EventLoop | None = None
        self._sink: ConnectionSink | None = None
        self._unix_listener: UnixListener | None = None
        self._listeners: list[socket.socket] = []
        self._accepts = True
        self._watches = False
        self._bound_text = self.layers.text(address.text())
        self._connected_text = ""

    @property
    def filename(self) -> str:
        return self._connected_text if self.connected else f"disconnected:{self._bound_text},server=on"

    @property
    def host_end(self) -> str:
        if isinstance(self.address, FdAddress) and self._listeners and self._listeners[0].family == socket.AF_UNIX:
            path = self._listeners[0].getsockname()
            if isinstance(path, str) and path:
                return f"{self.layers.text(f'unix:{path}')},server=on"
        return super().host_end

    def paths(self) -> Sequence[str]:
        return [self.address.path] if isinstance(self.address, UnixAddress) and not self.address.abstract else []

    def preparations(self) -> Sequence[Preparation]:
        return self.layers.preparations(f"chardev '{self.id}'")

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        if isinstance(self.address, UnixAddress):
            self._listen_unix(self.address)
        elif isinstance(self.address, InetAddress):
            self._listeners = _listen_inet(self.address, self.backlog)
        else:
            self._adopt(self.address)
        for listener in self._listeners:
            pass_descriptors(listener, False)
        self._loop, self._sink = loop, sink
        self._bound_text = self.layers.text(bound_text(self._listeners[0], self.address))
        self._watch()

    def _listen_unix(self, address: UnixAddress) -> None:
        from virtserial.chardev.unix_listener import UnixListener

        binary = address.binary()
        if address.abstract:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listener.bind(binary)
                listener.listen(self.backlog)
            except OSError as error:
                listener.close()
                raise ConfigError(f"Failed to bind socket to {address.path}: {error.strerror}") from error
            self._listeners = [listener]
        else:
            self._unix_listener = UnixListener(address.path, self.backlog, reach=self.reach)
            self._listeners = [self._unix_listener.socket]

    def _adopt(self, address: FdAddress) -> None:
        listener = address.adopt()
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            try:
                listener.listen(self.backlog)
            except OSError as error:
                listener.detach()
                raise ConfigError(f"Failed to listen on fd {address.fd}: {error.strerror}") from error
        self._listeners = [listener]

    def hand_over(self, put: Put) -> dict[str, object]:
        return {
            "listeners": [put(listener.fileno()) for listener in self._listeners],
            "inode": self._unix_listener.inode if self._unix_listener is not None else None,
            "bound": self._bound_text,
            "connected": self._connected_text if self.connected else None,
        }

    def take_over(self, loop: EventLoop, sink: ConnectionSink, saved: Mapping[str, Any], take: Take) -> None:
        from virtserial.chardev.unix_listener import UnixListener

        fds = [take(number) for number in saved["listeners"]]
        if saved["inode"] is not None and isinstance(self.address, UnixAddress):
            self._unix_listener = UnixListener.resume(self.address.path, fds[0], saved["inode"])
            self._listeners = [self._unix_listener.socket]
        else:
            self._listeners = [socket.socket(fileno=fd) for fd in fds]
        self._loop, self._sink = loop, sink
        self._bound_text = saved["bound"]
        self.connected, self._connected_text = saved["connected"] is not None, saved["connected"] or ""
        self._watch()

    def let_accept(self) -> tuple[Connection, Sequence[int]] | None:
        if not self.layers.is_plain or not 0 < len(self._listeners) <= MAX_FDS:
            return None
        self.stop_accepting()
        return SocketConnection(f"chardev '{self.id}' ({self._bound_text})"), [
            listener.fileno() for listener in self._listeners
        ]

    def stop_accepting(self) -> None:
        self._unwatch()
        self._accepts = False

    def accept_here(self) -> None:
        self._accepts = True
        self._watch()

    def client_accepted(self, fd: int) -> None:
        try:
            with socket.socket(fileno=os.dup(fd)) as client:
                prepare_stream(client, nodelay=self._nodelay)
                self._note(client)
        except OSError as error:
            raise StateError(f"chardev '{self.id}': what came is no client: {error.strerror}") from error

    def wait_connected(self) -> None:
        if self._loop is None:
            raise StateError(f"chardev '{self.id}' is not open")
        if self._was_connected:
            return
        self.report(f"info: waiting for connection on: {self.filename}")
        self._waiting = True
        self._loop.run()
        self._waiting = False
        # A client that has left again, such as a port scan, counts: QEMU accepts one and goes on.
        if not self._was_connected:
            raise ConfigError(f"chardev '{self.id}': stopped while waiting for a connection")

    def connection_ended(self) -> None:
        if self.connected:
            self.connected = False
            self._watch()

    def release(self) -> None:
        self._unix_listener = None
        self.close()

    def close(self) -> None:
        self._unwatch()
        self.connected = False
        if self._unix_listener is not None:
            self._unix_listener.close()
            self._unix_listener = None
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    def _watch(self) -> None:
        if self._loop is not None and not self.connected and self._accepts:
            self._watches = True
            for listener in self._listeners:
                listener.setblocking(False)
                self._loop.watch(listener.fileno(), EPOLLIN, self._client_came)

    def _unwatch(self) -> None:
        # While others accept, others watch the same sockets.
        if self._loop is not None and self._watches:
            self._watches = False
            for listener in self._listeners:
                self._loop.unwatch(listener.fileno())

    def _client_came(self, _events: int) -> None:
        # Two listeners (IPv4 and IPv6) may have one each.
        if not self.connected and (client := self._accept(self._listeners)) is not None:
            self._serve(client)

    def _accept(self, listeners: Sequence[socket.socket]) -> socket.socket | None:
        """Return the next client, None if there is none."""
        for listener in listeners:
            try:
                return listener.accept()[0]
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                self._accept_failed(error)
                break
        return None

    def _accept_failed(self, error: OSError) -> None:
        self.report(f"warning: chardev '{self.id}': cannot accept a client: {error.strerror}")
        self._unwatch()
        if self._loop is not None:
            self._loop.call_later(ACCEPT_AGAIN_SECONDS, self._watch)

    def _serve(self, client: socket.socket) -> None:
        prepare_stream(client, nodelay=self._nodelay)
        self._unwatch()
        self._note(client)
        if self._sink is not None:
            name = f"chardev '{self.id}' ({self._connected_text})"
            listeners = [listener.fileno() for listener in self._listeners]
            made = self.layers.connection(name, client.detach(), listeners=listeners)
            self._sink.connection_opened(self, *made)

    def _note(self, client: socket.socket) -> None:
        """A client is there."""
        self.connected = True
        self._connected_text = self.layers.text(connected_text(client, self.address, server=True))
        self._end_wait()

    def _end_wait(self) -> None:
        self._was_connected = True
        if self._waiting and self._loop is not None:
            self._loop.stop()


def _listen_inet(address: InetAddress, backlog: int) -> list[socket.socket]:
    """Listen on every address of the host, at the first port from `port` to `to` that all of them can have."""
    found = address.resolve(passive=True)
    first_port = int(str(found[0][1][1]))
    last_port = max(first_port, address.to if address.to is not None else first_port)
    failure: OSError | None = None
    for port in range(first_port, last_port + 1):
        listeners: list[socket.socket] = []
        try:
            for family, place in found:
                # `port=0`: what the kernel gave the first, the others take as well.
                chosen = listeners[0].getsockname()[1] if listeners and port == 0 else port
                listeners.append(_listen_at(family, (place[0], chosen, *place[2:]), backlog))
        except OSError as error:
            failure = error
            for listener in listeners:
                listener.close()
        else:
            return listeners
    reason = failure.strerror if failure else "no port"
    raise ConfigError(f"Failed to bind socket to {address.peer_text()}: {reason}")


def _listen_at(family: int, place: tuple[object, ...], backlog: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(place)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener
