"""Ports over the fleet: a real broker, a real device with its driver, the agent, and the programs that people use."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from support.places import ROOT
from support.waiting import PATIENCE, wait_until

from virtserial.client import HostStream
from virtserial.errors import BusyError, ConfigError
from virtserial.fleet.broker import connect, load_settings, set_up
from virtserial.fleet.protocol import HOSTS, NUMBER, OWNERS, PIECE, SESSION, document, write
from virtserial.fleet.session import HISTORY
from virtserial.web.fleet_source import FleetSource

WAIT = 60
PORT = "org.example.0"
IN = "vs.h1.alpha.org=2Eexample=2E0.in"
CTL = "vs.h1.alpha.org=2Eexample=2E0.ctl"


def test_ls_shows_hosts_vms_and_ports(host):
    status, output, errors = host.run("fleet", "ls")
    assert (status, errors) == (0, "")
    heading, row = output.splitlines()[:2]
    assert heading.split() == ["HOST/VM", "USER", "PORTS", "OPEN", "CLIENTS", "PUBLISHED"]
    assert row.split()[0] == "h1/alpha"
    status, output, _ = host.run("fleet", "ls", "h1")
    assert [row.split()[0] for row in output.splitlines()[1:4]] == [
        "h1/alpha/con0", "h1/alpha/many", "h1/alpha/org.example.0",
    ]  # fmt: skip
    status, _, errors = host.run("fleet", "ls", "h2")
    assert (status, "no 'h2' is in the fleet" in errors) == (1, True)


def test_bytes_go_both_ways_exactly(host, open_port):
    data = os.urandom(3_000_000)
    with host.guest(PORT) as guest:
        stream = open_port(PORT)
        for sender, receiver in ((stream, guest), (guest, stream)):
            sending = threading.Thread(target=sender.write, args=(data, 60))
            sending.start()
            assert receiver.readexactly(len(data), 60) == data
            sending.join()


def test_pipe_and_send_take_names_of_the_fleet(host, start_program, folder):
    with host.guest(PORT) as guest:
        pipe = start_program("pipe", f"h1/alpha/{PORT}", environment=host.environment, stdin=-1)
        pipe.stdin.write(b"to the guest\n")
        pipe.stdin.flush()
        assert guest.readline(WAIT) == b"to the guest\n"
        guest.write(b"to the host\n", WAIT)
        assert pipe.stdout.readline() == b"to the host\n"
        pipe.stdin.close()
        assert pipe.wait(WAIT) == 0
        pipe.stdin = None
    (folder / "file").write_bytes(os.urandom(500_000))
    guest = f"unix:{host.folder}/h1.run/virtio-ports/{PORT}"
    receiver = start_program("receive", guest, str(folder / "got"), environment=host.environment)
    status, _, errors = host.run("send", f"h1/alpha/{PORT}", str(folder / "file"))
    assert status == 0, errors
    receiver.wait(WAIT)
    assert (folder / "got" / "file").read_bytes() == (folder / "file").read_bytes()


def test_an_exclusive_port_has_one_session_and_force_takes_it(host, open_port):
    first = open_port(PORT)
    with pytest.raises(ConfigError, match=r"port 'h1/alpha/org.example.0' is busy: .*@.* has it"):
        open_port(PORT)
    with host.guest(PORT) as guest:
        second = open_port(PORT, force=True)
        second.write(b"mine\n", WAIT)
        assert guest.readline(WAIT) == b"mine\n"
        said = []
        wait_until(lambda: said.extend(first.news()) or any("has ended, or another" in line for line in said), WAIT)


def test_a_client_on_the_host_keeps_its_port(host, open_port):
    with HostStream(f"unix:{host.folder}/h1.c0") as local:
        assert local.wait_connected(WAIT)
        wait_until(lambda: host.clients(PORT))
        with pytest.raises(ConfigError, match="is busy: process"):
            open_port(PORT)
    wait_until(lambda: not host.clients(PORT))


def test_a_session_waits_until_the_broker_lets_the_agent_have_the_port(host, open_port):
    asyncio.run(with_client(host, lambda client: client.jetstream().delete_key_value(OWNERS)))
    setup = threading.Timer(
        2, lambda: asyncio.run(with_client(host, lambda client: set_up(client, size=1 << 26, memory=True)))
    )
    setup.start()
    stream = open_port(PORT)
    assert not setup.is_alive()
    with host.guest(PORT) as guest:
        stream.write(b"mine\n", WAIT)
        assert guest.readline(WAIT) == b"mine\n"


def test_a_host_whose_record_has_ended_returns_with_the_next_heartbeat(host, open_port):
    """As after an outage of the broker: records end, and their agents are there."""
    asyncio.run(with_client(host, forget_host))
    with host.guest(PORT) as guest:
        open_port(PORT).write(b"returned\n", WAIT)
        assert guest.readline(WAIT) == b"returned\n"


async def forget_host(client):
    hosts = await client.jetstream().key_value(HOSTS)
    await hosts.delete("h1")


async def with_client(host, act):
    async with await connect(load_settings(str(host.file)), "test", print) as client:
        await act(client)


def test_a_late_reader_gets_what_was_published(host, start_program):
    with host.guest("many") as guest:
        guest.write(bytes(2_000_000), WAIT)
        guest.write(b"before anybody came\n", WAIT)
        time.sleep(PATIENCE)
        console = start_program(
            "console", "--watch", "h1/alpha/many", environment=host.environment, stdin=subprocess.PIPE
        )
        line = console.stdout.readline()
        assert line.endswith(b"\0before anybody came\n")
        assert len(line) <= HISTORY + PIECE
        guest.write(b"and now\n", WAIT)
        assert console.stdout.readline() == b"and now\n"


def test_several_sessions_share_a_port_for_many(host, open_port):
    with host.guest("many") as guest:
        first, second = open_port("many"), open_port("many")
        first.write(b"one\n", WAIT)
        assert guest.readline(WAIT) == b"one\n"
        second.write(b"two\n", WAIT)
        assert guest.readline(WAIT) == b"two\n"
        guest.write(b"to both\n", WAIT)
        assert (first.readline(WAIT), second.readline(WAIT)) == (b"to both\n", b"to both\n")


def test_a_console_has_the_size_of_the_terminal(host, open_port):
    stream = open_port("con0")
    terminal = os.open(os.path.realpath(host.folder / "h1.pty"), os.O_RDWR | os.O_NOCTTY)
    try:
        stream.set_terminal_size(33, 111)
        wait_until(lambda: termios.tcgetwinsize(terminal) == (33, 111), WAIT)
    finally:
        os.close(terminal)


def test_no_such_port_or_host(host, open_port):
    with pytest.raises(ConfigError, match="has no port 'none'"):
        open_port("none")
    status, _, errors = host.run("pipe", "h9/alpha/x")
    assert (status, "no host called 'h9' is in the fleet" in errors, "there is: 'h1'" in errors) == (1, True, True)
    assert "no VM called 'h9' runs here" in errors
    status, _, errors = host.run("pipe", "h1/beta/x")
    assert (status, "host 'h1' has no VM 'beta'" in errors) == (1, True)


def asked(host, *requests):
    """Answers to requests, each (subject, headers, payload); a payload may be a function of the answers so far."""

    async def ask_all():
        client = await connect(load_settings(str(host.file)), "test", print)
        answers = []
        try:
            for subject, headers, payload in requests:
                data = payload(answers) if callable(payload) else payload
                answers.append(document((await client.request(subject, data, timeout=60, headers=headers)).data))
        finally:
            await client.close()
        return answers

    return asyncio.run(ask_all())


def refused(host):
    return Counter(host.listed().hosts()["h1"].refused)


def test_input_goes_in_order_and_once(host):
    name = {SESSION: "s" * 32}
    sent = [(IN, {**name, NUMBER: number}, data) for number, data in [
        ("1", b"a"), ("1", b"a"), ("2", b"b"), ("2", b"b"), ("1", b"a"), ("4", b"d"), ("3", b"c"), ("0", b"z"),
    ]]  # fmt: skip
    with host.guest(PORT) as guest:
        opened, *answers = asked(host, (CTL, name, write({"do": "open", "who": "test"})), *sent)
        assert opened["window"] == 64
        assert [answer.get("done") for answer in answers] == [1, 1, 2, 2, None, None, 3, None]
        assert "number 4 is not the next, 3" in answers[5]["error"]
        assert guest.readexactly(3, WAIT) == b"abc"
        with pytest.raises(TimeoutError):
            guest.read(timeout=0.3)
        asked(host, (CTL, name, write({"do": "close"})))
    wait_until(lambda: not host.clients(PORT))
    wait_until(lambda: refused(host)["out of order"] == 3, WAIT, step=0.5)


WRONG = [
    (IN, {SESSION: "nobody's", NUMBER: "1"}, b"x", "no session"),
    (IN, {SESSION: "nobody's", NUMBER: "1" * 400}, b"x", "garbage"),
    (IN, None, b"x", "garbage"),
    (IN, {SESSION: "nobody's", NUMBER: "-1"}, b"x", "garbage"),
    (CTL, {SESSION: "short"}, b"{}", "garbage"),
    (CTL, {SESSION: "long enough"}, b"{", "garbage"),
    (CTL, {SESSION: "long enough"}, b'{"do": "dance"}', "garbage"),
    (CTL, {SESSION: "long enough"}, b" " * 70_000, "too large"),
    (CTL, {SESSION: "long enough"}, b'{"do": "keep", "taken": 99999999}', "no session"),
    ("vs.h1.alpha.gone.in", {SESSION: "nobody's", NUMBER: "1"}, b"x", "no such port"),
    ("vs.h1.alpha.=2e.in", {SESSION: "nobody's", NUMBER: "1"}, b"x", "garbage"),
    ("vs.h1.beta.restart", {SESSION: "long enough"}, b"{}", "no such port"),
    ("vs.h1.alpha.explode", {SESSION: "long enough"}, b"{}", "garbage"),
    ("vs.h1.alpha.restart", {"Vs-At": "a 1"}, b"{}", "garbage"),
]
"""Requests that make no sense, and what each is counted as."""


def test_what_was_served_is_not_served_again(host):
    """A session that has ended, and an operator's request, each word for word."""
    name = {SESSION: "r" * 32}
    session = [
        (CTL, name, write({"do": "open", "who": "test"})),
        (IN, {**name, NUMBER: "1"}, b"once\n"),
        (CTL, name, write({"do": "close"})),
    ]
    restart = ("vs.h1.alpha.restart", {SESSION: "an operator's"}, b"{}")
    before = refused(host)
    with host.guest(PORT) as guest:
        answers = asked(host, *session, *session, restart, restart)
        assert ["error" in answer for answer in answers] == [False, False, False, True, True, False, False, True]
        assert guest.readline(WAIT) == b"once\n"
        with pytest.raises(TimeoutError):
            guest.read(timeout=0.3)
    wait_until(lambda: (refused(host) - before)["replayed"] == 2, WAIT, step=0.5)


