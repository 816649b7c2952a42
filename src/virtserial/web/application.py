"""The web console's requests: who may send each, and what answers it.

| request | who | |
|---|---|---|
| GET / | anybody | the page; it holds nothing but names of files |
| GET /static/... | anybody | its scripts and styles |
| POST /api/log-in, /api/log-out | anybody | a token for a cookie, and the end of that |
| GET /api/me | anybody | who I am, and what this console has |
| GET /api/list (WebSocket) | a user | machines and ports, as they change |
| GET /api/terminal?port=NAME (WebSocket) | watch, type | terminals.py |
| GET /api/recordings, /api/recordings/NAME | watch | recordings.py |
| POST /api/record | type | {"port", "on"}: begins and ends one |
| POST /api/restart, /api/plug, /api/unplug | plug | {"machine"}, {"machine", "port", "console"}, {"port"} |
| GET /api/counts | plug, of everything | what was refused and lost |

Each answer has the headers of _HEADERS.  Every refusal is counted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
from collections import Counter
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from virtserial.errors import ConfigError, VirtserialError
from virtserial.web.overview import Overview
from virtserial.web.people import Role
from virtserial.web.rates import Rate
from virtserial.web.terminals import Terminals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from virtserial.web.access import Access
    from virtserial.web.people import User
    from virtserial.web.recordings import Recordings
    from virtserial.web.source import Source

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
    Answer = Callable[[web.Request, User], Awaitable[web.StreamResponse]]

MAX_BODY: Final = 8 << 10
BODY_TIME: Final = 10.0
"""Seconds for a request's body."""
PIECE: Final = 64 << 10
PAGE: Final = files("virtserial.web") / "static" / "index.html"
STATIC: Final = str(files("virtserial.web") / "static")
RELOAD: Final = 2.0
"""Seconds between two looks at the file of users."""
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), usb=(), serial=()",
    "Cache-Control": "no-store",
    "Server": "virtserial",
}
# The terminal's styles are written by a script of ours, which gives them the page's nonce.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src {styles}; connect-src 'self'; img-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
log = logging.getLogger("virtserial.web")


