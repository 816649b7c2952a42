"""Terminals of the web console: who may type, many on one port, slow browsers, garbage; with real WebSockets."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from support.web_console import MadeSource, Terminal, World, eventually

from virtserial.web import hub as hubs
from virtserial.web import terminals
from virtserial.web.overview import Overview
from virtserial.web.people import Role, User
from virtserial.web.viewer import LIMIT, WINDOW, Viewer

PORT = "alpha/hvc0"
USERS = {"anne": ("type",), "bob": ("type", "alpha/*"), "wil": ("watch", "alpha/*"), "zoe": ("watch", "beta/*")}


@pytest.fixture
def quick(monkeypatch):
    """Waits that are made to be long for people."""
    monkeypatch.setattr(hubs, "LINGER", 0.05)
    monkeypatch.setattr(hubs, "TRY_AGAIN", 0.05)
    monkeypatch.setattr(hubs, "PATIENCE", 0.1)


def test_two_type_on_one_console_over_one_connection(run, folder):
    async def check():
        source = MadeSource(PORT, console="hvc0")
        port = source.ports[PORT]
        async with World(folder, source, USERS) as world:
            anne, bob = await world.visitor("anne"), await world.visitor("bob")
            async with anne.terminal(PORT) as first:
                await first.connected()
                assert (first.facts["types"], first.facts["answers"]) == (True, True)
                port.said.put_nowait(b"login: ")
                await first.until(lambda self: self.shown == b"login: ")
                async with bob.terminal(PORT) as second:
                    await second.until(lambda self: self.shown == b"login: ")
                    assert (second.facts["replay"], second.facts["answers"]) == (7, False)
                    assert [each["name"] for each in second.facts["people"]] == ["anne", "bob"]
                    await first.type(b"ro")
                    await eventually(lambda: port.typed == b"ro")
                    await second.type(b"ot\r")
                    await eventually(lambda: port.typed == b"root\r")
                    port.said.put_nowait(b"hello")
                    for each in (first, second):
                        await each.until(lambda self: self.shown == b"login: hello")
                    # The terminal fits into both windows.
                    await first.tell(window=[120, 30])
                    await second.tell(window=[90, 50])
                    for each in (first, second):
                        await each.until(lambda self: self.facts.get("size") == [90, 30])
                    await eventually(lambda: port.sizes[-1:] == [(30, 90)])
                    # A window that nobody sees does not count.
                    await second.tell(window=None)
                    await first.until(lambda self: self.facts["size"] == [120, 30])
                    await second.tell(window=[90, 50])
                    await first.until(lambda self: self.facts["size"] == [90, 30])
                await first.until(lambda self: len(self.facts["people"]) == 1)
                await first.until(lambda self: self.facts["size"] == [120, 30])
            assert len(port.opened) == 1

    run(check())


def test_who_watches_types_nothing_and_changes_no_size(run, folder):
    async def check():
        source = MadeSource(PORT)
        port = source.ports[PORT]
        async with World(folder, source, USERS) as world:
            wil, anne = await world.visitor("wil"), await world.visitor("anne")
            async with wil.terminal(PORT) as watcher, anne.terminal(PORT, watch=1) as by_choice:
                for each in (watcher, by_choice):
                    await each.connected()
                    assert (each.facts["types"], each.facts["answers"]) == (False, False)
                    await each.type(b"rm -rf /\r")
                    await each.tell(window=[20, 5])
                    await each.until(lambda self: self.facts.get("refused") == 9)
                port.said.put_nowait(b"seen")
                await watcher.until(lambda self: self.shown == b"seen")
                assert (port.typed, port.sizes) == (b"", [])
                assert "size" not in watcher.facts
            assert world.console.counts["rights"] == 2
            bodies = {"record": {"port": PORT, "on": True}, "unplug": {"port": PORT}, "restart": {"machine": "alpha"}}
            for path, body in bodies.items():
                async with wil.post(f"/api/{path}", body) as answer:
                    assert answer.status == 403
            async with anne.post("/api/plug", {"machine": "alpha", "port": "p", "console": False}) as answer:
                assert answer.status == 403
            assert source.done == []

    run(check())


def test_watchers_alone_take_a_place_of_watchers(run, folder):
    async def check():
        source = MadeSource(PORT, has_watch=True)
        async with World(folder, source, USERS) as world:
            wil, anne = await world.visitor("wil"), await world.visitor("anne")
            async with wil.terminal(PORT) as watcher, anne.terminal(PORT) as typist:
                await watcher.connected()
                await typist.connected()
            assert sorted(source.ports[PORT].opened) == [(False, False), (True, False)]

    run(check())


def test_ports_of_others_are_neither_listed_nor_opened(run, folder):
    async def check():
        async with World(folder, MadeSource(PORT, "beta/log"), USERS) as world:
            zoe = await world.visitor("zoe")
            async with zoe.list() as listed:
                await listed.step()
                assert (set(listed.facts["machines"]), set(listed.facts["ports"])) == ({"beta"}, {"beta/log"})
            for name in (PORT, "", "x" * 600):
                async with zoe.get(f"/api/terminal?port={name}", Upgrade="websocket", Connection="Upgrade") as answer:
                    assert answer.status == 403

    run(check())


def test_the_list_tells_what_changes(run, folder):
    async def check():
        source = MadeSource(PORT, "beta/log")
        async with World(folder, source, USERS) as world:
            anne = await world.visitor("anne")
            async with anne.list() as listed:
                await listed.step()
                assert set(listed.facts["ports"]) == {PORT, "beta/log"}
                source.facts[PORT] = {"to_host": 5}
                del source.ports["beta/log"]
                await listed.until(lambda self: self.facts["machines"] == {"beta": None})
                assert set(listed.facts["ports"]) == {PORT, "beta/log"}
                assert listed.facts["ports"]["beta/log"] is None
                assert listed.facts["ports"][PORT]["to_host"] == 5

    run(check())


@pytest.mark.parametrize(
    "garbage",
    ["", "{", "[]", "1", '{"shown": -1}', '{"shown": "1"}', '{"window": [1, 1]}', '{"window": [100000, 2]}',
     '{"window": 5}', '{"retry": 1}', '{"nothing": 1}', "[" * 20000, b"x" * (40 << 10)],
)  # fmt: skip
def test_garbage_ends_its_own_terminal_only(run, folder, garbage):
    async def check():
        source = MadeSource(PORT)
        async with World(folder, source, USERS) as world:
            anne, bob = await world.visitor("anne"), await world.visitor("bob")
            async with anne.terminal(PORT) as other, bob.terminal(PORT) as bad:
                await other.connected()
                await bad.connected()
                send = bad.socket.send_str if isinstance(garbage, str) else bad.socket.send_bytes
                await send(garbage)
                assert await bad.closed() in (1003, 1009)
                await other.type(b"on")
                await eventually(lambda: source.ports[PORT].typed == b"on")

    run(check())


def test_a_browser_that_shows_nothing_holds_nobody_up_for_long_and_is_told_what_it_lost(run, folder, quick):
    async def check():
        source = MadeSource(PORT)
        port = source.ports[PORT]
        async with World(folder, source, USERS) as world:
            anne, bob = await world.visitor("anne"), await world.visitor("bob")
            async with anne.terminal(PORT) as slow, bob.terminal(PORT) as good:
                await slow.connected()
                await good.connected()
                total, piece = 4 << 20, 32 << 10
                for number in range(total // piece):
                    port.said.put_nowait(bytes([number % 251]) * piece)
                acknowledged = 0
                while len(good.shown) < total:
                    await good.step()
                    if len(good.shown) > acknowledged:
                        await good.tell(shown=len(good.shown) - acknowledged)
                        acknowledged = len(good.shown)
                [hub] = world.console._terminals.hubs.all()
                viewer = hub.viewers[0]
                assert viewer._count <= LIMIT + piece
                assert viewer._unshown <= WINDOW + piece
                assert good.facts.get("lost", 0) == 0
                # Now it shows what it has, and what there is.
                got = 0
                while "lost" not in slow.facts or len(slow.shown) + slow.facts["lost"] < total:
                    await slow.step()
                    if len(slow.shown) > got:
                        await slow.tell(shown=len(slow.shown) - got)
                        got = len(slow.shown)
                assert len(slow.shown) + slow.facts["lost"] == total
                assert slow.shown.endswith(good.shown[-piece:])
            await eventually(lambda: world.console.counts["lost_bytes"] == slow.facts["lost"])

    run(check())


def test_a_viewer_keeps_no_more_than_its_bounds():
    async def check():
        viewer = Viewer(User("a", Role.WATCH), False, lambda: None)
        for _ in range(100):
            viewer.offer(b"x" * (32 << 10))
            viewer.note(people=["a"] * 10)
        assert viewer._count <= LIMIT + (32 << 10)
        notes, _ = await viewer.next()
        assert notes["lost"] + viewer._count + (32 << 10) == 100 * (32 << 10)

    asyncio.run(check())


def test_what_a_guest_does_not_read_is_refused_beyond_a_bound(run, folder):
    async def check():
        source = MadeSource(PORT)
        port = source.ports[PORT]
        port.takes.clear()
        async with World(folder, source, USERS) as world:
            anne = await world.visitor("anne")
            async with anne.terminal(PORT) as terminal:
                await terminal.connected()
                for _ in range(12):
                    await terminal.type(b"y" * (16 << 10))
                await terminal.until(lambda self: self.facts.get("refused", 0) >= 7 * (16 << 10))
                port.takes.set()
                await eventually(lambda: len(port.typed) + terminal.facts["refused"] == 12 * (16 << 10))

    run(check())


def test_a_busy_port_is_taken_by_who_may_type_only(run, folder, quick):
    async def check():
        source = MadeSource(PORT)
        source.ports[PORT].busy = True
        async with World(folder, source, USERS) as world:
            wil, anne = await world.visitor("wil"), await world.visitor("anne")
            async with wil.terminal(PORT) as watcher:
                await watcher.until(lambda self: self.facts.get("state") == "busy")
                await watcher.tell(retry=True)
                await asyncio.sleep(0.3)
                assert source.ports[PORT].opened == []
            async with anne.terminal(PORT) as terminal:
                await terminal.until(lambda self: self.facts.get("state") == "busy")
                assert terminal.facts["why"] == f"port '{PORT}' is busy"
                await terminal.tell(retry=True)
                await terminal.connected()
                assert source.ports[PORT].opened == [(False, True)]

    run(check())


def test_a_terminal_connects_again_when_the_connection_ends_and_leaves_with_the_last(run, folder, quick):
    async def check():
        source = MadeSource(PORT)
        port = source.ports[PORT]
        async with World(folder, source, USERS) as world:
            anne = await world.visitor("anne")
            async with anne.terminal(PORT) as terminal:
                await terminal.connected()
                port.said.put_nowait(b"")
                await eventually(lambda: len(port.opened) == 2)
                await terminal.connected()
                gone = source.ports.pop(PORT)
                port.said.put_nowait(b"")
                await terminal.until(lambda self: self.facts["why"] == f"there is no {PORT}")
                source.ports[PORT] = gone
                await terminal.connected()
                port.said.put_nowait(b"back")
                await terminal.until(lambda self: self.shown == b"back")
            await eventually(lambda: port.closed == 3)
            assert world.console._terminals.hubs.all() == []

    run(check())


def test_whoever_loses_their_rights_loses_their_terminals(run, folder, monkeypatch):
    monkeypatch.setattr(terminals, "LOOK_AGAIN", 0.05)

    async def check():
        async with World(folder, MadeSource(PORT), USERS) as world:
            anne = await world.visitor("anne")
            async with anne.terminal(PORT) as terminal, anne.list() as listed:
                await terminal.connected()
                world.users.write_text('[anne]\nrole = "watch"\n')
                world.access.policy.people.reload()
                assert await terminal.closed() == 1008
                assert await listed.closed() == 1008

    run(check())


def test_whoever_logs_out_loses_their_terminals(run, folder, monkeypatch):
    monkeypatch.setattr(terminals, "LOOK_AGAIN", 0.05)

    async def check():
        async with World(folder, MadeSource(PORT), USERS) as world:
            anne = await world.visitor()
            async with anne.post("/api/log-in", {"token": world.tokens["anne"]}) as answer:
                assert answer.status == 200
            async with anne.terminal(PORT) as terminal, anne.list() as listed:
                await terminal.connected()
                async with anne.post("/api/log-out", {}) as answer:
                    assert answer.status == 200
                assert await terminal.closed() == 1008
                assert await listed.closed() == 1008

    run(check())


def test_terminals_and_lists_are_counted(run, folder, monkeypatch):
    monkeypatch.setattr(terminals, "MAX_TERMINALS_OF_USER", 2)
    monkeypatch.setattr(terminals, "MAX_LISTS_OF_USER", 1)

    async def check():
        async with World(folder, MadeSource(PORT), USERS) as world:
            anne = await world.visitor("anne")
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(2):
                    await (await stack.enter_async_context(anne.terminal(PORT))).connected()
                await (await stack.enter_async_context(anne.list())).step()
                for path in (f"/api/terminal?port={PORT}", "/api/list"):
                    async with anne.get(path, Upgrade="websocket", Connection="Upgrade") as answer:
                        assert answer.status == 429
            await eventually(lambda: not world.console._terminals._open)
            async with anne.terminal(PORT) as again:
                await again.connected()

    run(check())


def test_terminals_that_open_at_once_are_counted(run, folder, monkeypatch):
    monkeypatch.setattr(terminals, "MAX_TERMINALS_OF_USER", 2)

    async def check():
        now, waiting, go_on = Overview.now, [], asyncio.Event()

        async def now_later(self):
            waiting.append(self)
            await go_on.wait()
            return await now(self)

        monkeypatch.setattr(Overview, "now", now_later)
        async with World(folder, MadeSource(PORT), USERS) as world, contextlib.AsyncExitStack() as stack:
            anne = await world.visitor("anne")
            opening = [asyncio.create_task(stack.enter_async_context(anne.terminal(PORT))) for _ in range(5)]
            await eventually(lambda: len(waiting) + world.console.counts["too_many"] == 5)
            go_on.set()
            opened = await asyncio.gather(*opening, return_exceptions=True)
            assert sum(isinstance(each, Terminal) for each in opened) == 2

    run(check())
