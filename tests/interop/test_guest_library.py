"""The guest's library on real ports: waiting, streams, asyncio, hot-plug; and the small programs of both ends."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import statistics
import time

import pytest
from support.guests.exchange import socket_port
from support.guests.guest_library import PLACE, PROGRAM, Program, library_files
from support.guests.host_end import HostEnd
from support.places import SOURCE
from support.rounds import rounds
from support.waiting import wait_until

from virtserial.client import HostStream as Stream
from virtserial.rig import Guest

TALK, OTHER = "org.test.talk", "org.test.other"
SLACK = 0.3
"""Seconds of CPU that a wait of IDLE seconds may cost at most on a loaded machine; a busy loop costs all of them."""
IDLE = rounds(2.0, 4.0)


@pytest.fixture(scope="module")
def guest(host_device, device_folder):
    options = ["-device", "virtio-serial,id=ser0"]
    for number, name in enumerate((TALK, OTHER), 1):
        options += socket_port(number, name, f"{device_folder}/{name}")
    with (
        host_device.attach(options) as attached,
        Guest(
            attached.arguments, smp=2, files=library_files(), qemu_extra=["-device", "virtio-serial,id=spare"]
        ) as guest,
    ):
        wait_until(lambda: guest.run(f"test -e /dev/virtio-ports/{OTHER}").status == 0)
        yield guest


@pytest.fixture
def session(guest):
    with guest.session() as session:
        session(f"import sys; sys.path.insert(0, {PLACE!r}); import virtserial_guest, asyncio, threading")
        session("from virtserial_guest import *")
        yield session


@pytest.fixture
def path(device_folder):
    return f"{device_folder}/{TALK}"


def test_ports_are_listed_with_name_state_and_counters(session, path):
    session(f"port = open_port({TALK!r})")
    host = HostEnd(path)
    session("port.wait_connected(60)")
    session("port.write(b'12345')")
    assert host.receive(5) == b"12345"
    listed = session("[tuple(port) for port in list_ports()]")
    (talk,) = [each for each in listed if each[0] == TALK]
    (other,) = [each for each in listed if each[0] == OTHER]
    assert talk[1:] == (talk[1], talk[2], 1, True, True, 5, 0, 0, False)
    assert talk[1] == f"/dev/vport{talk[2]}p1"
    assert other[3:6] == (2, False, False)
    session("port.close()")
    host.close()


@pytest.mark.parametrize("name", [TALK, f"/dev/virtio-ports/{TALK}"])
def test_port_is_found_by_name_and_by_path(session, name):
    assert session(f"find_port({name!r}).number") == 1


def test_port_that_is_not_there_is_no_port(session):
    session("try: open_port('nobody')\nexcept NoSuchPort as error: found = str(error)")
    assert session("found").startswith("no port is named 'nobody'; there are: ")


def test_second_open_is_busy(session):
    session(f"import errno; port = open_port({TALK!r})")
    session(f"try: open_port({TALK!r})\nexcept OSError as error: code = error.errno")
    assert session("code == errno.EBUSY")
    session("port.close()")


def test_lines_and_blocks_go_both_ways(session, path):
    session(f"port = open_port({TALK!r})")
    host = HostEnd(path)
    host.send(b"one\ntwo\nthree")
    assert session("port.wait_connected(60)")  # until then there is nobody to read from
    assert session("port.readline(20)") == b"one\n"
    assert session("port.read(2, 20)") == b"tw"
    assert session("port.readexactly(4, 20)") == b"o\nth"
    with pytest.raises(Exception, match="TimeoutError"):
        session("port.readexactly(10, 0.05)")
    host.send(b"\n" + bytes(300_000))
    assert session("port.readline(20)") == b"ree\n"
    assert session("len(port.readexactly(300000, 20))") == 300_000
    session.begin("port.write(bytes(range(256)) * 4096, 60)")
    assert host.receive(1 << 20) == bytes(range(256)) * 4096
    session.finish()
    host.shut()
    assert session("port.read(10, 20)") == b""
    assert session("port.wait_disconnected(20)") is True
    session("try: port.write(b'lost')\nexcept PeerAway as error: written = error.written")
    assert session("written") == 0
    session("port.close()")
    host.close()


IDLE_WAIT = f"""
def cpu():
    used = os.times()
    return used.user + used.system

