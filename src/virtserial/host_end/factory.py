"""Makes the worker's half of a connection, of whatever kind; a kind's module is imported when it is first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.accounting import Account
from virtserial.channel.connections import (
    ClientConnection,
    HandlerConnection,
    LayeredConnection,
    LoggedConnection,
    NullConnection,
    PtyConnection,
    RingbufConnection,
    SharedConnection,
    SocketConnection,
    StreamConnection,
    UdpConnection,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.channel.connections import BareConnection, Connection
    from virtserial.host_end.base import HostEnd
    from virtserial.host_end.clients import ClientsHostEnd
    from virtserial.loop import EventLoop


def open_host_end(
    connection: Connection,
    fds: Sequence[int],
    loop: EventLoop,
    account: Account | None = None,
    shared: Callable[[ClientsHostEnd], None] | None = None,
) -> HostEnd:
    """Make the moving half of a connection.

    Args:
        fds: its descriptors (channel/connections.py); owned from here on.
        account: gets what is read and written; None: nobody counts.
        shared: gets the host end to which the clients of a SharedConnection are added.

    Raises:
        BackendError: a handler's class cannot be loaded or made, TLS credentials are not valid; `fds` are closed.
    """
    account = account or Account()
    if isinstance(connection, ClientConnection):
        from virtserial.host_end.client_ends import open_client

        return open_client(connection, fds, loop, account)
    if not isinstance(connection, LoggedConnection):
        return _open(connection, fds, loop, account, shared)
    from virtserial.host_end.log import LogFile, LoggedHostEnd

    log_file = LogFile(connection.name, fds[-1], account)
    try:
        return LoggedHostEnd(_open(connection.connection, fds[:-1], loop, account, shared), log_file)
    except BaseException:
        log_file.close()
        raise


def _open(
    connection: BareConnection,
    fds: Sequence[int],
    loop: EventLoop,
    account: Account,
    shared: Callable[[ClientsHostEnd], None] | None,
) -> HostEnd:
    match connection:
        case SocketConnection(name):
            from virtserial.host_end.linger import make_linger
            from virtserial.host_end.stream import DescriptorStream

            return DescriptorStream(loop, name, fds[0], fds[0], account, make_linger(loop, connection, fds[1:]))
        case StreamConnection(name, read, write):
            from virtserial.host_end.stream import DescriptorStream

            read_fd = None if read is None else fds[read]
            write_fd = None if write is None else fds[write]
            return DescriptorStream(loop, name, read_fd, write_fd, account)
        case LayeredConnection():
            from virtserial.host_end.layered import LayeredStream
            from virtserial.host_end.layers import open_layered_stream

            return open_layered_stream(loop, fds, connection, account, LayeredStream)
        case PtyConnection(name):
            from virtserial.host_end.pty import PtyHostEnd

            return PtyHostEnd(loop, name, fds[0], fds[1] if len(fds) > 1 else None, account)
        case UdpConnection(name):
            from virtserial.host_end.udp import UdpHostEnd

            return UdpHostEnd(loop, name, fds[0], account)
        case RingbufConnection(name):
            from virtserial.host_end.ringbuf import RingbufHostEnd

            return RingbufHostEnd(loop, name, fds[0], account)
        case HandlerConnection(name):
            from virtserial.host_end.handler import HandlerHostEnd, load_handler

            return HandlerHostEnd(loop, name, load_handler(connection))
        case SharedConnection():
            from virtserial.host_end.clients import ClientsHostEnd

            end = ClientsHostEnd(loop, connection, fds[0], account)
            if shared is not None:
                shared(end)
            return end
        case NullConnection(name):
            from virtserial.host_end.null import NullHostEnd

            return NullHostEnd(name)
