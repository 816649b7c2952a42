"""The moving half of a socket server with several clients: output goes to all, input of all is taken in turn.

Output is written once, into the log (channel/output_log.py), by one system call; each client is sent its part of the
log, in a turn of its own, from where it stands.

| a client | what happens |
|---|---|
| comes | it starts `backlog` bytes before the end |
| is `backlog` + WINDOW bytes behind the end | the guest waits |
| lets it wait for SLOW_SECONDS, and has not read half a WINDOW then | slow=block: the guest still waits |
| | slow=drop: nobody waits for it until it has caught up; the oldest bytes that it lacks are dropped and counted |
| | slow=disconnect: its connection is closed, and that is counted |

The log keeps `backlog` + WINDOW bytes and up to GIVE_BACK more.  With a backlog the host's end is open even while no
client is there, as that of a ringbuf.
"""

from __future__ import annotations

import logging
import mmap
import os
from typing import TYPE_CHECKING

from virtserial.channel.output_log import HEADER_SIZE, JOINED, LAGGING, OutputLog
from virtserial.errors import BackendError
from virtserial.host_end.base import HostEnd
from virtserial.host_end.buffers import IOV_MAX, front_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from virtserial.accounting import Account
    from virtserial.channel.connections import SharedConnection
    from virtserial.host_end.client_ends import ClientEnd
    from virtserial.loop import EventLoop, Timer

WINDOW = 256 << 10
"""Bytes that the guest's output may be ahead of the slowest client."""
SLOW_SECONDS = 1.0
GIVE_BACK = 128 << 10
"""Bytes of old output that are given back to the system at once."""
PIECE = 256 << 10
"""Bytes sent to one client in one turn."""

logger = logging.getLogger("virtserial.chardev.clients")


class ClientsHostEnd(HostEnd):
    """Connected while any client is, or always with a backlog.

    Args:
        fd: the log's; owned.
    """

    def __init__(self, loop: EventLoop, connection: SharedConnection, fd: int, account: Account) -> None:
        super().__init__(connection.name)
        self.exact = connection.plain
        self._loop = loop
        self._account = account
        self._backlog = connection.backlog
        self._slow = connection.slow
        self._log = OutputLog(fd)
        self._kept = connection.backlog + WINDOW
        self._clients: dict[int, _Client] = {}
        self._last_read: _Client | None = None
        self._blocked = False
        self._patience: Timer | None = None
        self._closed = False

    # Clients

    def add_client(self, place: int, end: ClientEnd, cursor_fd: int, over: Callable[[], None]) -> None:
        """Take a client.

        Args:
            place: its number in the log.
            end: owned.
            cursor_fd: its position in the log; owned.
            over: called when it has ended and is closed.
        """
        client = _Client(self, self._log, place, end, cursor_fd, over)
        if self._closed:
            client.close()
            return
        if (before := self._clients.pop(place, None)) is not None:
            before.close()
        self._clients[place] = client
        end.wants_input = self._wants_input
        end.start()

    def client_opened(self, client: _Client) -> None:
        """A client is there, its protocols are established."""
        client.join(max(HEADER_SIZE, self._log.end - self._backlog), self._log.first)
        self._connected_changed()
        self.distribute_soon()

    def client_closed(self, client: _Client) -> None:
        """A client has left, or failed."""
        self.input_discarded += client.end.input_discarded
        if self._clients.get(client.place) is client:
            del self._clients[client.place]
        if self._last_read is client:
            self._last_read = None
        client.close()
        client.over()
        self._unblock_if_room()
        self._connected_changed()

    def client_readable(self) -> None:
        self.readable = True
        self.listener.host_readable()

    def distribute_soon(self) -> None:
        """Send to clients in a turn."""
        self._loop.add_turn(self._distribute)

    def client_failed(self, client: _Client, error: BackendError) -> None:
        logger.error("%s", error)
        self._loop.add_turn(client.host_closed)

    def _connected_changed(self) -> None:
        connected = bool(self._backlog) or any(client.end.connected for client in self._clients.values())
        if connected and not self.connected:
            self.connected = True
            self.listener.host_opened()
        elif self.connected and not connected:
            self.connected = self.readable = False
            self._stop_waiting()
            self.listener.host_closed()

    # Output

    def writev(self, buffers: Sequence[memoryview]) -> int:
        room = self._room()
        if room <= 0:
            self._block()
            return 0
        front = front_of(buffers[:IOV_MAX], room)
        if not front:
            return 0
        try:
            count = os.writev(self._log.fileno(), front)
        except OSError as error:
            self.connected = False
            self.ended = True
            raise BackendError(f"{self.name}: cannot keep output: {error.strerror}") from error
        self._account.written += count
        self._log.end += count
        self._loop.add_turn(self._distribute)
        return count

    def wait_writable(self) -> bool:
        if self._room() <= 0:
            self._block()
        return self._blocked

    def _awaited(self) -> Iterator[_Client]:
        """The clients that the guest waits for."""
        return (client for client in self._clients.values() if client.is_awaited)

    def _room(self) -> int:
        slowest = min((client.position for client in self._awaited()), default=self._log.end)
        return min(WINDOW, self._kept - (self._log.end - slowest))

    def _distribute(self) -> None:
        """Send to each client what it takes, up to a budget."""
        if self._closed:
            return
        more = [client for client in list(self._clients.values()) if client.send(self._log.end)]
        self._trim()
        if more:
            self._loop.add_turn(self._distribute)
        self._unblock_if_room()

    def _trim(self) -> None:
        """Give back the memory of old output."""
        oldest = (self._log.end - self._kept) // mmap.PAGESIZE * mmap.PAGESIZE
        if oldest - self._log.first >= GIVE_BACK:
            for client in self._clients.values():
                client.skip_to(oldest)
            self._log.give_back(oldest)

    # The backlog, for a saved state

    @property
    def backlog_size(self) -> int:
        return min(self._backlog, self._log.end - self._log.first)

    def read_backlog(self, most: int) -> bytes:
        size = min(most, self.backlog_size)
        self._account.stray = True
        return os.pread(self._log.fileno(), size, self._log.end - size)

    def restore_backlog(self, backlog: bytes) -> None:
        if not self._backlog or self._log.end > HEADER_SIZE:
            return
        self._account.stray = True
        try:
            self._log.end += os.write(self._log.fileno(), backlog[-self._backlog :])
        except OSError as error:
            logger.warning("%s: the backlog that was saved cannot be kept: %s", self.name, error.strerror)
        self.distribute_soon()

    # Waiting for slow clients

    def _block(self) -> None:
        self._blocked = True
        if self._slow != "block" and self._patience is None:
            self._patience = self._loop.call_later(SLOW_SECONDS, self._lose_patience)

    def _unblock_if_room(self) -> None:
        if self._blocked and self._room() >= WINDOW // 2:
            self._stop_waiting()
            self.listener.host_writable()

    def _stop_waiting(self) -> None:
        self._blocked = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        self._patience = None
        limit = self._log.end - self._kept + WINDOW // 2
        for client in [each for each in self._awaited() if each.position < limit]:
            if self._slow == "drop":
                client.is_lagging = True
                logger.warning("%s: a client does not read; it loses output from now on", client.end.name)
            else:
                logger.warning("%s: a client does not read; it is disconnected", client.end.name)
                self._log.count_disconnected()
                self.client_closed(client)
        self._unblock_if_room()

    # Input

    def _wants_input_changed(self) -> None:
        for client in self._clients.values():
            client.end.wants_input = self._wants_input

    def readv(self, buffers: Sequence[memoryview]) -> int:
        for place, client in list(self._clients.items()):
            if not client.end.readable:
                continue
            try:
                count = client.end.readv(buffers)
            except BackendError as error:
                self.client_failed(client, error)
                continue
            if count:
                # The others have their turn first.
                self._clients[place] = self._clients.pop(place)
                self._last_read = client
                return count
        self.readable = False
        return 0

    def report_end(self) -> None:
        if self._last_read is not None:
            self._last_read.end.report_end()

    def wait_readable(self) -> bool:
        if self._last_read is not None:
            self._last_read.end.wait_readable()
        self.readable = any(client.end.readable for client in self._clients.values())
        return not self.readable

    # Starting and ending

    def start(self) -> None:
        self._connected_changed()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.connected = False
        self._stop_waiting()
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._log.close()