def idle_blocking():
    before = cpu()
    arrived = port.wait_connected({IDLE})
    return arrived, cpu() - before

def idle_asyncio():
    async def wait():
        async with AsyncStream(port) as stream:
            before = cpu()
            try:
                await asyncio.wait_for(stream.wait_connected(), {IDLE})
            except asyncio.TimeoutError:
                return False, cpu() - before
            return True, 0.0
    return asyncio.run(wait())
"""


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_waiting_for_the_host_costs_no_cpu(session, kind, record_property):
    # A connection that came and went leaves the port readable and hung up, which is what busy loops are made of.
    session(f"port = open_port({TALK!r})")
    session(IDLE_WAIT)
    arrived, seconds = session(f"idle_{kind}()")
    record_property("cpu_seconds", seconds)
    print(f"{kind}: {seconds} s of CPU in {IDLE} s")
    assert not arrived
    assert seconds < SLACK
    session("port.close()")


def test_guest_reacts_to_a_connect_at_once(session, path, record_property):
    session(f"port = open_port({TALK!r})")
    session("""
def greet():
    port.wait_connected(60)
    port.write(b'!', 60)
    port.wait_disconnected(60)
""")
    times = []
    for _ in range(15):
        session.begin("greet()")
        host = HostEnd(path)
        begun = time.monotonic()
        assert host.receive(1) == b"!"
        times.append(time.monotonic() - begun)
        host.shut()
        host.close()
        # The guest is told of the end before the next connection, or it would see one that never ended.
        session.finish()
    median = statistics.median(times)
    record_property("median_ms", round(median * 1000, 1))
    print(f"from connect() to the guest's first byte: median {median * 1000:.1f} ms, {max(times) * 1000:.1f} at most")
    assert median < 1.0
    session("port.close()")


ECHO = """
async def echo(port, mark):
    told = []
    async with AsyncStream(port) as stream:
        async def watch():
            async for connected in stream.connections():
                told.append(connected)
        watching = asyncio.ensure_future(watch())
        for number in range(2):
            await stream.wait_connected()
            while data := await stream.read():
                await stream.write(data)
            await stream.wait_disconnected()
            open(mark + str(number), 'w').close()
        await asyncio.sleep(0.2)
        watching.cancel()
    return told
