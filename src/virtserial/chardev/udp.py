"""chardev udp: each buffer the guest writes is a datagram, and what comes back is the guest's input (QEMU's
chardev/char-udp.c)."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from virtserial.channel.connections import UdpConnection
from virtserial.chardev.base import Chardev
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from virtserial.chardev.base import ConnectionSink
    from virtserial.chardev.socket_address import InetAddress
    from virtserial.loop import EventLoop


class UdpChardev(Chardev):
    """A connected datagram socket: it receives from `remote` only, and counts as connected with or without a peer.

    Args:
        remote: where datagrams go.
        local: the address to send from; the system chooses for host "" and port "0".
    """

    kind = "udp"

    def __init__(self, chardev_id: str, remote: InetAddress, local: InetAddress) -> None:
        super().__init__(chardev_id)
        self.remote = remote
        self.local = local

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        family, remote = self.remote.resolve(kind=socket.SOCK_DGRAM)[0]
        local = next(
            (place for found, place in self.local.resolve(passive=True, kind=socket.SOCK_DGRAM) if found == family),
            None,
        )
        if local is None:
            raise ConfigError(f"Failed to bind socket: {self.local.host} is of another family than {self.remote.host}")
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        try:
            what = "Failed to bind socket"
            datagrams.bind(local)
            what = f"Failed to connect to '{self.remote.peer_text()}'"
            datagrams.connect(remote)
        except OSError as error:
            datagrams.close()
            raise ConfigError(f"{what}: {error.strerror}") from error
        datagrams.setblocking(False)
        connection = UdpConnection(f"chardev '{self.id}' (udp to {self.remote.peer_text()})")
        sink.connection_opened(self, connection, (datagrams.detach(),))
