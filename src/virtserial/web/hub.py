"""A port and all the browsers on it: one connection, whose output goes to all, and which all may type into.

One connection serves any number of browsers, also where the port takes a single client; a newcomer gets the last
RECENT bytes.  The terminal has the size that fits into every window of those who type.  One of them, the leader,
answers what the guest asks a terminal (its kind, its cursor); were it all of them, the guest would read it as typing.

| state | |
|---|---|
| connecting | the port is looked for, or does not answer; `why` says more |
| connected | bytes move |
| busy | a client from elsewhere has the only place; a browser may send it away |
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from virtserial.errors import BusyError, VirtserialError
from virtserial.guest.errors import PortError
from virtserial.guest.recording import OUTPUT, Recorder
from virtserial.tasks import end_tasks
from virtserial.web.viewer import PIECE, Viewer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from virtserial.web.people import User
    from virtserial.web.source import Connection, Source

RECENT = 128 << 10
TYPED = 64 << 10
"""Bytes typed that wait for a guest that does not read; more are refused."""
PATIENCE = 1.0
"""Seconds that a port waits for a browser that shows nothing."""
LINGER = 2.0
"""Seconds that the connection stays when the last browser has left: a page that is loaded again finds it."""
TRY_AGAIN = 1.0
SETTLE = 0.1
"""Seconds after which a window that is being resized has its size."""


class Hub:
    """
    Args:
        name: the port's.
        only_watch: it takes a place of those who look on.
        ended: called when the last browser has left.
    """

    def __init__(self, source: Source, name: str, only_watch: bool, ended: Callable[[Hub], None]) -> None:
        self.name = name
        self.only_watch = only_watch
        self.viewers: list[Viewer] = []
        self._source = source
        self._ended = ended
        self._recent: deque[bytes] = deque()
        self._typed: deque[bytes] = deque()
        self._typed_count = 0
        self._typing = asyncio.Event()
        self._drained = asyncio.Event()
        self._retry = asyncio.Event()
        self._force = False
        self._connection: Connection | None = None
        self._size: tuple[int, int] | None = None
        self._resizing: asyncio.TimerHandle | None = None
        self._leaving: asyncio.TimerHandle | None = None
        self._recorder: Recorder | None = None
        self._state: dict[str, object] = {"state": "connecting", "why": ""}
        self._tasks = {asyncio.create_task(self._run())}

    # Browsers

    def join(self, user: User, types: bool) -> Viewer:
        """A browser comes."""
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        viewer = Viewer(user, types, self._drained.set)
        self.viewers.append(viewer)
        recent = b"".join(self._recent)
        viewer.note(**self._state, replay=len(recent), recording=self._recorder is not None, types=types)
        if self._size is not None:
            viewer.note(size=self._size)
        for start in range(0, len(recent), PIECE):
            viewer.offer(recent[start : start + PIECE])
        self._tell_people()
        return viewer

    def leave(self, viewer: Viewer) -> int:
        """It goes; return how many bytes it did not get."""
        self.viewers.remove(viewer)
        self._drained.set()
        self._fit()
        self._tell_people()
        if not self.viewers:
            self._leaving = asyncio.get_running_loop().call_later(LINGER, self._ended, self)
        return viewer.lost

    def window(self, viewer: Viewer, size: tuple[int, int] | None) -> None:
        """A browser's window has room for so many columns and rows; None while nobody sees it."""
        viewer.size = size
        self._fit()

    def _fit(self) -> None:
        sizes = [viewer.size for viewer in self.viewers if viewer.types and viewer.size is not None]
        if not sizes:
            return
        size = min(columns for columns, _ in sizes), min(rows for _, rows in sizes)
        if size != self._size:
            self._size = size
            self._tell(size=size)
            if self._recorder is not None:
                self._recorder.resize(size[1], size[0])
            if self._resizing is None:
                self._resizing = asyncio.get_running_loop().call_later(SETTLE, self._resize)

    def _resize(self) -> None:
        self._resizing = None
        if self._connection is not None and self._size is not None and not self.only_watch:
            self._begin(self._tell_size(self._connection, *self._size))

    async def _tell_size(self, connection: Connection, columns: int, rows: int) -> None:
        with contextlib.suppress(VirtserialError, OSError):
            await connection.resize(rows, columns)

    def _tell_people(self) -> None:
        people = [{"name": viewer.user.name, "types": viewer.types} for viewer in self.viewers]
        leader = next((viewer for viewer in self.viewers if viewer.types), None)
        for viewer in self.viewers:
            viewer.note(people=people, answers=viewer is leader)

    def _tell(self, **facts: object) -> None:
        for viewer in self.viewers:
            viewer.note(**facts)

    def _set_state(self, state: str, why: str = "") -> None:
        self._state = {"state": state, "why": why}
        self._tell(**self._state)
        if self._recorder is not None:
            self._recorder.mark(f"{state} {why}".strip())

    # Typing

    def type(self, data: bytes) -> bool:
        """Send bytes to the guest; False if they are refused."""
        if self._connection is None or self._typed_count + len(data) > TYPED:
            return False
        self._typed.append(data)
        self._typed_count += len(data)
        self._typing.set()
        return True

    def try_now(self, force: bool) -> None:
        """Do not wait before the next attempt; with `force` send away who has the port's place."""
        self._force = self._force or force
        self._retry.set()

    # Recording

    @property
    def is_recorded(self) -> bool:
        """Whether a recording goes on."""
        return self._recorder is not None

    def record(self, path: str, limit: int) -> None:
        """Record from now on.

        Raises:
            OSError: the file cannot be made.
        """
        columns, rows = self._size or (80, 24)
        self._recorder = Recorder(path, self.name, (rows, columns), limit)
        self._recorder.record(OUTPUT, b"".join(self._recent))
        self._tell(recording=True)

    def stop_recording(self) -> None:
        """End it."""
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
            self._tell(recording=False)

    def _record(self, data: bytes) -> None:
        # Output alone: a password is typed but not shown, and whoever may watch can play a recording.
        if self._recorder is not None:
            self._recorder.record(OUTPUT, data)
            if self._recorder.ended:
                self.stop_recording()

    # The port

    async def _run(self) -> None:
        while True:
            force, self._force = self._force, False
            try:
                self._connection = await self._source.open(self.name, self.only_watch, force)
            except BusyError as error:
                self._set_state("busy", str(error))
            except (VirtserialError, PortError, OSError) as error:
                self._set_state("connecting", str(error))
            else:
                await self._serve(self._connection)
                continue
            self._retry.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TRY_AGAIN):
                    await self._retry.wait()

    async def _serve(self, connection: Connection) -> None:
        self._set_state("connected")
        self._resize()
        writer = asyncio.create_task(self._write(connection))
        try:
            while data := await connection.read(PIECE):
                self._record(data)
                self._keep(data)
                for viewer in self.viewers:
                    viewer.offer(data)
                await self._wait_for_viewers()
        except (PortError, OSError):
            pass
        finally:
            self._connection = None
            self._typed.clear()
            self._typed_count = 0
            writer.cancel()
            connection.close()
        self._set_state("connecting", "the connection has ended")

    def _keep(self, data: bytes) -> None:
        self._recent.append(data)
        count = sum(map(len, self._recent))
        while count > RECENT:
            count -= len(self._recent.popleft())

    async def _wait_for_viewers(self) -> None:
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while slow := [viewer for viewer in self.viewers if viewer.is_full]:
            self._drained.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._drained.wait()
            except TimeoutError:
                for viewer in slow:
                    viewer.lagging = True

    async def _write(self, connection: Connection) -> None:
        with contextlib.suppress(PortError, OSError):
            while True:
                while not self._typed:
                    self._typing.clear()
                    await self._typing.wait()
                data = self._typed.popleft()
                await connection.write(data)
                self._typed_count -= len(data)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End it."""
        for timer in (self._resizing, self._leaving):
            if timer is not None:
                timer.cancel()
        self.stop_recording()
        await end_tasks(*self._tasks)


class Hubs:
    """The hubs of all ports that a browser is on."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._hubs: dict[tuple[str, bool], Hub] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def hub(self, name: str, only_watch: bool) -> Hub:
        """The hub of a port; it begins to connect if it is new."""
        key = name, only_watch
        if key not in self._hubs:
            self._hubs[key] = Hub(self._source, name, only_watch, self._ended)
        return self._hubs[key]

    def find(self, name: str) -> Hub | None:
        """The hub of those who type, if there is one."""
        return self._hubs.get((name, False))

    def all(self) -> list[Hub]:
        """All there are."""
        return list(self._hubs.values())

    def _ended(self, hub: Hub) -> None:
        if self._hubs.pop((hub.name, hub.only_watch), None) is hub:
            task = asyncio.create_task(hub.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End all."""
        for hub in list(self._hubs.values()):
            await hub.close()
        self._hubs.clear()