"""


def test_asyncio_stream_echoes_with_back_pressure_and_tells_of_connections(guest, session, path):
    session(f"port = open_port({TALK!r})")
    session(ECHO)
    guest.check("rm -f /tmp/ended*")
    session.begin("asyncio.run(echo(port, '/tmp/ended'))")
    for number in range(2):
        host = HostEnd(path)
        # Much more is sent than the guest may keep: it must not read on while it cannot write.
        block = os.urandom(1 << 16)
        for _ in range(16):
            host.send(block)
            assert host.receive(1 << 16) == block
        host.shut()
        host.close()
        # The guest is told of the end before the next connection, or it would see one that never ended.
        guest.check(f"for n in $(seq 1200); do [ -e /tmp/ended{number} ] && exit; sleep 0.05; done; exit 1")
    told = session.finish()
    assert told[-4:] == [True, False, True, False]


def test_port_that_is_plugged_and_unplugged(guest, session):
    session.begin("wait_for_port('org.test.late', 60).name")
    time.sleep(0.5)
    guest.qmp("device_add", driver="virtserialport", bus="spare.0", id="late", name="org.test.late")
    assert session.finish() == "org.test.late"
    session("late = open_port('org.test.late')")
    session.begin("late.wait_connected(60)")
    guest.qmp("device_del", id="late")
    with pytest.raises(Exception, match="PortRemoved"):
        session.finish()
    session("late.close()")


def test_log_lines_survive_the_host_s_absence(guest, path, tmp_path):
    job = guest.start(f"{PROGRAM} log {TALK}")
    job.send(b"first\nsecond\n")
    log = tmp_path / "log"
    with Program("log", f"unix:{path}", "--to", str(log)):
        wait_until(lambda: log.exists() and log.read_bytes() == b"first\nsecond\n")
    job.send(b"".join(b"away %d\n" % number for number in range(2000)))
    job.send(b"last, without an end")
    job.send(b"")
    with Program("log", f"unix:{path}", "--to", str(log), "--once") as collector:
        assert collector.wait() == (0, "", "")
    assert job.wait().status == 0
    # The first collector was killed, perhaps before it could say what it had written: that comes twice then.
    assert list(dict.fromkeys(log.read_bytes().splitlines())) == [
        b"first", b"second", *(b"away %d" % number for number in range(2000)), b"last, without an end"
    ]  # fmt: skip


def test_spool_that_is_full_drops_the_oldest_lines_and_both_ends_say_so(guest, path):
    job = guest.start(f"{PROGRAM} log {TALK} --spool 1k")
    job.send(b"".join(b"line %05d of many\n" % number for number in range(1000)))
    job.send(b"")
    with Program("log", f"unix:{path}", "--once") as collector:
        status, output, errors = collector.wait()
    lines = output.splitlines()
    result = job.wait()
    assert lines[-1] == "line 00999 of many"
    assert len(lines) < 1000
    assert status == 0
    # Said whenever some are found to be missing: the sender may still be reading when the collector comes.
    missing = [line.partition(" ") for line in errors.splitlines()]
    assert {rest for _, _, rest in missing} == {"lines are missing: the spool was full"}
    assert sum(int(count) for count, _, _ in missing) == 1000 - len(lines)
    assert (result.status, result.text) == (1, f"{1000 - len(lines)} lines were dropped: the spool was full\n")


def test_example_of_an_agent_answers_and_survives_the_host(guest, path):
    guest.write_file("/tmp/agent.py", (SOURCE.parent / "examples" / "guest_agent.py").read_bytes())
    job = guest.start(f"exec env PYTHONPATH={PLACE} python3 /tmp/agent.py {TALK}")
    requests = [
        ({"do": "run", "words": ["echo", "hello"]}, {"ok": True, "status": 0, "output": "hello\n"}),
        ({"do": "read", "path": "/etc/passwd"}, {"ok": True, "text": guest.read_file("/etc/passwd").decode()}),
        ({"do": "nothing"}, {"ok": False, "error": "KeyError: 'nothing'"}),
        (["no request"], None),
    ]
    for _ in range(2):
        with Stream(f"unix:{path}") as host:
            assert host.wait_connected(60)
            for request, answer in requests:
                host.write(json.dumps(request).encode() + b"\n", 20)
                told = json.loads(host.readline(30))
                assert told == answer or (answer is None and not told["ok"])
            # It does not wait for this answer.
            host.write(b'{"do": "ping"}\n')
        time.sleep(0.2)
    job.signal(15)
    job.wait()


def test_console_joins_a_terminal_and_a_shell_in_the_guest(guest, path):
    job = guest.start(f"exec env {PROGRAM} console {TALK} --exec sh")
    master, terminal = pty.openpty()
    with Program("console", f"unix:{path}", stdin=terminal, stdout=terminal) as console:
        os.close(terminal)
        os.set_blocking(master, False)
        seen = bytearray()

        def shows(text):
            with contextlib.suppress(BlockingIOError):
                seen.extend(os.read(master, 65536))
            return text in seen

        wait_until(lambda: shows(b"# "), 60, "no prompt came")
        os.write(master, b"echo $((6 * 7)) on $(tty)\r")
        wait_until(lambda: shows(b"42 on /dev/pts/"), 60, "the shell does not answer")
        os.write(master, b"\x1dr")
        wait_until(lambda: shows(b"stty rows 24 cols 80"), 60, "the size was not told")
        os.write(master, b"\x1dq")
        assert console.wait(30)[0] == 0
    os.close(master)
    job.signal(15)
    job.wait()


def test_ports_of_a_monitor_and_of_a_guest(guest, host_device, path):
    with Stream(f"unix:{path}") as stream:
        assert stream.wait_connected(60)
        # The guest learns of a connection when it gets round to it.
        wait_until(lambda: "connected" in guest.check(f"{PROGRAM} ports | grep {TALK}"))
    text = guest.check(f"{PROGRAM} ports")
    assert text.splitlines()[0].split() == ["PORT", "NAME", "HOST", "GUEST", "SENT", "RECEIVED", "DISCARDED"]
    assert {TALK, OTHER} <= set(text.split())
