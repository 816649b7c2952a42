"""Recordings in the web console: who sees which, what is none, and one that a terminal makes."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import pytest
from support.web_console import MadeSource, World, eventually

from virtserial.errors import ConfigError
from virtserial.guest.recording import Recorder, Recording
from virtserial.web.people import Role, User
from virtserial.web.recordings import Recordings

PORT = "alpha/hvc0"


def record(path, title, begun=1000, **more):
    header = {"version": 2, "width": 80, "height": 24, "timestamp": begun, "title": title, **more}
    path.write_text(json.dumps(header) + '\n[0.5, "o", "hello"]\n')


def test_whoever_sees_a_port_sees_its_recordings(folder):
    record(folder / "a.cast", "alpha/hvc0", 1)
    record(folder / "b.cast", "beta/hvc0", 2)
    record(folder / "c.txt", "alpha/hvc0")
    record(folder / "old.cast", "alpha/hvc0", version=1)
    (folder / "d.cast").write_text("nonsense")
    (folder / "e.cast").mkdir()
    (folder / "f.cast").symlink_to(folder / "a.cast")
    recordings = Recordings(str(folder), 1 << 20)
    anybody, alpha = User("a", Role.WATCH), User("b", Role.WATCH, ("alpha/*",))
    assert [each.name for each in recordings.list(anybody)] == ["b.cast", "a.cast"]
    assert [each.name for each in recordings.list(alpha)] == ["a.cast"]
    assert recordings.open(alpha, "b.cast") is None
    for name in ("../a.cast", "c.txt", "f.cast", "e.cast", "/etc/passwd", ".cast", "a.cast/", "nothing.cast"):
        assert recordings.open(anybody, name) is None
    with pytest.raises(ConfigError):
        Recordings(str(folder / "nothing"), 1)


def test_a_terminal_records_and_the_page_gets_it(run, folder):
    (folder / "rec").mkdir()

    async def check():
        source = MadeSource(PORT)
        users = {"anne": ("type",), "zoe": ("watch", "beta/*")}
        async with World(folder, source, users, recordings=str(folder / "rec")) as world:
            anne, zoe = await world.visitor("anne"), await world.visitor("zoe")
            async with anne.post("/api/record", {"port": PORT, "on": True}) as answer:
                assert (answer.status, (await answer.json())["error"]) == (409, f"nobody has a terminal on {PORT}")
            async with anne.terminal(PORT) as terminal:
                await terminal.connected()
                async with anne.post("/api/record", {"port": PORT, "on": True}) as answer:
                    name = (await answer.json())["name"]
                await terminal.until(lambda self: self.facts["recording"])
                source.ports[PORT].said.put_nowait("grüße".encode())
                await terminal.until(lambda self: self.shown)
                await terminal.type(b"x")
                await eventually(lambda: source.ports[PORT].typed)
                async with anne.post("/api/record", {"port": PORT, "on": False}) as answer:
                    assert answer.status == 200
                await terminal.until(lambda self: not self.facts["recording"])
            path = folder / "rec" / name
            assert path.stat().st_mode & 0o777 == 0o600
            with contextlib.closing(Recording(str(path))) as recording:
                events = [(each.kind, each.data) for each in recording]
            assert events == [("o", "grüße".encode())], "what was typed may be a password"
            async with anne.get("/api/recordings") as answer:
                assert [each["title"] for each in await answer.json()] == [PORT]
            async with anne.get(f"/api/recordings/{name}") as answer:
                assert await answer.read() == path.read_bytes()
            async with zoe.get(f"/api/recordings/{name}") as answer:
                assert answer.status == 404

    run(check())


def test_recordings_that_begin_in_one_second_have_files_of_their_own(folder, monkeypatch):
    monkeypatch.setattr("virtserial.web.recordings.time.strftime", lambda _: "20260101-000000")
    recordings, begun = Recordings(str(folder), 1 << 20), []

    def record(title):
        hub = SimpleNamespace(name=title, record=lambda path, _: begun.append(Recorder(path, title, (24, 80))))
        return recordings.begin(hub)

    titles = {record(title): title for title in ("alpha/a", "alpha_a", "alpha/a")}
    for each in begun:
        each.close()
    assert list(titles) == [f"alpha_a@20260101-000000{more}.cast" for more in ("", "-2", "-3")]
    assert {each.name: each.title for each in recordings.list(User("a", Role.WATCH))} == titles
