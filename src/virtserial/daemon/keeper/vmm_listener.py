"""Where a controller waits for its VMM: a UNIX socket, one client at a time."""

from __future__ import annotations

import logging
import os
import socket
import struct
from socket import SO_PEERCRED, SOL_SOCKET
from typing import TYPE_CHECKING

from virtserial.chardev.reach import ANYWHERE
from virtserial.chardev.unix_listener import UnixListener
from virtserial.daemon.keeper.acceptor import Acceptor
from virtserial.daemon.keeper.document import ListenerLeft
from virtserial.daemon.keeper.systemd import ActivatedListener

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.chardev.base import Put, Take
    from virtserial.chardev.reach import Reach
    from virtserial.daemon.keeper.farewell import Farewell
    from virtserial.loop import EventLoop, Timer

_CREDENTIALS = struct.Struct("iII")
"""struct ucred."""

log = logging.getLogger("virtserial.keeper")

BACKLOG = 8
PATIENCE = 1.0
"""Seconds a second client waits for the first to be gone: a VMM that is started anew may be faster than the news of
the old one's end.  Then it is refused: QEMU would wait for ever."""
MAX_WAITING = 4
"""Clients that wait at a time; the others stay in the backlog, so descriptors and refusals are bounded."""


class VmmListener:
    """Listens for one controller's VMM.

    Args:
        accepted: called with each client's socket, one at a time: the next only after `client_gone`.
        farewell: closes the sockets of those that are refused.
        reach: uses `path`.
        listener: one that listens at `path` already, made by a service manager or left by another process.

    Raises:
        ConfigError: a live server listens at `path`, or it cannot be used.
    """

    def __init__(
        self,
        loop: EventLoop,
        name: str,
        path: str,
        accepted: Callable[[socket.socket], None],
        farewell: Farewell,
        listener: ActivatedListener | UnixListener | None = None,
        reach: Reach = ANYWHERE,
    ) -> None:
        self.path = path
        self._loop = loop
        self._name = name
        self._accepted = accepted
        self._farewell = farewell
        self._listener = listener or UnixListener(path, BACKLOG, mode=0o600, reach=reach)
        self._any_user = not isinstance(self._listener, UnixListener)
        self._socket = self._listener.socket
        self._busy = False
        self._waiting: list[tuple[socket.socket, Timer]] = []
        self._acceptor = Acceptor(loop, self._socket, name, self._came)

    def hand_over(self, put: Put) -> ListenerLeft:
        """Return what another process needs to take it over (`take_over`)."""
        listener = self._listener
        return ListenerLeft(
            path=self.path,
            descriptor=put(self._socket.fileno()),
            inode=listener.inode if isinstance(listener, UnixListener) else None,
            activated_as=None if isinstance(listener, UnixListener) else listener.name,
            busy=self._busy,
            waiting=tuple(put(client.fileno()) for client, _ in self._waiting),
        )

    @classmethod
    def take_over(
        cls,
        loop: EventLoop,
        name: str,
        accepted: Callable[[socket.socket], None],
        farewell: Farewell,
        left: ListenerLeft,
        take: Take,
    ) -> VmmListener:
        """Take over what another process has left.

        Raises:
            ConfigError: its descriptor is no socket that listens.
            StateError: a descriptor is missing.
        """
        fd = take(left.descriptor)
        if left.inode is not None:
            taken: ActivatedListener | UnixListener = UnixListener.resume(left.path, fd, left.inode)
        else:
            taken = ActivatedListener(left.activated_as or "", fd)
        listener = cls(loop, name, left.path, accepted, farewell, taken)
        listener._busy = left.busy
        for number in left.waiting:
            listener._wait(socket.socket(fileno=take(number)))
        return listener

    def _came(self, client: socket.socket) -> None:
        if not self._may_come(client):
            return
        if not self._busy:
            self._busy = True
            self._accepted(client)
        else:
            self._wait(client)

    def _wait(self, client: socket.socket) -> None:
        self._waiting.append((client, self._loop.call_later(PATIENCE, self._refuse)))
        if len(self._waiting) == MAX_WAITING:
            self._acceptor.unwatch()

    def _may_come(self, client: socket.socket) -> bool:
        """Whether a client is of this user, or root; at a socket that a service manager made, its mode decides."""
        _, user, _ = _CREDENTIALS.unpack(client.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS.size))
        if self._any_user or user in (0, os.geteuid()):
            return True
        log.warning("%s: a client of user %d was refused at %s", self._name, user, self.path)
        self._farewell.close(client.detach())
        return False

    def _next_waiting(self) -> tuple[socket.socket, Timer]:
        if len(self._waiting) == MAX_WAITING:
            self._acceptor.watch()
        return self._waiting.pop(0)

    def _refuse(self) -> None:
        client, _ = self._next_waiting()
        log.warning("%s: a second VMM was refused: the first is still connected to %s", self._name, self.path)
        self._farewell.close(client.detach())

    def client_gone(self) -> None:
        """The client that was accepted is gone: the next one may come."""
        self._busy = False
        if self._waiting:
            client, timer = self._next_waiting()
            timer.cancel()
            self._busy = True
            self._accepted(client)

    def close(self) -> None:
        """Stop listening and remove the socket file, if it is still ours."""
        self._acceptor.unwatch()
        self._listener.close()
        for client, timer in self._waiting:
            timer.cancel()
            self._farewell.close(client.detach())
        self._waiting.clear()
