"""Makes the host end of a LayeredConnection, with its layers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from virtserial.channel.connections import Telnet, Tls, WebSocket
from virtserial.errors import BackendError
from virtserial.host_end.layered import LayeredStream
from virtserial.host_end.linger import make_linger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.accounting import Account
    from virtserial.channel.connections import LayeredConnection, SocketLayer
    from virtserial.host_end.layer import Layer
    from virtserial.loop import EventLoop

S = TypeVar("S", bound=LayeredStream)


def open_layered_stream(
    loop: EventLoop,
    fds: Sequence[int],
    connection: LayeredConnection,
    account: Account,
    make: type[S],
) -> S:
    """Make the host end of a LayeredConnection, of the given class.

    Raises:
        BackendError: the TLS credentials are not valid; `fds` are closed.
    """
    end_of_files = 2 + sum(len(layer.files.roles) for layer in connection.layers if isinstance(layer, Tls))
    files, listeners = fds[2:end_of_files], fds[end_of_files:]
    try:
        made = _make_layers(connection.layers, files)
    except BackendError:
        for fd in (*fds[:2], *listeners):
            os.close(fd)
        raise
    finally:
        for fd in files:
            os.close(fd)
    linger = make_linger(loop, connection, listeners)
    return make(loop, connection.name, fds[0], fds[1], made, account, linger)


def _make_layers(layers: Sequence[SocketLayer], fds: Sequence[int]) -> list[Layer]:
    """Make the layers of a connection, the one next to the socket first.

    Args:
        fds: the files of TLS credentials.

    Raises:
        BackendError: the TLS credentials are not valid.
    """
    made: list[Layer] = []
    for layer in layers:
        match layer:
            case Tls(files, hostname):
                from virtserial.host_end.tls import TlsLayer, context_of

                made.append(TlsLayer(context_of(layer, fds), server=files.server, hostname=hostname))
            case WebSocket():
                from virtserial.host_end.websocket import WebSocketLayer

                made.append(WebSocketLayer())
            case Telnet(server):
                from virtserial.host_end.telnet import TelnetLayer

                made.append(TelnetLayer(server=server))
    return made