class _Client:
    """One client (HostListener of its end).

    Attributes:
        position: in the log, the next byte that it gets.
    """

    def __init__(
        self,
        shared: ClientsHostEnd,
        log: OutputLog,
        place: int,
        end: ClientEnd,
        cursor_fd: int,
        over: Callable[[], None],
    ) -> None:
        self.place = place
        self.end = end
        self.over = over
        self.position = 0
        self._shared = shared
        self._log = log
        self._cursor_fd = cursor_fd
        self._lagging = False
        self._waits = False
        end.listener = self

    def join(self, start: int, first: int) -> None:
        """Set the position: to `start`, or where a predecessor has left it; not before `first`."""
        state = self._log.state(self.place)
        if not state & JOINED:
            self.position = os.lseek(self._cursor_fd, max(start, first), os.SEEK_SET)
            self._log.set_state(self.place, JOINED)
            return
        self._lagging = bool(state & LAGGING)
        self._log.finish_skip(self.place, self._cursor_fd)
        self.position = os.lseek(self._cursor_fd, 0, os.SEEK_CUR)

    @property
    def is_awaited(self) -> bool:
        """Whether the guest waits for it."""
        return self.position > 0 and not self._lagging

    @property
    def is_lagging(self) -> bool:
        """Whether it loses its oldest bytes."""
        return self._lagging

    @is_lagging.setter
    def is_lagging(self, lagging: bool) -> None:
        if lagging != self._lagging:
            self._lagging = lagging
            self._log.set_state(self.place, JOINED | LAGGING if lagging else JOINED)

    def send(self, end: int) -> bool:
        """Send what it has not got up to `end`, within a budget; return whether it takes more at once."""
        if self._waits or not self.position or not self.end.connected:
            return False
        if size := min(end - self.position, PIECE):
            try:
                sent = self.end.send(self._cursor_fd, size)
            except BackendError as error:
                self._shared.client_failed(self, error)
                return False
            self.position += sent
            self._waits = not sent or (sent < size and self.end.wait_writable())
        if self.position == end:
            self.is_lagging = False
            return False
        return not self._waits

    def skip_to(self, oldest: int) -> None:
        """Older bytes go: skip those that it has not got."""
        if 0 < self.position < oldest:
            self._log.skip(self.place, self._cursor_fd, self.position, oldest)
            self.position = oldest

    def close(self) -> None:
        self.end.close()
        if self._cursor_fd >= 0:
            os.close(self._cursor_fd)
            self._cursor_fd = -1

    # HostListener

    def host_opened(self) -> None:
        self._shared.client_opened(self)

    def host_closed(self) -> None:
        if self._cursor_fd >= 0:
            self._shared.client_closed(self)

    def host_readable(self) -> None:
        self._shared.client_readable()

    def host_writable(self) -> None:
        self._waits = False
        self._shared.distribute_soon()
