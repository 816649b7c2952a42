"""The web console's server with ports that a test makes, and clients of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

from aiohttp import ClientSession, ClientTimeout, CookieJar, WSMsgType
from aiohttp.test_utils import TestServer

from virtserial.errors import BusyError, ConfigError
from virtserial.web.access import Access, Policy
from virtserial.web.application import Console
from virtserial.web.people import People, new_token
from virtserial.web.recordings import Recordings
from virtserial.web.source import ShownMachine, ShownPort

WAIT = 60


def shown(name, **more):
    """A port as a source shows it."""
    facts = {
        "name": name, "console": "", "refusal": "", "has_watch": False, "busy_with": "", "clients": 0, "max_clients": 1,
        "guest_open": True, "to_host": 0, "to_guest": 0, "discarded": 0, "dropped": 0,
    }  # fmt: skip
    return ShownPort(**{**facts, **more})


class MadePort:
    """A port whose guest is the test."""

    def __init__(self):
        self.said = asyncio.Queue()
        self.typed = bytearray()
        self.sizes = []
        self.opened = []
        self.closed = 0
        self.busy = False
        self.takes = asyncio.Event()
        self.takes.set()

    async def read(self, limit):
        return await self.said.get()

    async def write(self, data):
        await self.takes.wait()
        self.typed += data

    async def resize(self, rows, columns):
        self.sizes.append((rows, columns))

    def close(self):
        self.closed += 1


class MadeSource:
    """Machines and ports by name (Source)."""

    def __init__(self, *names, **facts):
        self.ports = {name: MadePort() for name in names}
        self.facts = dict.fromkeys(names, facts)
        self.done = []

    async def look(self):
        machines = {}
        for name in self.ports:
            machines.setdefault(name.partition("/")[0], []).append(shown(name, **self.facts[name]))
        return [ShownMachine(name, "", 0, True, ports) for name, ports in machines.items()]

    async def open(self, name, only_watch, force):
        if name not in self.ports:
            raise ConfigError(f"there is no {name}")
        port = self.ports[name]
        if port.busy and not force:
            raise BusyError(f"port '{name}' is busy")
        port.opened.append((only_watch, force))
        return port

    async def restart(self, machine):
        self.done.append(("restart", machine))

    async def plug(self, machine, port, is_console):
        self.done.append(("plug", machine, port, is_console))

    async def unplug(self, name):
        self.done.append(("unplug", name))

    def close(self):
        pass


class Visitor:
    """Somebody with a browser, or a program with a token."""

    def __init__(self, server, session, headers):
        self.server = server
        self.session = session
        self.headers = headers

    def url(self, path):
        return f"http://127.0.0.1:{self.server.port}{path}"

    def get(self, path, **headers):
        return self.session.get(self.url(path), headers={**self.headers, **headers}, allow_redirects=False)

    def post(self, path, body, **headers):
        return self.session.post(self.url(path), json=body, headers={**self.headers, **headers})

    @contextlib.asynccontextmanager
    async def terminal(self, port, **query):
        words = "&".join(f"{name}={value}" for name, value in {"port": port, **query}.items())
        async with self.session.ws_connect(self.url(f"/api/terminal?{words}"), headers=self.headers) as socket:
            yield Terminal(socket)

    @contextlib.asynccontextmanager
    async def list(self):
        async with self.session.ws_connect(self.url("/api/list"), headers=self.headers) as socket:
            yield Terminal(socket)


class Terminal:
    """A WebSocket of the console, read by its test."""

    def __init__(self, socket):
        self.socket = socket
        self.facts = {}
        self.shown = bytearray()

    async def step(self):
        message = await self.socket.receive(WAIT)
        if message.type is WSMsgType.TEXT:
            self.facts |= json.loads(message.data)
        elif message.type is WSMsgType.BINARY:
            self.shown += message.data
        else:
            self.facts["closed"] = self.socket.close_code

    async def until(self, condition):
        while not condition(self):
            assert "closed" not in self.facts, self.facts
            await self.step()

    async def connected(self):
        await self.until(lambda self: self.facts.get("state") == "connected")

    async def closed(self):
        while "closed" not in self.facts:
            await self.step()
        return self.facts["closed"]

    async def tell(self, **message):
        await self.socket.send_str(json.dumps(message))

    async def type(self, data):
        await self.socket.send_bytes(data)


async def eventually(condition):
    """Wait until something is so."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.005)


class World:
    """A console that runs, for users of a file if `users` is given: {name: (role, ports)}."""

    def __init__(self, folder, source, users=None, recordings="", **policy):
        self.source = source
        self.tokens = {}
        if users is not None:
            lines = []
            for name, (role, *ports) in users.items():
                self.tokens[name], digest = new_token()
                lines += [f'["{name}"]', f'role = "{role}"', *([f"ports = {json.dumps(ports)}"] if ports else [])]
                lines += [f'token = "{digest}"'] if name != "*" and "user_header" not in policy else []
            self.users = folder / "users.toml"
            self.users.write_text("\n".join(lines))
            self.users.chmod(0o600)
            policy["people"] = People(str(self.users))
        self.access = Access(Policy(**policy))
        self.recordings = Recordings(recordings, 1 << 20)
        self.console = None

    async def __aenter__(self):
        self._stack = contextlib.AsyncExitStack()
        self.console = Console(self.source, self.access, self.recordings)
        self.server = TestServer(self.console.application)
        await self._stack.enter_async_context(self.server)
        return self

    async def __aexit__(self, *_):
        await self._stack.aclose()

    async def visitor(self, name=None, **headers):
        """Somebody; with a name, a program that has this user's token."""
        session = ClientSession(cookie_jar=CookieJar(unsafe=True), timeout=ClientTimeout(WAIT))
        await self._stack.enter_async_context(session)
        if name is None:
            headers = {"Origin": f"http://127.0.0.1:{self.server.port}", **headers}
        else:
            headers = {"Authorization": f"Bearer {self.tokens[name]}", **headers}
        return Visitor(self.server, session, headers)
