"""The connection to the monitor of the QEMU beside us, on the keeper's event loop."""

from __future__ import annotations

import array
import logging
import socket
from typing import TYPE_CHECKING, Final

from virtserial.errors import PeerError
from virtserial.loop import EPOLLIN, EPOLLOUT
from virtserial.monitor.qmp_client import QmpClientSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.loop import EventLoop
    from virtserial.monitor.qmp_client import Ask

log = logging.getLogger("virtserial.monitor")

READ_SIZE: Final = 64 << 10


class QemuConnection:
    """A QmpClientSession over a stream socket.

    Args:
        stream: connected to one of QEMU's monitors; owned from here on.
        event: takes each event, as QEMU has sent it.
        ready: called when QEMU answers.
        ended: called when QEMU has closed its end, after everything it sent was taken.
    """

    def __init__(
        self,
        loop: EventLoop,
        stream: socket.socket,
        event: Callable[[dict[str, object]], None],
        ready: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self.session = QmpClientSession(event, ready)
        self._loop = loop
        self._stream = stream
        self._ended = ended
        self._blocked = False
        self._closed = False
        stream.setblocking(False)
        loop.watch(stream.fileno(), EPOLLIN, self._ready)

    def ask(self, ask: Ask, answer: Callable[[object], None]) -> None:
        """Ask QEMU (QmpClientSession.ask)."""
        self.session.ask(ask, answer)
        self._flush()

    def _ready(self, events: int) -> None:
        if events & EPOLLOUT:
            self._flush()
        if events & ~EPOLLOUT:
            self._read()

    def read_all(self) -> None:
        """Take everything that QEMU has sent so far."""
        while self._read():
            pass

    def _read(self) -> bool:
        """Take one piece; False: there is none."""
        if self._closed:
            return False
        try:
            data = self._stream.recv(READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            self._ended()
            return False
        try:
            self.session.receive(data)
        except PeerError as error:
            log.error("QEMU's monitor: %s", error)
        self._flush()
        return True

    def _flush(self) -> None:
        waiting = self.session.to_send
        while waiting and not self._closed:
            data, fd = waiting.popleft()
            rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            try:
                sent = self._stream.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                waiting.appendleft((data, fd))
                break
            except OSError:
                break  # Its end is on its way to us.
            if sent < len(data):
                waiting.appendleft((data[sent:], None))
        self._watch_writable(bool(waiting))

    def _watch_writable(self, blocked: bool) -> None:
        if blocked != self._blocked and not self._closed:
            self._blocked = blocked
            self._loop.rewatch(self._stream.fileno(), EPOLLIN | (EPOLLOUT if blocked else 0))

    def close(self) -> None:
        """Close our end; every open request is answered with MonitorGoneError.  Calling it twice is harmless."""
        if not self._closed:
            self._closed = True
            self._loop.unwatch(self._stream.fileno())
            self._stream.close()
            self.session.end()
