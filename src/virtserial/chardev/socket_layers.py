"""What is spoken on a chardev socket beside the port's own bytes, and how a connection says so to the worker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from virtserial.chardev.base import Connection
from virtserial.chardev.preparation import Preparation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.chardev.tls_credentials import TlsCredentials


class SocketLayers(NamedTuple):
    """telnet, websocket, TLS beneath them; all off: a plain stream."""

    server: bool
    telnet: bool = False
    websocket: bool = False
    tls: TlsCredentials | None = None

    def preparations(self, name: str) -> Sequence[Preparation]:
        """See Chardev.preparations."""
        if self.tls is None:
            return ()
        params: dict[str, object] = {"name": name, "server": self.server, **self.tls.params}
        return (Preparation(f"tls {self.server} {self.tls.params['context']}", params, self.tls),)

    def text(self, address: str) -> str:
        """An address as QEMU shows it (qemu_chr_socket_protocol): only TCP ones name the protocol."""
        protocol = "telnet" if self.telnet else "websocket" if self.websocket else "tcp"
        return protocol + address[3:] if address.startswith("tcp:") else address

    def connection(self, name: str, fd: int, hostname: str | None = None) -> Connection:
        """Make a Connection of a socket, which it owns.

        Args:
            hostname: whom a server's TLS certificate has to be for.
        """
        if not (self.telnet or self.websocket or self.tls):
            return Connection("stream", (fd,), {"name": name, "read": 0, "write": 0})
        fds = [fd, os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)]
        layers: list[dict[str, object]] = []
        if self.tls is not None:
            params, files = self.tls.duplicate(first_index=len(fds))
            fds += files
            layers.append({"kind": "tls", "server": self.server, "hostname": hostname, **params})
        if self.websocket:
            layers.append({"kind": "websocket"})
        if self.telnet:
            layers.append({"kind": "telnet", "server": self.server})
        return Connection("layered", tuple(fds), {"name": name, "layers": layers})
