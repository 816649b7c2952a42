"""Who may come to the web console, and whose page a request is from: aiohttp's real server and client."""

from __future__ import annotations

import asyncio
import ctypes
import os
import pwd
import re
import socket
import time

import pytest
from support.web_console import MadeSource, World

from virtserial.errors import ConfigError
from virtserial.web.access import SESSION_SECONDS, Access, Policy
from virtserial.web.local_peer import _uid_in, uid_of_peer

ORIGIN = "https://console.example.org"
CHANGES = ("/api/log-in", "/api/log-out", "/api/record", "/api/restart", "/api/plug", "/api/unplug")


def test_without_users_the_user_who_runs_it_comes_and_may_do_all(run, folder):
    async def check():
        async with World(folder, MadeSource("alpha/p")) as world:
            me = await world.visitor()
            async with me.get("/api/me") as answer:
                assert await answer.json() == {
                    "user": pwd.getpwuid(os.geteuid()).pw_name, "role": "plug", "log-in": False, "recordings": False
                }
            async with me.post("/api/restart", {"machine": "alpha"}) as answer:
                assert answer.status == 200
            assert world.source.done == [("restart", "alpha")]

    run(check())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_of_this_machine_does_not(run, folder):
    async def check():
        async with World(folder, MadeSource()) as world:
            # The kernel takes a new socket's owner from this identity of the thread.
            setfsuid = ctypes.CDLL(None).setfsuid
            setfsuid(65534)
            try:
                theirs = socket.socket()
            finally:
                setfsuid(0)
            theirs.setblocking(False)
            await asyncio.get_running_loop().sock_connect(theirs, ("127.0.0.1", world.server.port))
            reader, writer = await asyncio.open_connection(sock=theirs)
            writer.write(b"GET /api/recordings HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readline()).split()[1] == b"401"
            writer.close()
            assert world.console.counts["log_in"] == 1

    run(check())


def test_the_kernel_tells_who_is_at_the_other_end():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        assert uid_of_peer(server) == os.geteuid()
        client.close()
        # What nobody holds any more is listed as root's.
        assert uid_of_peer(server) is None
        server.close()
    ours, theirs = socket.socketpair()
    assert uid_of_peer(ours) == os.geteuid()
    ours.close()
    theirs.close()


def test_only_an_established_socket_of_a_process_says_whose_it_is():
    line = "   1: 0100007F:1F68 0100007F:9C40 {} 00000000:00000000 00:00000000 00000000  1000        0 {} 1 0 20"
    find = ("0100007F:1F68", "0100007F:9C40")
    assert _uid_in([line.format("01", "4711")], *find) == 1000
    assert _uid_in([line.format("04", "4711")], *find) is None
    assert _uid_in([line.format("01", "0")], *find) is None


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
def test_a_proxy_of_this_machine_is_nobody_without_a_header_for_users(run, folder, header):
    async def check():
        async with World(folder, MadeSource()) as world:
            me = await world.visitor()
            async with me.get("/api/recordings", **{header: "10.0.0.1"}) as answer:
                assert answer.status == 401

    run(check())


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "localhost@evil.example", "", "[::1"])
def test_another_name_of_this_host_is_refused(run, folder, host):
    async def check():
        async with World(folder, MadeSource()) as world:
            me = await world.visitor()
            async with me.get("/", Host=host) as answer:
                assert answer.status in (400, 421)
            async with me.get("/", Host="localhost:9000") as answer:
                assert answer.status == 200

    run(check())


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", None])
def test_pages_of_other_sites_change_nothing_and_open_no_socket(run, folder, origin):
    async def check():
        source = MadeSource("alpha/p")
        async with World(folder, source) as world:
            stranger = await world.visitor(Origin=origin)
            if origin is None:
                del stranger.headers["Origin"]
            for path in CHANGES:
                async with stranger.post(path, {"machine": "alpha"}) as answer:
                    assert answer.status == 403
            for path in ("/api/list", "/api/terminal?port=alpha/p"):
                async with stranger.get(path, Upgrade="websocket", Connection="Upgrade") as answer:
                    assert answer.status == 403
            assert source.done == []
            assert world.console.counts["origin"] == len(CHANGES) + 2

    run(check())


def test_every_answer_has_a_strict_policy(run, folder):
    async def check():
        async with World(folder, MadeSource()) as world:
            me = await world.visitor()
            nonces = set()
            for path, status in (("/", 200), ("/", 200), ("/static/main.js", 200), ("/nothing", 404), ("/api/me", 200)):
                async with me.get(path) as answer:
                    assert answer.status == status
                    policy = answer.headers["Content-Security-Policy"]
                    assert "default-src 'none'; script-src 'self'; " in policy
                    assert "unsafe" not in policy
                    assert "*" not in policy
                    assert "frame-ancestors 'none'" in policy
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"
                    assert answer.headers["Referrer-Policy"] == "no-referrer"
                    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
                    if path == "/":
                        page = await answer.text()
                        nonce = re.search("'nonce-([^']+)'", policy)[1]
                        nonces.add(nonce)
                        assert f'nonce="{nonce}"' in page
                        assert not re.search(r"https?://|<script>| on[a-z]+=| style=", page)
            assert len(nonces) == 2

    run(check())


@pytest.mark.parametrize("path", ["/static/../people.py", "/static/%2e%2e/people.py", "/static/..%2fpeople.py"])
def test_no_other_file_is_served(run, folder, path):
    async def check():
        async with World(folder, MadeSource()) as world:
            reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            assert (await reader.readline()).split()[1] in (b"403", b"404")
            writer.close()

    run(check())


