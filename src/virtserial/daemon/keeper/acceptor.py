"""Takes clients off a listening socket of the keeper's."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from virtserial.loop import EPOLLIN

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from virtserial.loop import EventLoop, Timer

log = logging.getLogger("virtserial.keeper")

ACCEPT_AGAIN: Final = 1.0
"""Seconds after accept has failed for want of descriptors or memory: the loop would call again at once, for ever."""


class Acceptor:
    """
    Args:
        listener: listens; stays the caller's.
        name: what it is called in the log.
        accepted: takes each client.
    """

    def __init__(
        self, loop: EventLoop, listener: socket.socket, name: str, accepted: Callable[[socket.socket], None]
    ) -> None:
        listener.setblocking(False)
        self._loop = loop
        self._listener = listener
        self._name = name
        self._accepted = accepted
        self._pause: Timer | None = None
        self.watch()

    def watch(self) -> None:
        """Take clients."""
        self._pause = None
        self._loop.watch(self._listener.fileno(), EPOLLIN, self._accept)

    def unwatch(self) -> None:
        """Leave clients in the backlog; call it before you close the listener."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._loop.unwatch(self._listener.fileno())

    def _accept(self, _: int) -> None:
        try:
            client, _address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            log.error("%s: cannot accept a client: %s", self._name, error.strerror)
            self.unwatch()
            self._pause = self._loop.call_later(ACCEPT_AGAIN, self.watch)
            return
        try:
            self._accepted(client)
        except Exception:
            # For want of a descriptor even an import fails.
            log.exception("%s: a client cannot be served", self._name)
            client.close()
