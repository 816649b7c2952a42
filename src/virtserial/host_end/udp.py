"""The moving half of chardev udp."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from virtserial.errors import BackendError
from virtserial.host_end.base import HostEnd
from virtserial.host_end.buffers import IOV_MAX
from virtserial.loop import EPOLLERR, EPOLLET, EPOLLIN, EPOLLOUT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.accounting import Account
    from virtserial.loop import EventLoop

MAX_DATAGRAM = 65507
"""Bytes of payload in IPv4: 65535 less the headers.  A longer buffer of the guest becomes several datagrams."""
BURST = 64
"""Datagrams sent or skipped in one call."""


class UdpHostEnd(HostEnd):
    """Never ends: without a receiver (ECONNREFUSED, by ICMP) datagrams are lost, as on the network.

    A datagram that is longer than the guest's buffers is kept and given in pieces.
    """

    def __init__(self, loop: EventLoop, name: str, fd: int, account: Account) -> None:
        super().__init__(name)
        self._account = account
        self._loop = loop
        self._socket = socket.socket(fileno=fd)
        self._rest = b""
        self._blocked = False
        self._closed = False

    def start(self) -> None:
        self._loop.watch(self._socket.fileno(), EPOLLIN | EPOLLET, self._event)
        self.connected = True
        self.listener.host_opened()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.connected = self.readable = False
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()

    def _event(self, events: int) -> None:
        if events & EPOLLERR:
            self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # reading it clears it
        if events & EPOLLOUT and self._blocked:
            self._blocked = False
            self._loop.rewatch(self._socket.fileno(), EPOLLIN | EPOLLET)
            self.listener.host_writable()
        if events & EPOLLIN and not self._closed:
            self.readable = True
            self.listener.host_readable()

    def writev(self, buffers: Sequence[memoryview]) -> int:
        taken = 0
        for buffer in buffers[:BURST]:
            piece = buffer[:MAX_DATAGRAM]
            if self._blocked or (piece and not self._send(piece)):
                break
            taken += piece.nbytes
            if piece.nbytes < buffer.nbytes:
                break
        return taken

    def _send(self, payload: memoryview) -> bool:
        """Send a datagram; return False if there is no room now."""
        for _ in range(2):
            try:
                self._socket.send(payload)
            except BlockingIOError:
                self._blocked = True
                self._loop.rewatch(self._socket.fileno(), EPOLLIN | EPOLLOUT | EPOLLET)
                return False
            except ConnectionRefusedError:
                continue  # That was about an earlier datagram; this one was not sent.
            except OSError as error:
                raise self._failed("cannot send", error) from error
            return True
        self.output_discarded += payload.nbytes
        return True

    def readv(self, buffers: Sequence[memoryview]) -> int:
        buffers = buffers[:IOV_MAX]
        room = sum(buffer.nbytes for buffer in buffers)
        if self._rest:
            return self._give_rest(buffers)
        for _ in range(BURST):
            if not self.readable or not room:
                break
            try:
                # MSG_TRUNC: how long the datagram is, whatever room there is.
                size = self._socket.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
                if size > room:
                    self._rest = self._socket.recv(size)
                    return self._give_rest(buffers)
                self._account.stray = True
                if count := os.readv(self._socket.fileno(), buffers):
                    return count
            except BlockingIOError:
                self.readable = False
            except ConnectionRefusedError:
                pass
            except OSError as error:
                raise self._failed("cannot receive", error) from error
        return 0

    def _give_rest(self, buffers: Sequence[memoryview]) -> int:
        given = 0
        for buffer in buffers:
            piece = self._rest[given : given + buffer.nbytes]
            buffer[: len(piece)] = piece
            given += len(piece)
        self._rest = self._rest[given:]
        return given

    def _failed(self, what: str, error: OSError) -> BackendError:
        self.connected = self.readable = False
        self.ended = True
        return BackendError(f"{self.name}: {what}: {error.strerror}")
