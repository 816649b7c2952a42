"""Takes clients off the listening sockets of a chardev, one at a time; the others wait in the backlog."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

from virtserial.channel.record import replace
from virtserial.loop import EPOLLIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from virtserial.channel.messages import Connect
    from virtserial.loop import EventLoop, Timer

log = logging.getLogger("virtserial.worker")

ACCEPT_AGAIN = 1.0
"""Seconds after accept has failed for want of descriptors or memory."""


class ClientListener:
    """
    Args:
        connect: what the first client's connection is; the next one's has the next serial number.
        fds: the sockets; owned.
        accepted: takes each client's connection and its descriptors.  It begins with `listen`, after each client again.
    """

    def __init__(
        self, loop: EventLoop, connect: Connect, fds: Iterable[int], accepted: Callable[[Connect, list[int]], None]
    ) -> None:
        self._loop = loop
        self._connect = connect
        self._sockets = [socket.socket(fileno=fd) for fd in fds]
        self._accepted = accepted
        self._watching = False
        self._pause: Timer | None = None

    def listen(self) -> None:
        """Take the next client: at once if one waits, else when it comes."""
        if not self._accept():
            self._watch()

    def close(self) -> None:
        """Take no more clients, and close the sockets here."""
        self._unwatch()
        for listener in self._sockets:
            listener.close()
        self._sockets.clear()

    def _watch(self) -> None:
        self._pause = None
        self._watching = True
        for listener in self._sockets:
            self._loop.watch(listener.fileno(), EPOLLIN, self._client_came)

    def _unwatch(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._watching:
            self._watching = False
            for listener in self._sockets:
                self._loop.unwatch(listener.fileno())

    def _client_came(self, _events: int) -> None:
        if self._watching:  # Two listeners (IPv4 and IPv6) may have one each.
            self._accept()

    def _accept(self) -> bool:
        """Whether the listener is done for now: a client was taken, or it has to pause."""
        for listener in self._sockets:
            try:
                client, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                log.warning("chardev '%s': cannot accept a client: %s", self._connect.chardev, error.strerror)
                self._unwatch()
                self._pause = self._loop.call_later(ACCEPT_AGAIN, self._watch)
                return True
            self._unwatch()
            client.setblocking(False)
            connect, self._connect = self._connect, replace(self._connect, serial=self._connect.serial + 1)
            self._accepted(connect, [client.detach(), *(os.dup(each.fileno()) for each in self._sockets)])
            return True
        return False
