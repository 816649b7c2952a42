"""One connection of a chardev, as the keeper hands it to the worker: a record for each kind.

| record | descriptors beside it, in order |
|---|---|
| SocketConnection | a connected stream socket; the listening sockets where another client may wait |
| StreamConnection | what is read and what is written: files, FIFOs, a serial line, standard input and output |
| LayeredConnection | a connected stream socket; an eventfd, its ticket; files of TLS credentials; listening sockets |
| PtyConnection | the master; an inotify descriptor that tells of opens, where the system has one left |
| UdpConnection | a connected datagram socket |
| RingbufConnection | the ring's memory |
| NullConnection, HandlerConnection | none |
| SharedConnection | the log of the output (channel/output_log.py) |
| ClientConnection | those of the connection in it; the log, opened again: its position is the client's |
| LoggedConnection | those of the connection in it; the log |
"""

from typing import Literal, get_args

from virtserial.channel.codec import OneOf
from virtserial.channel.record import record

MAX_FRONTS = 4
"""Users of one chardev with mux=on: QEMU's MAX_MUX."""


# What has to be read before it is used

@record
class HandlerCode:
    """The source of a handler.

    Attributes:
        module: its name, if `path` is empty.
        path: its file.
    """

    module: str
    path: str


@record
class TlsFiles:
    """TLS credentials, whose files are memory files.

    Attributes:
        server: they are a server's, not a client's.
        verify: the peer has to show a certificate of the CA.
        context: tells these credentials from others.
        roles: what each file is: "ca-cert", "ca-crl", "cert", "key", "dh-params".
    """

    server: bool
    verify: bool
    context: str
    roles: tuple[str, ...]


Readable = HandlerCode | TlsFiles

READABLE = OneOf[Readable](get_args(Readable))


# What is spoken on a socket

@record
class Tls:
    """
    Attributes:
        hostname: what a server's certificate must be for; None: any that the CA has signed.
    """

    files: TlsFiles
    hostname: str | None


@record
class WebSocket:
    """The server's side."""


@record
class Telnet:
    """
    Attributes:
        server: begin with the server's offers.
    """

    server: bool


SocketLayer = Tls | WebSocket | Telnet


# Connections

@record
class SocketConnection:
    """A plain stream; a client may pass descriptors along with its bytes.

    Attributes:
        reconnects: when it is over, another is made.
    """

    name: str
    reconnects: bool = False


@record
class StreamConnection:
    """
    Attributes:
        read, write: the descriptor's index; None: nothing is read, nothing is written.
    """

    name: str
    read: int | None
    write: int | None


@record
class LayeredConnection:
    """A stream socket with protocols on it.

    Attributes:
        layers: the one next to the socket first.
        reconnects: when it is over, another is made.
    """

    name: str
    layers: tuple[SocketLayer, ...]
    reconnects: bool = False


@record
class PtyConnection:
    """A pseudo-terminal, whether somebody has it open or not."""

    name: str


@record
class UdpConnection:
    """Datagrams."""

    name: str


@record
class RingbufConnection:
    """A ring in memory (channel/ring_memory.py)."""

    name: str


@record
class NullConnection:
    """Nobody is there."""

    name: str


@record
class HandlerConnection:
    """A handler class, by its name in its code."""

    name: str
    code: HandlerCode
    attribute: str


Slow = Literal["block", "drop", "disconnect"]
"""What happens for a client that does not read: the guest waits, the client loses output, or its connection."""


@record
class SharedConnection:
    """A chardev with several clients, whether any is there or not; each comes as a ClientConnection.

    Attributes:
        backlog: bytes of output that a client first gets.
        plain: nothing is spoken with clients beside the port's own bytes.
    """

    name: str
    slow: Slow
    backlog: int
    plain: bool


BareConnection = (
    SocketConnection | StreamConnection | LayeredConnection | PtyConnection | UdpConnection | RingbufConnection
    | NullConnection | HandlerConnection | SharedConnection
)  # fmt: skip


@record
class LoggedConnection:
    """A connection with a log of what the guest writes."""

    connection: BareConnection

    @property
    def name(self) -> str:
        return self.connection.name


@record
class ClientConnection:
    """One of a chardev's several clients.

    Attributes:
        place: tells it from the others that are there.
        watches: it only reads.
    """

    connection: SocketConnection | LayeredConnection
    place: int
    watches: bool

    @property
    def name(self) -> str:
        return self.connection.name


Connection = BareConnection | LoggedConnection | ClientConnection

CONNECTION = OneOf[Connection](get_args(Connection))


def unlogged(connection: Connection) -> BareConnection | ClientConnection:
    """Return the connection without its log."""
    return connection.connection if isinstance(connection, LoggedConnection) else connection


def is_peer_there(connection: Connection) -> bool:
    """Whether somebody can be at the other end of it."""
    match connection:
        case LoggedConnection(inner):
            return is_peer_there(inner)
        case SharedConnection():
            return bool(connection.backlog)
        case _:
            return not isinstance(connection, NullConnection)