def test_what_is_wrong_is_refused_and_counted(host):
    before = refused(host)
    answers = asked(host, *((subject, headers, payload) for subject, headers, payload, _ in WRONG))
    assert all("error" in answer for answer in answers)
    wait_until(lambda: refused(host) - before == Counter(kind for *_, kind in WRONG), WAIT, step=0.5)


def test_input_that_is_too_large_is_refused(host):
    name = {SESSION: "t" * 32}
    _, answer, _ = asked(
        host, (CTL, name, write({"do": "open", "who": "test"})), (IN, {**name, NUMBER: "1"}, bytes(PIECE + 1)),
        (CTL, name, write({"do": "close"})),
    )  # fmt: skip
    assert answer["error"] == f"{PIECE + 1} bytes: a message has at most {PIECE}"


def test_a_second_host_of_the_name_is_refused(host):
    second = host.join(wait=False)
    assert second.wait(40) == 1
    assert "a host called 'h1' is in the fleet already" in second.stderr.read()
    assert len(host.ports()) == 3


def test_a_device_restarts_over_the_fleet_and_a_session_goes_on(host, open_port):
    with host.guest(PORT) as guest:
        stream = open_port(PORT)
        assert host.run("fleet", "restart", "h1/alpha") == (0, "the device of 'h1/alpha' restarts\n", "")
        for number in range(20):
            stream.write(b"%d\n" % number, WAIT)
            assert guest.readline(WAIT) == b"%d\n" % number
            time.sleep(0.05)


