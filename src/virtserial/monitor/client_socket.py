"""A monitor client's connection, with the descriptors that it passes by SCM_RIGHTS."""

from __future__ import annotations

import socket
from collections import deque
from typing import TYPE_CHECKING

from virtserial.accounting import Account
from virtserial.channel.connections import LoggedConnection, SocketConnection, unlogged
from virtserial.closing import MAX_RIGHTS, close_foreign, drain, pass_descriptors, received_descriptors
from virtserial.host_end.factory import open_host_end
from virtserial.host_end.linger import make_linger
from virtserial.host_end.stream import DescriptorStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.channel.connections import Connection
    from virtserial.host_end.base import HostEnd
    from virtserial.host_end.linger import Linger
    from virtserial.loop import EventLoop

MAX_PASSED = 16
"""Passed descriptors that wait for a command; when there are more, the oldest are closed."""


MAX_READS = 4096
"""Reads of what a client sent before its socket closes: its send buffer can hold as many messages with descriptors."""


class ClientSocket(DescriptorStream):
    """A socket that also receives descriptors, into `passed`: its owner's."""

    def __init__(self, loop: EventLoop, name: str, fd: int, linger: Linger | None = None) -> None:
        super().__init__(loop, name, fd, fd, linger=linger)
        self._socket = socket.socket(fileno=fd)
        pass_descriptors(self._socket, True)
        self.passed: deque[int] = deque()

    def readv(self, buffers: Sequence[memoryview]) -> int:
        if not self.readable:
            return 0
        # The kernel would close those that find no space.
        space = socket.CMSG_SPACE(4 * MAX_RIGHTS)
        try:
            count, ancillary, _, _ = self._socket.recvmsg_into(buffers, space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            self._all_is_read()
            return 0
        except OSError:
            count, ancillary = 0, []
        self.passed.extend(received_descriptors(ancillary))
        while len(self.passed) > MAX_PASSED:
            close_foreign(self.passed.popleft())
        if not count:
            self._finish()
        return count

    def close(self) -> None:
        if not self._closed:
            drain(self._socket, MAX_READS)
            self._socket.detach()
            while self.passed:
                close_foreign(self.passed.popleft())
        super().close()


def open_client_end(
    connection: Connection, fds: Sequence[int], loop: EventLoop
) -> tuple[HostEnd, ClientSocket | None]:
    """Make the moving half of a connection, and the socket in it if descriptors can come by it.

    Raises:
        BackendError: not valid TLS credentials; `fds` are closed.
    """
    bare = unlogged(connection)
    if not isinstance(bare, SocketConnection):
        return open_host_end(connection, fds, loop), None
    is_logged = isinstance(connection, LoggedConnection)
    client = ClientSocket(loop, bare.name, fds[0], make_linger(loop, bare, fds[1:-1] if is_logged else fds[1:]))
    if not is_logged:
        return client, client
    from virtserial.host_end.log import LogFile, LoggedHostEnd

    return LoggedHostEnd(client, LogFile(client.name, fds[-1], Account())), client