def test_a_token_opens_a_session_whose_cookie_no_script_and_no_other_site_gets(run, folder):
    async def check():
        async with World(folder, MadeSource("alpha/p"), {"alice": ("type", "alpha/*")}) as world:
            alice = await world.visitor()
            async with alice.get("/api/recordings") as answer:
                assert answer.status == 401
            async with alice.post("/api/log-in", {"token": "wrong"}) as answer:
                assert (answer.status, answer.cookies) == (401, {})
            async with alice.post("/api/log-in", {"token": world.tokens["alice"]}) as answer:
                cookie = answer.cookies["virtserial"]
                assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/")
                assert world.tokens["alice"] not in cookie.value
            async with alice.get("/api/me") as answer:
                assert (await answer.json())["user"] == "alice"
            async with alice.post("/api/log-out", {}) as answer:
                assert answer.status == 200
            alice.session.cookie_jar.update_cookies({"virtserial": cookie.value})
            async with alice.get("/api/recordings") as answer:
                assert answer.status == 401

    run(check())


def test_attempts_to_log_in_are_limited(run, folder):
    async def check():
        async with World(folder, MadeSource(), {"alice": ("type",)}) as world:
            stranger = await world.visitor()
            world.console._log_ins._now = lambda: 0.0
            statuses = []
            for attempt in range(15):
                async with stranger.post("/api/log-in", {"token": f"guess {attempt}"}) as answer:
                    statuses.append(answer.status)
            assert statuses[:10] == [401] * 10
            assert statuses[-1] == 429
            assert world.console.counts["log_in"] == 10

    run(check())


def test_sessions_are_bounded_and_end(folder, monkeypatch):
    world = World(folder, MadeSource(), {"alice": ("type",)})
    sessions = [world.access.log_in(world.tokens["alice"]) for _ in range(100)]
    assert len(world.access._sessions) == 32
    people = world.access.policy.people
    assert world.access._user_of_session(people, sessions[0]) is None
    assert world.access._user_of_session(people, sessions[-1]).name == "alice"
    later = time.monotonic() + SESSION_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert world.access._user_of_session(people, sessions[-1]) is None


def test_a_proxy_says_who_it_is_and_nobody_else_does(run, folder):
    me = pwd.getpwuid(os.geteuid()).pw_name

    async def check(proxies, status):
        users = {"alice": ("type", "alpha/*"), "*": ("watch", "alpha/log")}
        policy = {"user_header": "X-User", "proxies": proxies, "origins": (ORIGIN,)}
        async with World(folder, MadeSource(), users, **policy) as world:
            proxy = await world.visitor(Origin=ORIGIN, Host="console.example.org")
            for name, role in (("alice", "type"), ("bob", "watch")):
                async with proxy.get("/api/recordings", **{"X-User": name}) as answer:
                    assert answer.status == status
                async with proxy.get("/api/me", **{"X-User": name}) as answer:
                    assert (await answer.json())["role"] == (role if status == 200 else None)
            async with proxy.get("/api/recordings") as answer:
                assert answer.status == 401
            async with proxy.post("/api/log-in", {"token": ""}) as answer:
                assert answer.status == 401

    run(check((me,), 200))
    run(check(("10.1.2.0/24",), 401))


def test_what_makes_no_sense_is_refused(run, folder):
    for origin in ("ftp://a", "https://a/", "https://A", "https://a?b"):
        with pytest.raises(ConfigError):
            Access(Policy(origins=(origin,)))
    with pytest.raises(ConfigError):
        Access(Policy(proxies=("no one",)))

    async def check():
        async with World(folder, MadeSource("alpha/p")) as world:
            me = await world.visitor()
            bodies = [b"", b"[]", b"{", b'{"machine": 1}', b'{"machine": "a", "more": 1}', b"[" * 8000, b"\xff"]
            for body in bodies:
                headers = {**me.headers, "Content-Type": "application/json"}
                async with me.session.post(me.url("/api/restart"), data=body, headers=headers) as answer:
                    assert answer.status == 400
            async with me.session.post(me.url("/api/restart"), data=b"x" * 9000, headers=me.headers) as answer:
                assert answer.status == 413
            assert world.console.counts["messages"] == len(bodies)
            assert world.source.done == []

    run(check())


def test_behind_a_proxy_each_user_has_a_rate_of_their_own(run, folder):
    async def check():
        policy = {"user_header": "X-User", "proxies": (pwd.getpwuid(os.geteuid()).pw_name,), "origins": (ORIGIN,)}
        async with World(folder, MadeSource(), {"*": ("watch",)}, **policy) as world:
            world.console._requests._now = lambda: 0.0
            proxy = await world.visitor(Origin=ORIGIN, Host="console.example.org")
            statuses = []
            for number in range(310):
                name = "bob" if number == 309 else "alice"
                async with proxy.get("/api/me", **{"X-User": name}) as answer:
                    statuses.append(answer.status)
            assert statuses == [200] * 300 + [429] * 9 + [200]

    run(check())


def test_requests_are_limited(run, folder):
    async def check():
        async with World(folder, MadeSource()) as world:
            me = await world.visitor()
            world.console._requests._now = lambda: 0.0
            statuses = set()
            for _ in range(310):
                async with me.get("/api/me") as answer:
                    statuses.add(answer.status)
            assert statuses == {200, 429}

    run(check())
