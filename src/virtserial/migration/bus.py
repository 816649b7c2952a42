"""The private bus that QEMU's dbus-vmstate object speaks to: one socket, for one client, which has to be our QEMU."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

from virtserial.daemon.keeper.acceptor import Acceptor
from virtserial.errors import ConfigError, PeerError
from virtserial.loop import EPOLLIN, EPOLLOUT
from virtserial.migration.dbus import MAX_MESSAGE, BusSession
from virtserial.migration.start import peer_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.loop import EventLoop

log = logging.getLogger("virtserial.migration")

READ_SIZE: Final = 64 << 10
MAX_ANCESTORS: Final = 4


def parent_of(pid: int) -> int:
    """The process that a process belongs to, 0 if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # Behind the program's name, which may contain anything: state, parent.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


class StateBus:
    """Listens until the one client has come, and answers it.

    Args:
        path: where it listens, mode 0600.
        helper, look, save, load: see BusSession.
        pid: the only process that may come, or one that it has started; None: any of our user's.

    Raises:
        ConfigError: the socket cannot be had.
    """

    def __init__(
        self,
        loop: EventLoop,
        path: str,
        helper: str,
        look: Callable[[], None],
        save: Callable[[], bytes],
        load: Callable[[bytes], None],
        pid: int | None = None,
    ) -> None:
        self._loop = loop
        self._path = path
        self._new_session = partial(BusSession, helper, look, save, load)
        self._pid = pid
        self._listener: socket.socket | None = None
        self._acceptor: Acceptor | None = None
        self._client: BusClient | None = None
        self._listen()

    def _listen(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            listener.bind(self._path)
            listener.listen(1)
        except OSError as error:
            listener.close()
            raise ConfigError(f"Failed to bind socket to {self._path}: {error.strerror}") from None
        finally:
            os.umask(mask)
        self._listener = listener
        self._acceptor = Acceptor(self._loop, listener, "the bus of the saved state", self._came)

    def _came(self, stream: socket.socket) -> None:
        pid, uid = peer_of(stream)
        if uid != os.geteuid() or not self._is_qemu(pid) or self._client is not None:
            log.warning("a client of process %d and user %d is not let onto the bus of the saved state", pid, uid)
            stream.close()
            return
        stream.setblocking(False)
        self._client = BusClient(self._loop, stream, self._new_session(), self._left)

    def _is_qemu(self, pid: int) -> bool:
        """Whether a process is the one that may come, or was started by it: a program may be started by a script."""
        for _ in range(MAX_ANCESTORS):
            if self._pid in (None, pid):
                return True
            pid = parent_of(pid)
        return False

    def _left(self) -> None:
        """The client is gone: another object of QEMU's may come."""
        self._client = None

    def close(self) -> None:
        """Close both sockets and remove the path; twice is harmless."""
        if self._client is not None:
            self._client.close()
        if self._acceptor is not None:
            self._acceptor.unwatch()
            self._acceptor = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError):
                os.unlink(self._path)


class BusClient:
    """A BusSession over a stream socket.

    Args:
        stream: not blocking; owned from here on.
        left: called when the client has gone or was sent away.
    """

    def __init__(self, loop: EventLoop, stream: socket.socket, session: BusSession, left: Callable[[], None]) -> None:
        self._loop = loop
        self._stream = stream
        self._session = session
        self._left = left
        self._unsent = b""
        self._closed = False
        loop.watch(stream.fileno(), EPOLLIN, self._ready)

    def _ready(self, events: int) -> None:
        if events & EPOLLOUT and not self._flush():
            return
        try:
            data = self._stream.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        try:
            self._unsent += self._session.receive(data)
            if len(self._unsent) > 2 * MAX_MESSAGE:
                raise PeerError("D-Bus: the client does not take its answers", errno.ENOBUFS)
        except PeerError as error:
            log.error("the bus of the saved state: %s", error)
            self._end()
        except Exception:
            # The keeper must go on, whatever a client has made of us.
            log.exception("internal error in the bus of the saved state")
            self._end()
        else:
            self._flush()

    def _flush(self) -> bool:
        """Send what waits; whether all of it is out.  Nothing more is read before."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._stream.send(self._unsent, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            self._loop.rewatch(self._stream.fileno(), EPOLLOUT)
            return False
        except OSError:
            self._end()
            return False
        self._loop.rewatch(self._stream.fileno(), EPOLLIN)
        return True

    def _end(self) -> None:
        self.close()
        self._left()

    def close(self) -> None:
        """Close the connection; twice is harmless."""
        if not self._closed:
            self._closed = True
            self._loop.unwatch(self._stream.fileno())
            self._stream.close()
