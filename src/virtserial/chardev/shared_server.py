"""A listening socket with several clients, and a second one for those who only watch; the keeper's half.

The keeper accepts every client here, because each needs an open file of its own on the output's log
(channel/output_log.py), and workers open nothing.  A watcher's socket takes no input: what it sends fails with EPIPE.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

from virtserial.channel.connections import ClientConnection, SharedConnection, SocketConnection
from virtserial.channel.output_log import MAX_CLIENTS, MAX_WATCHERS, OutputLog, open_again
from virtserial.chardev.socket_address import UnixAddress, connected_text, prepare_stream
from virtserial.chardev.socket_server import BACKLOG, SocketServerChardev
from virtserial.errors import ConfigError
from virtserial.loop import EPOLLIN
from virtserial.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from virtserial.channel.connections import Connection, LayeredConnection, Slow
    from virtserial.chardev.base import ConnectionSink, Put, Take
    from virtserial.chardev.socket_address import Address
    from virtserial.chardev.socket_layers import SocketLayers
    from virtserial.chardev.unix_listener import UnixListener
    from virtserial.loop import EventLoop

_CREDENTIALS = struct.Struct("3i")
"""struct ucred."""
MAX_BACKLOG = 64 << 20
"""Bytes of `backlog=`."""


SLOW: Mapping[str, Slow] = {"block": "block", "drop": "drop", "disconnect": "disconnect"}


class Sharing(NamedTuple):
    """How clients share a socket.

    Attributes:
        clients: how many at once.
        backlog: bytes of output that each first gets.
        watch: the path of a UNIX socket for those who only read; None: there is none.
    """

    clients: int = 1
    backlog: int = 0
    slow: Slow = "block"
    watch: str | None = None


class SharedSocketServer(SocketServerChardev):
    """Hands out a SharedConnection when it is opened, and a ClientConnection for each client."""

    is_shared = True

    def __init__(
        self,
        chardev_id: str,
        address: Address,
        sharing: Sharing,
        *,
        wait: bool = True,
        nodelay: bool = True,
        layers: SocketLayers | None = None,
    ) -> None:
        super().__init__(chardev_id, address, wait=wait, nodelay=nodelay, layers=layers)
        self._sharing = sharing
        # Several may come at once.
        self.backlog = max(BACKLOG, sharing.clients)
        self._log: OutputLog | None = None
        self._watch_listener: UnixListener | None = None
        self._peers: dict[int, tuple[str, int]] = {}
        self._listens: dict[bool, bool] = {}

    def paths(self) -> Sequence[str]:
        watch = self._sharing.watch
        return [*super().paths(), *([] if watch is None else [watch])]

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        from virtserial.chardev.unix_listener import UnixListener

        try:
            self._log = OutputLog.create()
        except OSError as error:
            raise ConfigError(f"cannot keep the output of chardev '{self.id}': {error.strerror}") from error
        if self._sharing.watch is not None:
            self._watch_listener = UnixListener(self._sharing.watch, MAX_WATCHERS, reach=self.reach)
        super().open(loop, sink)
        shared = SharedConnection(
            f"chardev '{self.id}' ({self._bound_text})", self._sharing.slow, self._sharing.backlog, self.layers.is_plain
        )
        sink.connection_opened(self, shared, (os.dup(self._log.fileno()),))

    def hand_over(self, put: Put) -> dict[str, object]:
        watch = self._watch_listener
        return super().hand_over(put) | {
            "output": put(self._opened_log().fileno()),
            "watch": None if watch is None else {"fd": put(watch.socket.fileno()), "inode": watch.inode},
            "peers": list(self._peers.items()),
        }

    def take_over(self, loop: EventLoop, sink: ConnectionSink, saved: Mapping[str, Any], take: Take) -> None:
        from virtserial.chardev.unix_listener import UnixListener

        self._log = OutputLog(take(saved["output"]))
        if (watch := saved["watch"]) is not None and self._sharing.watch is not None:
            self._watch_listener = UnixListener.resume(self._sharing.watch, take(watch["fd"]), watch["inode"])
        self._peers = {place: (peer, pid) for place, (peer, pid) in saved["peers"]}
        super().take_over(loop, sink, saved, take)

    def let_accept(self) -> tuple[Connection, Sequence[int]] | None:
        return None

    def connection_ended(self) -> None:
        """The log could not be written: there is no memory left for it."""
        self.report(f"warning: chardev '{self.id}' has no memory for output; add it anew")

    def client_left(self, place: int) -> None:
        if self._peers.pop(place, None) is not None:
            self._opened_log().forget(place)
            self._note_peers()
            self._watch()

    def release(self) -> None:
        self._unwatch()
        watch, self._watch_listener = self._watch_listener, None
        if watch is not None:
            watch.socket.close()
        super().release()

    def close(self) -> None:
        super().close()
        if self._watch_listener is not None:
            self._watch_listener.close()
            self._watch_listener = None
        if self._log is not None:
            self._log.close()
            self._log = None
        self._peers.clear()

    def clients(self, positions: Mapping[int, int]) -> dict[str, object]:
        """What x-virtserial-query-clients tells of it.

        Args:
            positions: of the clients, by place, a descriptor whose file position is the client's in the log.
        """
        log = self._opened_log()
        written = log.written()
        return {
            "label": self.id,
            "max-clients": self._sharing.clients,
            "backlog": self._sharing.backlog,
            "slow": self._sharing.slow,
            "written": written,
            "dropped": log.dropped_before + sum(map(log.dropped, self._peers)),
            "disconnected": log.disconnected,
            "clients": [
                {
                    "peer": peer,
                    "pid": pid,
                    "watches": place >= MAX_CLIENTS,
                    "behind": log.behind(place, positions[place]) if place in positions else 0,
                    "dropped": log.dropped(place),
                }
                for place, (peer, pid) in sorted(self._peers.items())
            ],
        }

    def _opened_log(self) -> OutputLog:
        assert self._log is not None
        return self._log

    # Accepting

    def _sockets(self, watch: bool) -> list[socket.socket]:
        if not watch:
            return self._listeners
        return [] if self._watch_listener is None else [self._watch_listener.socket]

    def _free_place(self, watch: bool) -> int | None:
        places = range(MAX_CLIENTS, MAX_CLIENTS + MAX_WATCHERS) if watch else range(self._sharing.clients)
        return next((place for place in places if place not in self._peers), None)

    def _watch(self) -> None:
        """Listen where there is a place for another client."""
        if self._loop is None or not self._accepts:
            return
        for watch in (False, True):
            if self._listens.get(watch) or self._free_place(watch) is None:
                continue
            self._listens[watch] = True
            for listener in self._sockets(watch):
                listener.setblocking(False)
                self._loop.watch(listener.fileno(), EPOLLIN, self._watcher_came if watch else self._client_came)

    def _unwatch(self) -> None:
        for watch in (False, True):
            self._stop_listening(watch)

    def _stop_listening(self, watch: bool) -> None:
        if self._listens.pop(watch, False) and self._loop is not None:
            for listener in self._sockets(watch):
                self._loop.unwatch(listener.fileno())

    def _client_came(self, _events: int) -> None:
        self._take_client(watch=False)

    def _watcher_came(self, _events: int) -> None:
        self._take_client(watch=True)

    def _take_client(self, watch: bool) -> None:
        place = self._free_place(watch)
        client = self._accept(self._sockets(watch)) if place is not None else None
        if client is None or place is None:
            return
        try:
            cursor = open_again(self._opened_log().fileno())
        except OSError as error:
            client.close()
            self._accept_failed(error)
            return
        self._serve_at(place, client, cursor, watch)
        if self._free_place(watch) is None:
            self._stop_listening(watch)

    def _serve_at(self, place: int, client: socket.socket, cursor: int, watch: bool) -> None:
        prepare_stream(client, nodelay=self._nodelay)
        if watch:
            client.shutdown(socket.SHUT_RD)
        address = UnixAddress(self._sharing.watch) if watch and self._sharing.watch else self.address
        peer = self.layers.text(connected_text(client, address, server=True))
        self._peers[place] = peer, _pid_of(client)
        self._note_peers()
        name = f"chardev '{self.id}' ({peer})"
        inner: SocketConnection | LayeredConnection
        fds: tuple[int, ...]
        if watch:
            inner, fds = SocketConnection(name), (client.detach(),)
        else:
            listeners = [listener.fileno() for listener in self._listeners]
            inner, fds = self.layers.connection(name, client.detach(), listeners=listeners)
        if self._sink is not None:
            self._sink.connection_opened(self, ClientConnection(inner, place, watch), (*fds, cursor))

    def _note_peers(self) -> None:
        self.connected = bool(self._peers)
        self._connected_text = f"{self._bound_text},server=on"
        if self.connected:
            self._end_wait()


def _pid_of(client: socket.socket) -> int:
    """The process at the other end of a UNIX socket when it connected, 0 for others."""
    if client.family != socket.AF_UNIX:
        return 0
    return int(_CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0])
