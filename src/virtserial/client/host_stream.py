"""The host's end of a port as a stream that reconnects by itself."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import struct
import termios
import time
import tty
from typing import TYPE_CHECKING

from virtserial.client.address import Address, TcpAddress, TerminalAddress, UnixAddress, parse_address
from virtserial.errors import ConfigError
from virtserial.guest.stream import READ_SIZE, Buffer, EpollStream

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST_RETRY, LAST_RETRY = 0.05, 1.0
"""Seconds between two attempts to connect; they double each time."""
MAX_BUFFERS = 64
LASTING = frozenset((
    None, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTSOCK,
    errno.EPROTOTYPE, errno.ENOTTY,
))  # fmt: skip
"""Why no attempt to connect can succeed; None is Python's for a path that is too long."""


class HostStream(EpollStream):
    """A connection to a chardev: a listening UNIX or TCP socket, or a pseudo-terminal.

    `connected` is about this connection, which is the guest's "host is connected"; whether the guest has the port open
    only the monitor knows (virtserial.client.monitor).  Written bytes wait in the socket until the guest reads.
    A chardev serves one connection; a second one waits in the socket's queue and looks connected.
    """

    def __init__(self, address: str | Address, reconnect: bool = True) -> None:
        """Begin to connect.

        Args:
            address: see parse_address.
            reconnect: connect again when the connection ends; the first connection is retried in any case.

        Raises:
            ConfigError: not an address.
        """
        self._socket: socket.socket | None = None
        self._terminal = -1
        self._was_reset = False
        self._refusal = ""
        super().__init__()
        self.address = parse_address(address) if isinstance(address, str) else address
        self._reconnect = reconnect
        self._had_connection = False
        self._connecting = False
        self._retry_after = FIRST_RETRY
        self._next_attempt = 0.0
        self._connect_if_due()

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        self._connect_if_due()
        return (self._socket is not None or self._terminal >= 0) and not self._connecting

    def receive(self, limit: int = READ_SIZE) -> bytes | None:
        """See PortStream.receive."""
        if not self.connected:
            return b""
        try:
            data = self._socket.recv(limit) if self._socket else os.read(self._terminal, limit)
        except BlockingIOError:
            return None
        except OSError as error:
            data, self._was_reset = b"", error.errno == errno.ECONNRESET
        if not data:
            self._drop()
        return data

    def send(self, buffers: Sequence[Buffer]) -> int:
        """See PortStream.send."""
        if not self.connected:
            return 0
        try:
            if self._socket:
                return self._socket.sendmsg(buffers[:MAX_BUFFERS], (), socket.MSG_NOSIGNAL)
            return os.writev(self._terminal, buffers[:MAX_BUFFERS])
        except BlockingIOError:
            return 0
        except OSError:
            # There may be bytes to read before the end: receive() finds it.
            return 0

    def all_taken(self) -> bool:
        """See PortStream.all_taken.

        A UNIX socket tells what the device has read, and it reads for a guest that has the port open; TCP tells what
        the other kernel has.  A socket that is closed with unread bytes in it resets the connection.
        """
        if self._socket is None:
            return not self._was_reset
        return struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4))) == (0,)

    def wait(self, timeout: float | None = None) -> bool:
        """See PortStream.wait."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            attempt = self.next_attempt()
            span = min((each for each in (left, attempt) if each is not None), default=None)
            if self._epoll.poll(None if span is None else max(span, 0.0)):
                return True
            if self._connect_if_due():
                return True
            if left is not None and left <= 0:
                return False

    def next_attempt(self) -> float | None:
        """See PortStream.next_attempt."""
        if self._connecting or self._socket is not None or self._terminal >= 0 or self._is_over():
            return None
        return max(self._next_attempt - time.monotonic(), 0.0)

    def departed(self) -> bool:
        """See PortStream.departed."""
        if self._socket is not None and self.connected:
            with contextlib.suppress(BlockingIOError):
                try:
                    ended = not self._socket.recv(1, socket.MSG_PEEK)
                except ConnectionError:
                    ended = True
                if ended:
                    self._drop()
                elif len(self._received) < READ_SIZE:
                    self._received += self.receive() or b""
        return not self.connected

    def probe(self) -> None:
        """See PortStream.probe.

        Raises:
            ConfigError: to wait is of no use: the address is no socket or terminal that this process may use.
        """
        if self._refusal:
            raise ConfigError(f"{self.address}: {self._refusal}")

    def set_terminal_size(self, rows: int, columns: int) -> None:
        """Set a pseudo-terminal's window size; does nothing for a socket."""
        if self._terminal >= 0:
            termios.tcsetwinsize(self._terminal, (rows, columns))

    def close(self) -> None:
        """Close the connection; the peer still gets what was written."""
        self._reconnect, self._had_connection = False, True
        self._drop()
        super().close()

    # Connecting

    def _is_over(self) -> bool:
        return self._had_connection and not self._reconnect

    def _connect_if_due(self) -> bool:
        """Try to connect if it is time; return whether anything changed."""
        if self._connecting:
            return self._finish_connecting()
        attempt = self.next_attempt()
        if attempt is None or attempt > 0:
            return False
        try:
            self._connect()
        except OSError as error:
            self._refusal = (error.strerror or str(error)) if error.errno in LASTING else ""
            self._retry()
            return bool(self._refusal)
        if not self._connecting:
            self._succeeded()
        return True

    def _connect(self) -> None:
        target: str | tuple[object, ...]
        match self.address:
            case TerminalAddress(path):
                self._open_terminal(path)
                return
            case UnixAddress(path):
                if os.path.exists(path) and not stat.S_ISSOCK(os.stat(path).st_mode):
                    # The kernel refuses it as it does a socket whose listener is away.
                    raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
                connection, target = socket.socket(socket.AF_UNIX), path
            case TcpAddress(host, port):
                family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
                connection = socket.socket(family)
        try:
            connection.setblocking(False)
            self._epoll.register(connection, self.EDGES)
            error = connection.connect_ex(target)
            # A UNIX socket whose queue is full says EAGAIN and is not connected.
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
            self._connecting = error == errno.EINPROGRESS
        except OSError:
            connection.close()
            raise
        self._socket = connection

    def _finish_connecting(self) -> bool:
        assert self._socket is not None
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        if not poll.poll(0):
            return False
        self._connecting = False
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._drop()
            self._retry()
            return False
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._succeeded()
        return True

    def _open_terminal(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            tty.setraw(fd)
            self._epoll.register(fd, self.EDGES)
        except (OSError, termios.error) as error:
            os.close(fd)
            raise OSError(*error.args) from error
        self._terminal = fd

    def _succeeded(self) -> None:
        self._had_connection = True
        self._refusal = ""
        self._was_reset = False
        self._retry_after = FIRST_RETRY

    def _retry(self) -> None:
        self._next_attempt = time.monotonic() + self._retry_after
        self._retry_after = min(self._retry_after * 2, LAST_RETRY)

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1
        self._connecting = False
        self._retry_after = FIRST_RETRY
        self._retry()
