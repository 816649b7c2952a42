"""The two WebSockets of a page: what runs here, and a terminal.

The terminal's messages: bytes are what the guest says, or what is typed.  Texts are JSON objects:

| to the browser | |
|---|---|
| state, why | see hub.py |
| types, answers | whether it may type; whether it answers what the guest asks a terminal |
| replay | so many of the next bytes are from before: what they ask is not answered |
| size | [columns, rows] of the terminal |
| people | who is on the port |
| lost | bytes that it did not get, because it was too slow |
| refused | bytes typed that the guest did not get |
| recording | whether the port is being recorded |
| **from it** | |
| shown | so many bytes more are on the screen |
| window | [columns, rows] that its window has room for; null while nobody sees it |
| retry | try now; `true`: send away who has the port's only place |
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from virtserial.web.hub import Hubs
from virtserial.web.overview import shown_to
from virtserial.web.people import Role
from virtserial.web.rates import Rate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from virtserial.web.access import Access
    from virtserial.web.hub import Hub
    from virtserial.web.overview import Overview
    from virtserial.web.people import User
    from virtserial.web.source import Source
    from virtserial.web.viewer import Viewer

HEARTBEAT: Final = 20.0
"""Seconds between two pings; a browser that does not answer is gone."""
MAX_MESSAGE: Final = 32 << 10
MAX_TERMINALS: Final = 512
MAX_TERMINALS_OF_USER: Final = 128
MAX_LISTS_OF_USER: Final = 32
MAX_NAME: Final = 512
MESSAGE_BURST: Final = 500
MESSAGES_PER_SECOND: Final = 200
LOOK_AGAIN: Final = 2.0
"""Seconds between two looks at whether somebody still has their rights."""


class Terminals:
    """
    Args:
        access: asked again and again, whether somebody still has their rights.
        counts: of what was refused and lost.
    """

    def __init__(self, source: Source, overview: Overview, access: Access, counts: Counter[str]) -> None:
        self.hubs = Hubs(source)
        self._overview = overview
        self._access = access
        self._counts = counts
        self._open: Counter[str] = Counter()
        self._lists: Counter[str] = Counter()
        self._sockets: set[web.WebSocketResponse] = set()

    # What runs here

    async def list(self, request: web.Request, user: User) -> web.WebSocketResponse:
        """Tell of machines and ports: everything, then what changes."""
        if self._lists[user.name] >= MAX_LISTS_OF_USER:
            self._counts["too_many"] += 1
            raise web.HTTPTooManyRequests(text="too many pages of yours are open")
        with _place(self._lists, user.name):
            return await self._list(request, user)

    async def _list(self, request: web.Request, user: User) -> web.WebSocketResponse:
        socket = await self._begin(request)
        listening = asyncio.create_task(self._only_closes(socket))
        try:
            snapshot = None
            before: dict[str, dict[str, object]] = {"machines": {}, "ports": {}}
            while not socket.closed:
                snapshot = await self._overview.next(snapshot)
                now = self._access.current(request, user)
                if now is None:
                    await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"no rights any more")
                    break
                shown = shown_to(now, snapshot)
                await socket.send_str(json.dumps({"at": snapshot.at, **_changes(before, shown)}))
                before = shown
        except ConnectionError:
            pass
        finally:
            listening.cancel()
            self._sockets.discard(socket)
        return socket

    async def _only_closes(self, socket: web.WebSocketResponse) -> None:
        async for _ in socket:
            self._counts["messages"] += 1
            await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"nothing is expected here")

    # A terminal

    async def terminal(self, request: web.Request, user: User) -> web.WebSocketResponse:
        """Join a browser and a port."""
        name = request.query.get("port", "")
        if not 0 < len(name) <= MAX_NAME or not user.may(Role.WATCH, name):
            self._counts["rights"] += 1
            raise web.HTTPForbidden(text="you may not see this port")
        if self._open[user.name] >= MAX_TERMINALS_OF_USER or self._open.total() >= MAX_TERMINALS:
            self._counts["too_many"] += 1
            raise web.HTTPTooManyRequests(text="too many terminals are open")
        with _place(self._open, user.name):
            return await self._terminal(request, user, name)

    async def _terminal(self, request: web.Request, user: User, name: str) -> web.WebSocketResponse:
        types = user.may(Role.TYPE, name) and request.query.get("watch") != "1"
        known = (await self._overview.now()).ports.get(name)
        socket = await self._begin(request)
        hub = self.hubs.hub(name, only_watch=not types and known is not None and known.has_watch)
        viewer = hub.join(user, types)
        works = self._show(socket, viewer), self._still_may(request, socket, viewer, name)
        tasks = [asyncio.create_task(work) for work in works]
        try:
            await self._hear(socket, hub, viewer)
        finally:
            for task in tasks:
                task.cancel()
            self._counts["lost_bytes"] += hub.leave(viewer)
            self._sockets.discard(socket)
        return socket

    async def _begin(self, request: web.Request) -> web.WebSocketResponse:
        # Compression would keep a window of memory for each browser.
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT, max_msg_size=MAX_MESSAGE, compress=False)
        await socket.prepare(request)
        self._sockets.add(socket)
        return socket

    async def _show(self, socket: web.WebSocketResponse, viewer: Viewer) -> None:
        try:
            while not socket.closed:
                notes, data = await viewer.next()
                if notes:
                    await socket.send_str(json.dumps(notes))
                if data:
                    await socket.send_bytes(data)
        except ConnectionError:
            pass

    async def _still_may(
        self, request: web.Request, socket: web.WebSocketResponse, viewer: Viewer, name: str
    ) -> None:
        while not socket.closed:
            await asyncio.sleep(LOOK_AGAIN)
            now = self._access.current(request, viewer.user)
            if now is None or not now.may(Role.TYPE if viewer.types else Role.WATCH, name):
                await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"no rights any more")

    async def _hear(self, socket: web.WebSocketResponse, hub: Hub, viewer: Viewer) -> None:
        rate = Rate(MESSAGE_BURST, MESSAGES_PER_SECOND)
        refused = 0
        async for message in socket:
            if not rate.allows(""):
                await asyncio.sleep(2 / MESSAGES_PER_SECOND)  # what it sends meanwhile waits in its own socket
            if message.type is WSMsgType.BINARY:
                if not viewer.types:
                    self._counts["rights"] += 1
                elif hub.type(message.data):
                    continue
                refused += len(message.data)
                viewer.note(refused=refused)
            elif not self._told(message, hub, viewer):
                self._counts["messages"] += 1
                await socket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=b"this makes no sense")

    @staticmethod
    def _told(message: WSMessage, hub: Hub, viewer: Viewer) -> bool:
        """Do what a text says; False if it makes no sense."""
        try:
            told: Any = json.loads(message.data) if message.type is WSMsgType.TEXT else None
        except (ValueError, RecursionError):
            return False
        match told:
            case {"shown": int(count)} if count >= 0:
                viewer.shown(count)
            case {"window": [int(columns), int(rows)]} if 2 <= columns <= 1000 and 1 <= rows <= 1000:
                hub.window(viewer, (columns, rows))
            case {"window": None}:
                hub.window(viewer, None)
            case {"retry": bool(force)}:
                hub.try_now(force and viewer.types)
            case _:
                return False
        return True

    async def close(self) -> None:
        """Close all."""
        closing = [each.close(code=WSCloseCode.GOING_AWAY, message=b"the console ends") for each in self._sockets]
        await asyncio.gather(*closing, return_exceptions=True)
        await self.hubs.close()


def _changes(before: dict[str, dict[str, object]], now: dict[str, dict[str, object]]) -> dict[str, object]:
    """What is new or different, and whose names are gone (null)."""
    return {
        kind: {
            **{name: None for name in before[kind] if name not in now[kind]},
            **{name: each for name, each in now[kind].items() if before[kind].get(name) != each},
        }
        for kind in now
    }


@contextlib.contextmanager
def _place(taken: Counter[str], user: str) -> Iterator[None]:
    """Count one, right after the check: after an await, all who come at once would pass it."""
    taken[user] += 1
    try:
        yield
    finally:
        taken[user] -= 1
        if not taken[user]:
            del taken[user]
