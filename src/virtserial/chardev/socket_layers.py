"""The protocols on a chardev socket: telnet, websocket, TLS."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.channel.connections import LayeredConnection, SocketConnection, Telnet, Tls, WebSocket
from virtserial.chardev.preparation import Preparation
from virtserial.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.channel.connections import SocketLayer
    from virtserial.chardev.tls_credentials import TlsCredentials


class SocketLayers(NamedTuple):
    """telnet or websocket, and TLS beneath; all off: a plain stream."""

    server: bool
    telnet: bool = False
    websocket: bool = False
    tls: TlsCredentials | None = None

    def preparations(self, name: str) -> Sequence[Preparation]:
        """See Chardev.preparations."""
        if self.tls is None:
            return ()
        return (Preparation(name, self.tls.description, self.tls),)

    def text(self, address: str) -> str:
        """An address as QEMU shows it (qemu_chr_socket_protocol): only TCP ones name the protocol."""
        protocol = "telnet" if self.telnet else "websocket" if self.websocket else "tcp"
        return protocol + address[3:] if address.startswith("tcp:") else address

    @property
    def is_plain(self) -> bool:
        """Whether nothing is spoken beside the port's own bytes."""
        return not (self.telnet or self.websocket or self.tls is not None)

    def connection(
        self,
        name: str,
        fd: int,
        *,
        hostname: str | None = None,
        reconnects: bool = False,
        listeners: Sequence[int] = (),
    ) -> tuple[SocketConnection | LayeredConnection, tuple[int, ...]]:
        """Make a connection, and its descriptors, of a socket.

        Args:
            fd: the socket; owned.
            hostname: whom a server's TLS certificate has to be for.
            reconnects: when it is over, another is made.
            listeners: where other clients wait; duplicated.
        """
        layers: list[SocketLayer] = []
        fds = [fd]
        if not self.is_plain:
            fds.append(os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        if self.tls is not None:
            layers.append(Tls(self.tls.description, hostname))
            fds += self.tls.open_files()
        if self.websocket:
            layers.append(WebSocket())
        if self.telnet:
            layers.append(Telnet(self.server))
        fds += map(os.dup, listeners)
        if not layers:
            return SocketConnection(name, reconnects), tuple(fds)
        return LayeredConnection(name, tuple(layers), reconnects), tuple(fds)
