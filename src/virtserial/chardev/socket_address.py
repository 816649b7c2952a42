"""Where a socket chardev listens or connects, and how QEMU writes that down (query-chardev's filename)."""

from __future__ import annotations

import os
import socket
import stat

from virtserial.errors import ConfigError
from virtserial.named_tuple import NamedTuple

UNIX_PATH_MAX = 108
"""sizeof(sockaddr_un.sun_path)"""


class UnixAddress(NamedTuple):
    """`abstract`: a name in the kernel's table and not in the file system; `tight`: not padded with NULs to 108 bytes.
    """

    path: str
    abstract: bool = False
    tight: bool = True

    def text(self) -> str:
        abstract = ",abstract=on" if self.abstract else ""
        tight = ",tight=on" if self.abstract and self.tight else ""
        return f"unix:{self.path}{abstract}{tight}"

    def peer_text(self) -> str:
        """As error messages name it."""
        return self.path

    def binary(self) -> str | bytes:
        """The address for bind and connect.

        Raises:
            ConfigError: empty or too long.
        """
        encoded = os.fsencode(self.path)
        if not encoded:
            raise ConfigError("UNIX socket path is empty")
        if len(encoded) + self.abstract > UNIX_PATH_MAX - (not self.abstract):
            raise ConfigError(
                f"UNIX socket path '{self.path}' is too long\nPath must be less than {UNIX_PATH_MAX} bytes"
            )
        if not self.abstract:
            return encoded
        name = b"\0" + encoded
        return name if self.tight else name.ljust(UNIX_PATH_MAX, b"\0")


class InetAddress(NamedTuple):
    """`to`: the last port to try when listening; ipv4, ipv6: True: only this, False: not this, None: either."""

    host: str
    port: str
    to: int | None = None
    ipv4: bool | None = None
    ipv6: bool | None = None

    def text(self) -> str:
        return f"tcp:{self.host}:{self.port}"

    def peer_text(self) -> str:
        return f"{self.host}:{self.port}"

    def family(self) -> int:
        """QEMU's inet_ai_family_from_address.

        Raises:
            ConfigError: both families are off.
        """
        if self.ipv4 is False and self.ipv6 is False:
            raise ConfigError("Cannot disable IPv4 and IPv6 at same time")
        if bool(self.ipv4) == bool(self.ipv6):
            if self.ipv4 is False:
                return socket.AF_INET6
            return socket.AF_INET if self.ipv6 is False else socket.AF_UNSPEC
        return socket.AF_INET6 if self.ipv6 else socket.AF_INET

    def resolve(
        self, *, passive: bool = False, kind: int = socket.SOCK_STREAM
    ) -> list[tuple[int, tuple[object, ...]]]:
        """(family, socket address) in the order to try.  Waits for a name server if `host` is a name.

        Raises:
            ConfigError: QEMU's "address resolution failed".
        """
        if self.port.isdigit() and int(self.port) > 65535:
            raise ConfigError(f"address resolution failed for {self.peer_text()}: a port is at most 65535")
        try:
            found = socket.getaddrinfo(
                self.host or None,
                self.port,
                family=self.family(),
                type=kind,
                flags=socket.AI_PASSIVE if passive else 0,
            )
        except (socket.gaierror, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"address resolution failed for {self.peer_text()}: {reason}") from error
        return [(entry[0], entry[4]) for entry in found]

    def is_numeric(self) -> bool:
        """Resolving needs no name server."""
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                socket.inet_pton(family, self.host)
            except (OSError, UnicodeError):
                continue
            return True
        return not self.host


class FdAddress(NamedTuple):
    """A socket that was inherited."""

    fd: int

    def text(self) -> str:
        return f"fd:{self.fd}"

    def peer_text(self) -> str:
        return f"fd {self.fd}"

    def adopt(self) -> socket.socket:
        """The socket, owned from here on; an error leaves it as it was.

        Raises:
            ConfigError: it is not a stream socket.
        """
        try:
            is_socket = stat.S_ISSOCK(os.fstat(self.fd).st_mode)
        except OSError:
            is_socket = False
        if not is_socket:
            raise ConfigError(f"File descriptor '{self.fd}' is not a socket")
        adopted = socket.socket(fileno=self.fd)
        if adopted.type != socket.SOCK_STREAM:
            adopted.detach()
            raise ConfigError(f"File descriptor '{self.fd}' is not a stream socket")
        adopted.set_inheritable(False)
        return adopted


Address = UnixAddress | InetAddress | FdAddress


def bound_text(listener: socket.socket, fallback: Address) -> str:
    """What a listening socket is bound to, in QEMU's form (the port that `port=0` became)."""
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        host, port = listener.getsockname()[:2]
        return f"tcp:{host}:{port}"
    return fallback.text()


def connected_text(connection: socket.socket, address: Address, *, server: bool) -> str:
    """What QEMU shows for a connection: both ends of a TCP connection, the path of a UNIX one."""
    suffix = ",server=on" if server else ""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return address.text() + suffix
    left, right = ("[", "]") if connection.family == socket.AF_INET6 else ("", "")
    try:
        own, peer = connection.getsockname(), connection.getpeername()
    except OSError:
        return address.text() + suffix
    return f"tcp:{left}{own[0]}{right}:{own[1]}{suffix} <-> {left}{peer[0]}{right}:{peer[1]}"


def prepare_stream(connection: socket.socket, *, nodelay: bool) -> None:
    """Make a connection non-blocking, with a send queue of 1 MiB so that one call takes a batch of guest buffers.
    TCP sizes its queue itself unless it is set."""
    connection.setblocking(False)
    if connection.family == socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    elif nodelay:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
