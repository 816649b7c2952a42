"""The host end of one of several clients: a stream that is sent a piece of a file (channel/output_log.py)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.channel.connections import LayeredConnection
from virtserial.host_end.layered import MAX_OUTPUT, LayeredStream
from virtserial.host_end.layers import open_layered_stream
from virtserial.host_end.linger import make_linger
from virtserial.host_end.stream import PEER_GONE, DescriptorStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.accounting import Account
    from virtserial.channel.connections import ClientConnection
    from virtserial.loop import EventLoop


class PlainClient(DescriptorStream):
    """A socket without protocols.  The kernel moves the bytes and the file's position in one call."""

    def send(self, file_fd: int, size: int) -> int:
        """Send up to `size` bytes from a file's position on; return how many, 0 if it would block.

        The position moves along, except for what a peer that has left does not get any more.

        Raises:
            BackendError: it failed and has ended.
        """
        if self._blocked:
            return 0
        if self._hung_up or self._finishing or self._write_fd is None:
            return size
        try:
            count = os.sendfile(self._write_fd, file_fd, None, size)
        except BlockingIOError:
            self._block()
            return 0
        except OSError as error:
            if error.errno not in PEER_GONE:
                raise self._fail("cannot write", error) from error
        else:
            self._account.read += count
            self._account.written += count
            return count
        self._hung_up = self._both_ways
        if self._both_ways and self._wants_input:
            self.readable = True
            self._loop.add_turn(self._announce_readable)
        else:
            self._finish()
        return size


class LayeredClient(LayeredStream):
    """A socket with protocols."""

    def send(self, file_fd: int, size: int) -> int:
        """See PlainClient."""
        self._account.stray = True
        data = os.pread(file_fd, min(size, MAX_OUTPUT), os.lseek(file_fd, 0, os.SEEK_CUR))
        with memoryview(data) as piece:
            taken = self.writev([piece])
        os.lseek(file_fd, taken, os.SEEK_CUR)
        return taken


ClientEnd = PlainClient | LayeredClient


def open_client(
    connection: ClientConnection, fds: Sequence[int], loop: EventLoop, account: Account
) -> ClientEnd:
    """Make the host end of a client.

    Args:
        fds: those of the connection in it; owned.

    Raises:
        BackendError: the TLS credentials are not valid; `fds` are closed.
    """
    inner = connection.connection
    if isinstance(inner, LayeredConnection):
        return open_layered_stream(loop, fds, inner, account, LayeredClient)
    if connection.watches:
        return PlainClient(loop, inner.name, None, fds[0], account)
    return PlainClient(loop, inner.name, fds[0], fds[0], account, make_linger(loop, inner, fds[1:]))