def test_the_web_console_shows_the_fleet_and_has_sessions(host):
    async def use(guest):
        source = FleetSource(load_settings(str(host.file)), print)
        try:
            (machine,) = await source.look()
            assert (machine.name, machine.error) == ("h1/alpha", "")
            assert f"h1/alpha/{PORT}" in [port.name for port in machine.ports]
            connection = await source.open(f"h1/alpha/{PORT}", False, False)
            await connection.write(b"from a browser\n")
            assert await asyncio.to_thread(guest.readline, WAIT) == b"from a browser\n"
            await asyncio.to_thread(guest.write, b"to a browser\n", WAIT)
            assert await connection.read(100) == b"to a browser\n"
            with pytest.raises(BusyError):
                await source.open(f"h1/alpha/{PORT}", False, False)
            with pytest.raises(ConfigError, match="no port is listed as 'h1/alpha/c0'"):
                await source.open("h1/alpha/c0", False, False)
            taken = await source.open(f"h1/alpha/{PORT}", False, True)
            assert await asyncio.wait_for(connection.read(100), WAIT) == b""
            for each in (connection, taken):
                each.close()
            await asyncio.sleep(0.2)
            with pytest.raises(ConfigError, match="no name for a port"):
                await source.plug("h1/alpha", "a/b", False)
        finally:
            await source.end()

    with host.guest(PORT) as guest:
        asyncio.run(use(guest))


