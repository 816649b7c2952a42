"""A port of the fleet as a stream, for the programs that use ports: a session in a thread, joined by a socket."""

from __future__ import annotations

import asyncio
import queue
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

from virtserial.client.address import UnixAddress
from virtserial.client.host_stream import HostStream
from virtserial.errors import PeerError, VirtserialError
from virtserial.fleet.broker import Settings, connect
from virtserial.fleet.directory import Directory
from virtserial.fleet.session import Session

if TYPE_CHECKING:
    from nats.aio.client import Client

    from virtserial.fleet.protocol import Place

RETRY = 1.0
RETURN_TIME = 30.0
"""Seconds in which an agent that left without a word may return."""
FAREWELL = 3.0
MAX_NEWS = 100


class FleetStream(HostStream):
    """
    Args:
        settings: where the broker is.
        text: HOST/VM/PORT, or HOST/VM.
        default: the name of PORT where it is left out; None: the console, or the only port.
        force: send away who uses an exclusive port.
        only_watch: look at published output; nothing will be sent.
        history: begin with what the stream keeps of a published port, at most 256 KiB.
        reconnect: begin another session when one ends.

    Raises:
        ConfigError: there is no such port, it is busy, or the broker refuses us.
        PeerError: the broker or the host's agent does not answer.
    """

    news_interval = 0.5

    def __init__(
        self, settings: Settings, text: str, default: str | None = None,
        force: bool = False, only_watch: bool = False, history: bool = False, reconnect: bool = True,
    ) -> None:  # fmt: skip
        self._settings, self._text, self._default = settings, text, default
        self._force, self._only_watch, self._history = force, only_watch, history
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._ends: asyncio.Queue[socket.socket | None] = asyncio.Queue()
        self._loop = asyncio.new_event_loop()
        self._session: Session | None = None
        self._size: tuple[int, int] | None = None
        self._begun: queue.SimpleQueue[VirtserialError | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self._thread.start()
        failure = self._begun.get()
        if failure is not None:
            self._thread.join()
            raise failure
        # The address is only a name here: _connect() makes the connection.
        super().__init__(UnixAddress(text), reconnect)

    def set_terminal_size(self, rows: int, columns: int) -> None:
        """Tell the guest's console, with the session's next sign of life."""
        self._size = rows, columns
        if self._session is not None:
            self._session.size = self._size

    def news(self) -> list[str]:
        """See PortStream.news."""
        lines = []
        while not self._news.empty():
            lines.append(self._news.get())
        return lines

    def _connect(self) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        self._epoll.register(ours, self.EDGES)
        self._socket = ours
        self._loop.call_soon_threadsafe(self._ends.put_nowait, theirs)

    def close(self) -> None:
        """See HostStream.close."""
        super().close()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ends.put_nowait, None)
            self._thread.join(FAREWELL)

    # In the thread

    def _say(self, line: str) -> None:
        if self._news.qsize() < MAX_NEWS:
            self._news.put(line)

    def _run(self) -> None:
        # A connection that the broker resets ends with an error here; elsewhere a closed pipe may end the program.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._serve())
            except VirtserialError as error:
                self._begun.put(error)

    async def _serve(self) -> None:
        client = await connect(self._settings, "virtserial", self._say)
        try:
            place = await self._find(client)
            session: Session | None = await self._open(client, place, self._force)
            self._begun.put(None)
            while (end := await self._ends.get()) is not None:
                with end:
                    if session is not None or (session := await self._open_again(client, place)) is not None:
                        await self._join(session, end)
                    session = None
        finally:
            await client.close()

    async def _find(self, client: Client) -> Place:
        directory = Directory(client, self._text.partition("/")[0])
        try:
            await directory.load()
            deadline = time.monotonic() + RETURN_TIME
            while directory.may_return(self._text) and time.monotonic() < deadline:
                await directory.change(RETRY)
            if not directory.hosts() and not directory.may_return(self._text):
                await directory.stop()
                directory = Directory(client)
                await directory.load()
            place, record = directory.find(self._text, self._default)
        finally:
            await directory.stop()
        self._history = self._history and record.published
        if self._only_watch and not record.published:
            self._say("this port is not published: its output is here only while somebody uses it")
        return place

    async def _open(self, client: Client, place: Place, force: bool) -> Session:
        session = self._session = Session(client, place, self._say, self._only_watch, self._history)
        session.size = self._size
        await session.open(force)
        return session

    async def _open_again(self, client: Client, place: Place) -> Session | None:
        """Try until a session begins; None when the stream is closed."""
        told = ""
        while True:
            try:
                session = await self._open(client, place, False)
            except VirtserialError as error:
                if str(error) != told:
                    told = str(error)
                    self._say(told)
                try:
                    async with asyncio.timeout(RETRY):
                        end = await self._ends.get()
                    self._ends.put_nowait(end)
                    return None
                except TimeoutError:
                    continue
            if told:
                self._say("the port is ours again")
            return session

    async def _join(self, session: Session, end: socket.socket) -> None:
        # Closing the stream ends the session by the socket's end of file.
        try:
            await session.run(end)
        except (PeerError, OSError) as error:
            self._say(str(error))
