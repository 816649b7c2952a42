"""The same streams for asyncio: one task may read, another write, a third wait for the other end to come or go."""

from __future__ import annotations

import asyncio
from typing import AsyncIterator, Callable, TypeVar

from .errors import PeerAway
from .stream import READ_SIZE, Buffer, PortStream

T = TypeVar("T")
THREAD_TURN = 0.5
"""Seconds of one wait in a thread, on Windows, where the loop has no descriptor to watch."""


class AsyncStream:
    """A port's end in an asyncio program.

    write() returns when the port has taken all bytes: back-pressure needs no other call.  The stream reads only on
    request, so unread bytes wait at the other end.
    """

    def __init__(self, stream: PortStream) -> None:
        """Take over an open stream; call it in the running loop that will use it."""
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._waiting: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._thread: asyncio.Future[bool] | None = None
        self._watched = stream.fileno()
        if self._watched >= 0:
            self._loop.add_reader(self._watched, self._changed)

    @property
    def connected(self) -> bool:
        """Whether the other end is connected."""
        return self._stream.connected

    async def read(self, limit: int = READ_SIZE) -> bytes:
        """As PortStream.read."""
        return await self._until(lambda: self._stream.take(limit))

    async def readexactly(self, count: int) -> bytes:
        """As PortStream.readexactly."""
        return await self._until(lambda: self._stream.take_exactly(count))

    async def readline(self) -> bytes:
        """As PortStream.readline."""
        return await self._until(self._stream.take_line)

    async def write(self, data: Buffer) -> None:
        """As PortStream.write; the bytes of two concurrent tasks may mix."""
        view = memoryview(data).cast("B")
        done = 0

        def step() -> bool | None:
            nonlocal done
            while done < len(view):
                taken = self._stream.send([view[done:]])
                done += taken
                if not taken:
                    if self._stream.connected:
                        return None
                    raise PeerAway("the other end is not connected", done)
            return True

        await self._until(step)

    async def wait_connected(self) -> None:
        """Return when the other end is connected."""

        def arrived() -> bool | None:
            if not self._stream.connected:
                self._stream.probe()
            return self._stream.connected or None

        await self._until(arrived)

    async def wait_disconnected(self) -> None:
        """Return when the other end is disconnected."""
        await self._until(lambda: self._stream.departed() or None)

    async def connections(self) -> AsyncIterator[bool]:
        """Yield the present state, then True at each connect of the other end and False at each disconnect."""
        while True:
            connected = self._stream.connected
            yield connected
            await (self.wait_disconnected() if connected else self.wait_connected())

    def close(self) -> None:
        """Close the stream; waiting tasks get a CancelledError."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watched >= 0:
            self._loop.remove_reader(self._watched)
            self._watched = -1
        for waiting in self._waiting:
            waiting.cancel()
        self._stream.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _until(self, attempt: Callable[[], T | None]) -> T:
        while True:
            result = attempt()
            if result is not None:
                # A task whose stream is always ready must let others run.
                await asyncio.sleep(0)
                return result
            waiting = self._loop.create_future()
            self._waiting.append(waiting)
            self._arm()
            try:
                await waiting
            finally:
                self._waiting.remove(waiting)

    def _arm(self) -> None:
        if self._watched < 0:
            if self._thread is None:
                self._thread = self._loop.run_in_executor(None, self._stream.wait, THREAD_TURN)
                self._thread.add_done_callback(self._thread_ended)
            return
        delay = self._stream.next_attempt()
        if delay is not None and self._timer is None:
            self._timer = self._loop.call_later(delay, self._timer_ended)

    def _thread_ended(self, ended: asyncio.Future[bool]) -> None:
        self._thread = None
        if not ended.cancelled():
            ended.exception()
            self._wake()

    def _timer_ended(self) -> None:
        self._timer = None
        self._changed()

    def _changed(self) -> None:
        self._stream.wait(0)
        self._wake()

    def _wake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