def test_the_web_console_shows_the_fleet_after_a_first_look_that_failed(host, monkeypatch):
    async def look_twice():
        source = FleetSource(load_settings(str(host.file)), print)
        try:
            with monkeypatch.context() as patch:
                patch.setattr("virtserial.fleet.directory.ANSWER_TIME", 0)
                (failed,) = await source.look()
            return failed, await source.look()
        finally:
            await source.end()

    failed, after = asyncio.run(look_twice())
    assert (failed.name, "the broker does not show the fleet" in failed.error) == ("fleet", True)
    assert [machine.name for machine in after] == ["h1/alpha"]


def test_a_port_is_plugged_used_and_unplugged_over_the_fleet(host, open_port):
    name = "h1/alpha/org.example.new"
    assert host.run("fleet", "plug", "h1/alpha", "org.example.new") == (0, f"'{name}' is plugged in\n", "")
    wait_until(lambda: "org.example.new" in host.ports(), WAIT, step=0.2)
    with host.guest("org.example.new") as guest:
        open_port("org.example.new").write(b"new\n", WAIT)
        assert guest.readline(WAIT) == b"new\n"
    status, _, errors = host.run("fleet", "plug", "h1/alpha", "org.example.new")
    assert (status, "org.example.new" in errors) == (1, True)
    assert host.run("fleet", "unplug", name) == (0, f"'{name}' is being unplugged\n", "")
    wait_until(lambda: "org.example.new" not in host.ports(), WAIT, step=0.2)
    for wrong in (["plug", "h1/alpha", "a/b"], ["plug", "h1/alpha", "x", "--clients", "65"], ["unplug", "h1/alpha/x"]):
        assert host.run("fleet", *wrong)[0] == 1
    assert host.run("fleet", "plug", "h1", "x")[0] == 2


def test_ls_watch_shows_what_changes(host, start_program):
    wait_until(lambda: not host.ports()[PORT].guest_open, WAIT, step=0.2)
    watching = start_program("fleet", "ls", "--watch", "--json", environment=host.environment)
    first = json.loads(watching.stdout.readline())
    assert not next(p for p in first["vms"]["h1/alpha"]["ports"] if p["name"] == PORT)["guest_open"]
    with host.guest(PORT):
        while True:
            shown = json.loads(watching.stdout.readline())
            if next(p for p in shown["vms"]["h1/alpha"]["ports"] if p["name"] == PORT)["guest_open"]:
                break


def test_a_connection_that_is_reset_ends_no_agent(host):
    status = (Path("/proc") / str(host.agents[0].pid) / "status").read_text()
    ignored = int(re.search(r"SigIgn:\s*(\w+)", status)[1], 16)
    assert ignored >> (signal.SIGPIPE - 1) & 1


def test_without_nats_py_one_line_says_so(host, folder):
    script = (
        "import sys; sys.modules['nats'] = None; from virtserial.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    environment = {**host.environment, "PYTHONPATH": str(ROOT / "src")}
    for words in (["fleet", "ls"], ["console", "h1/alpha"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *words], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        assert "nats-py" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_page_s_commands_work(host, folder):
    page = (ROOT / "docs" / "fleet.md").read_text()
    commands = [line.partition("$ ")[2] for line in page.splitlines() if line.startswith("    desk$ ")]
    assert len(commands) >= 5
    (folder / "report").write_text("x")
    for command in commands:
        words = command.partition("  #")[0].split()
        if words[:2] == ["virtserial", "fleet"]:
            status, _, errors = host.run(*[word for word in words[1:] if word != "--watch"])
            assert status == 0, f"{command}: {errors}"