class Console:
    """
    Args:
        source: where machines and ports come from; owned.
        access: who may come.

    Attributes:
        application: what a server runs.
        counts: of what was refused and lost.
    """

    def __init__(self, source: Source, access: Access, recordings: Recordings) -> None:
        self.counts: Counter[str] = Counter()
        self._source = source
        self._access = access
        self._recordings = recordings
        self._overview = Overview(source)
        self._terminals = Terminals(source, self._overview, access, self.counts)
        self._requests = Rate(300, 100)
        self._log_ins = Rate(10, 0.2)
        self._reloading: asyncio.Task[None] | None = None
        self.application = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY)
        self.application.add_routes([
            web.get("/", self._page),
            web.get("/api/me", self._me),
            web.post("/api/log-in", self._log_in),
            web.post("/api/log-out", self._log_out),
            web.get("/api/list", self._for_users(self._terminals.list)),
            web.get("/api/terminal", self._for_users(self._terminals.terminal)),
            web.get("/api/recordings", self._for_users(self._list_recordings)),
            web.get("/api/recordings/{name}", self._for_users(self._send_recording)),
            web.post("/api/record", self._for_users(self._record)),
            web.post("/api/restart", self._for_users(self._restart)),
            web.post("/api/plug", self._for_users(self._plug)),
            web.post("/api/unplug", self._for_users(self._unplug)),
            web.get("/api/counts", self._for_users(self._counts)),
            web.static("/static", STATIC),
        ])  # fmt: skip
        self.application.on_startup.append(self._start)
        self.application.on_shutdown.append(self._close)

    # Every request

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._check(request)
            response = await handler(request)
        except web.HTTPException as error:
            response = error
        except VirtserialError as error:
            response = web.json_response({"error": str(error)}, status=409)
        if not response.prepared:
            for name, value in _HEADERS.items():
                response.headers[name] = value
            response.headers.setdefault("Content-Security-Policy", _POLICY.format(styles="'self'"))
            if self._access.is_secure:
                response.headers["Strict-Transport-Security"] = "max-age=31536000"
        if isinstance(response, web.HTTPException):
            raise response
        return response

    def _check(self, request: web.Request) -> None:
        if not self._access.names_us(request):
            self._refuse("host", request)
            raise web.HTTPMisdirectedRequest(text="this console has another name: see --origin")
        if not self._requests.allows(self._access.sender(request)):
            self._refuse("rate", request)
            raise web.HTTPTooManyRequests(text="too many requests")
        changes = request.method not in ("GET", "HEAD") or "Upgrade" in request.headers
        if changes and not self._access.is_from_our_page(request):
            self._refuse("origin", request)
            raise web.HTTPForbidden(text="this request is not from a page of this console")

    def _refuse(self, why: str, request: web.Request) -> None:
        self.counts[why] += 1
        if self.counts[why] <= 10 or self.counts[why] % 1000 == 0:
            log.warning("refused (%s, %d so far): %s", why, self.counts[why], request.remote)

    def _for_users(self, answer: Answer) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            user = self._access.user_of(request)
            if user is None:
                self._refuse("log_in", request)
                raise web.HTTPUnauthorized(text="log in first")
            return await answer(request, user)

        return handle

    def _need(self, user: User, role: Role, port: str) -> None:
        if not user.may(role, port):
            self.counts["rights"] += 1
            raise web.HTTPForbidden(text=f"you may not {role.name.lower()} here")

    async def _told(self, request: web.Request, **kinds: type) -> list[Any]:
        """The members of a request's JSON object; exactly these."""
        try:
            async with asyncio.timeout(BODY_TIME):
                told = json.loads(await request.read())
        except TimeoutError:
            self._refuse("slow", request)
            raise web.HTTPRequestTimeout(text="the request took too long") from None
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict) or set(told) != set(kinds) or not all(
            isinstance(told[name], kind) for name, kind in kinds.items()
        ):
            self.counts["messages"] += 1
            raise web.HTTPBadRequest(text=f"expected an object of {', '.join(kinds)}")
        return [told[name] for name in kinds]

    # For anybody

    async def _page(self, _: web.Request) -> web.StreamResponse:
        nonce = secrets.token_urlsafe(16)
        policy = _POLICY.format(styles=f"'self' 'nonce-{nonce}'")
        text = PAGE.read_text("utf-8").replace("{nonce}", nonce)
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": policy})

    async def _me(self, request: web.Request) -> web.StreamResponse:
        user = self._access.user_of(request)
        return web.json_response({
            "user": user.name if user else None,
            "role": user.role.name.lower() if user else None,
            "log-in": self._access.has_log_in,
            "recordings": bool(self._recordings.folder),
        })  # fmt: skip

    async def _log_in(self, request: web.Request) -> web.StreamResponse:
        if not self._log_ins.allows(self._access.sender(request)):
            self._refuse("rate", request)
            raise web.HTTPTooManyRequests(text="too many attempts: wait a minute")
        [token] = await self._told(request, token=str)
        session = self._access.log_in(token)
        if session is None:
            self._refuse("log_in", request)
            raise web.HTTPUnauthorized(text="nobody has this token")
        response = web.json_response({})
        response.set_cookie(
            self._access.cookie, session, httponly=True, samesite="Strict", secure=self._access.is_secure, path="/"
        )
        return response

    async def _log_out(self, request: web.Request) -> web.StreamResponse:
        self._access.log_out(request)
        response = web.json_response({})
        response.del_cookie(self._access.cookie, path="/", secure=self._access.is_secure)
        return response

    # For users

    async def _list_recordings(self, _: web.Request, user: User) -> web.StreamResponse:
        listed = await asyncio.to_thread(self._recordings.list, user)
        return web.json_response([each._asdict() for each in listed])

    async def _send_recording(self, request: web.Request, user: User) -> web.StreamResponse:
        fd = await asyncio.to_thread(self._recordings.open, user, request.match_info["name"])
        if fd is None:
            raise web.HTTPNotFound(text="there is no such recording")
        response = web.StreamResponse(headers={"Content-Type": "application/x-asciicast", **_HEADERS})
        try:
            await response.prepare(request)
            while data := await asyncio.to_thread(os.read, fd, PIECE):
                await response.write(data)
        finally:
            os.close(fd)
        await response.write_eof()
        return response

    async def _record(self, request: web.Request, user: User) -> web.StreamResponse:
        port, is_on = await self._told(request, port=str, on=bool)
        self._need(user, Role.TYPE, port)
        hub = self._terminals.hubs.find(port)
        if hub is None:
            raise ConfigError(f"nobody has a terminal on {port}")
        if is_on and not hub.is_recorded:
            return web.json_response({"name": self._recordings.begin(hub)})
        if not is_on:
            hub.stop_recording()
        return web.json_response({})

    async def _restart(self, request: web.Request, user: User) -> web.StreamResponse:
        [machine] = await self._told(request, machine=str)
        self._need(user, Role.PLUG, f"{machine}/*")
        log.warning("%s restarts the device of %s", user.name, machine)
        await self._source.restart(machine)
        return web.json_response({})

    async def _plug(self, request: web.Request, user: User) -> web.StreamResponse:
        machine, port, is_console = await self._told(request, machine=str, port=str, console=bool)
        self._need(user, Role.PLUG, f"{machine}/*")
        log.warning("%s plugs %s into %s", user.name, port[:64], machine)
        await self._source.plug(machine, port, is_console)
        return web.json_response({})

    async def _unplug(self, request: web.Request, user: User) -> web.StreamResponse:
        [port] = await self._told(request, port=str)
        self._need(user, Role.PLUG, port)
        log.warning("%s unplugs %s", user.name, port)
        await self._source.unplug(port)
        return web.json_response({})

    async def _counts(self, _: web.Request, user: User) -> web.StreamResponse:
        self._need(user, Role.PLUG, "*")
        return web.json_response(dict(self.counts))

    # Starting and ending

    async def _start(self, _: web.Application) -> None:
        if self._access.policy.people is not None:
            self._reloading = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        people = self._access.policy.people
        while people is not None:
            await asyncio.sleep(RELOAD)
            try:
                people.reload()
            except ConfigError as error:
                log.error("%s", error)

    async def _close(self, _: web.Application) -> None:
        if self._reloading is not None:
            self._reloading.cancel()
        await self._terminals.close()
        await self._overview.close()
        self._source.close()
