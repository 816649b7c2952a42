"""The log of the device process: as JSON, into a file, to journald; of both processes, before and after restarts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.device_process import connect
from support.places import ENVIRONMENT
from support.programs import run
from support.serving import serve
from support.waiting import wait_until

from virtserial import logs


def machine(folder, *more):
    return ["--name", "alpha", "-device", f"virtio-serial,id=ser0,socket={folder}/s", *more]


def worker_of(process):
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def kill_worker(process):
    """Kill a worker; return it when another one is there."""
    killed = worker_of(process)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: _try_worker(process) not in (0, killed))
    return killed


def _try_worker(process):
    try:
        return worker_of(process)
    except IndexError:
        return 0


def restart(registry):
    assert run("restart", "alpha", VIRTSERIAL_REGISTRY=str(registry))[0] == 0


def break_a_rule(folder):
    """Let a worker log a line: of a client that speaks no vfio-user."""
    with connect(folder / "s") as client:
        client.sendall(b"x" * 100)
        client.settimeout(60)
        while client.recv(100):
            pass


def test_json_is_a_value_a_line_of_both_processes_before_and_after_a_restart(folder):
    registry = folder / "vms"
    log = folder / "log"
    with serve(*machine(folder, "--log-format", "json", "-v", "-D", str(log)), registry=registry) as process:
        killed = kill_worker(process)
        break_a_rule(folder)
        wait_until(lambda: "virtserial.device" in log.read_text())
        restart(registry)
        before = len(log.read_text().splitlines())
        break_a_rule(folder)
        wait_until(lambda: "virtserial.device" in "".join(log.read_text().splitlines()[before:]))
        keeper = process.pid
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    [death] = [line for line in lines if f"worker {killed} was killed by SIGKILL" in line["message"]]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", death.pop("time"))
    assert {**death, "message": ""} == {
        "level": "error", "logger": "virtserial.keeper", "pid": keeper, "vm": "alpha", "message": ""
    }  # fmt: skip
    workers = {line["pid"] for line in lines if line["logger"] == "virtserial.device"}
    assert len(workers) == 2
    assert keeper not in workers
    assert killed not in workers


def test_a_file_takes_what_standard_error_would_have_and_is_appended_to(folder):
    log = folder / "log"
    log.write_text("before\n")
    for _ in range(2):
        with serve(*machine(folder, "-D", str(log))) as process:
            killed = kill_worker(process)
            wait_until(lambda killed=killed: f"worker {killed}" in log.read_text())
        assert process.stderr.closed
    lines = log.read_text().splitlines()
    assert lines[0] == "before"
    assert len(lines) == 3
    assert re.fullmatch(r"[\d -]+:\d\d:\d\d,\d+ \d+ ERROR virtserial\.keeper: worker \d+ was killed .*", lines[1])


@pytest.mark.parametrize("is_file", [True, False])
def test_a_reader_that_stops_costs_lines_and_holds_nobody_up(folder, is_file):
    """A FIFO as the file, or a pipe as standard error."""
    os.mkfifo(folder / "fifo")
    reader = os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with serve(*machine(folder, *(["-D", f"{folder}/fifo"] if is_file else []))) as process:
        if not is_file:
            os.dup2(process.stderr.fileno(), reader)
        fill(f"/proc/self/fd/{reader}")
        break_a_rule(folder)
        kill_worker(process)
        break_a_rule(folder)
        assert not read_all(reader).strip(b"x")
        wait_until(lambda: break_a_rule(folder) or b"took no more: " in read_all(reader))
    os.close(reader)


def fill(pipe):
    fd = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, b"x")
    os.close(fd)


def read_all(pipe):
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        return os.read(pipe, 1 << 20)
    return b""


def test_a_reader_s_pipe_ends_when_it_is_let_go_and_a_file_is_kept(folder):
    lives_on = "from virtserial import standard_error as s; s.release(); s.write('after'); input()"
    with open(folder / "log", "w+") as log:
        words = [sys.executable, "-c", lives_on]
        pipe = subprocess.Popen(words, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.PIPE)
        file = subprocess.Popen(words, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        for process, stream in ((pipe, pipe.stderr), (file, file.stdout)):
            assert stream.read() == b""
            assert process.poll() is None
            process.communicate(b"\n", timeout=60)
            assert process.returncode == 0
    assert (folder / "log").read_text() == "after"


def test_an_operator_s_mistake_is_said_at_the_terminal_all_the_same(folder):
    status, output, errors = run("serve", *machine(folder, "-device", "nonsense", "-D", f"{folder}/log"))
    assert (status, output) == (2, "")
    assert errors.startswith("virtserial: -device nonsense: ")
    assert (folder / "log").read_text() == ""


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["-D", "/nowhere/log"], 1, "-D /nowhere/log: No such file or directory"),
        (["-D"], 2, "-D: requires an argument"),
        (["--log-format", "xml"], 2, "--log-format xml: one of text, json"),
    ],
)
def test_a_wrong_option_is_one_line(folder, words, status, said):
    assert run("serve", *machine(folder, *words))[::2] == (status, run_said(said, status))


def run_said(said, status):
    hint = "virtserial: `virtserial serve --help` lists the options\n" if status == 2 else ""
    return f"virtserial: {said}\n{hint}"


class Journald:
    """A journald: a socket, and a stream for standard error."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(60)

    def entry(self):
        """The fields of the next datagram."""
        data, fields = self.socket.recv(1 << 20), {}
        while data:
            line, _, data = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if not equals:
                size = int.from_bytes(data[:8], "little")
                value, data = data[8 : 8 + size], data[9 + size :]
            fields[name.decode()] = value.decode()
        return fields

    def close(self):
        self.socket.close()


@pytest.fixture
def journald(folder, monkeypatch):
    monkeypatch.setattr(logs, "JOURNAL", str(folder / "journal"))
    journald = Journald(folder / "journal")
    yield journald
    journald.close()


@pytest.fixture
def handler(journald):
    handler = logs.JournalHandler("journal alpha", "alpha")
    yield handler
    if handler._socket is not None:
        handler._socket.close()


def record(message, level=40, exc_info=None):
    return logs.logging.LogRecord("virtserial.x", level, "/file.py", 7, message, (), exc_info, "function")


def test_an_entry_has_its_fields_and_lines(handler, journald):
    try:
        raise ValueError("why")
    except ValueError:
        handler.emit(record("one\ntwo", 30, sys.exc_info()))
    entry = journald.entry()
    assert entry.pop("VIRTSERIAL_TRACEBACK").endswith("ValueError: why")
    assert entry == {
        "MESSAGE": "one\ntwo", "PRIORITY": "4", "SYSLOG_IDENTIFIER": "virtserial", "VIRTSERIAL_VM": "alpha",
        "VIRTSERIAL_LOGGER": "virtserial.x", "CODE_FILE": "/file.py", "CODE_LINE": "7", "CODE_FUNC": "function",
    }  # fmt: skip


@pytest.mark.parametrize(("level", "priority"), [(10, "7"), (20, "6"), (30, "4"), (40, "3"), (50, "2"), (45, "3")])
def test_levels_are_priorities(handler, journald, level, priority):
    handler.emit(record("x", level))
    assert journald.entry()["PRIORITY"] == priority


def test_a_journald_that_does_not_read_costs_lines_and_no_time(handler, journald):
    for number in range(5000):
        handler.emit(record(f"{number} {'x' * 100_000}"))
    lost = handler._lost
    assert lost > 0
    for _ in range(5000 - lost):
        assert len(journald.entry()["MESSAGE"]) == logs.MAX_MESSAGE
    handler.emit(record("again"))
    assert journald.entry()["VIRTSERIAL_LOST"] == str(lost)
    assert handler._lost == 0


def test_without_a_journald_lines_go_to_standard_error_with_a_priority(handler, journald, capfd):
    journald.close()
    handler.emit(record("one\ntwo"))
    assert capfd.readouterr().err == "<3>one two\n"


def test_only_what_systemd_says_is_the_journal_s_stream():
    status = os.fstat(2)
    assert logs.is_journal(f"{status.st_dev}:{status.st_ino}")
    assert not logs.is_journal("1:2")
    assert not logs.is_journal("")


JOURNALD = "/usr/lib/systemd/systemd-journald"
SCRIPT = """
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal /run/log/journal || exit 77
{journald} & daemon=$!
for _ in $(seq 600); do [ -S /run/systemd/journal/stdout ] && break; sleep 0.1; done
# As systemd starts a service: with its standard error, and the name of that.
systemd-cat --identifier=other sh -c 'JOURNAL_STREAM=$(stat -L -c %d:%i /dev/stderr) exec "$@"' sh \\
    {python} -m virtserial serve {words} & device=$!
for _ in $(seq 600); do virtserial health && break; sleep 0.1; done
kill -9 $(cat /proc/$device/task/$device/children)
virtserial health --wait 60
printf "%100s" x | virtserial pipe unix:{folder}/s > {folder}/out 2>&1
{python} -m virtserial restart alpha
printf "%100s" x | virtserial pipe unix:{folder}/s > {folder}/out 2>&1
sleep 1
kill $device; wait $device
journalctl --sync; journalctl --output=json SYSLOG_IDENTIFIER=virtserial > {folder}/entries
kill $daemon
"""


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists(JOURNALD), reason="no systemd-journald that we may run")
def test_a_real_journald_has_the_fields_of_both_processes(folder):
    (folder / "bin").mkdir()
    program = folder / "bin" / "virtserial"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m virtserial "$@"\n')
    program.chmod(0o755)
    script = SCRIPT.format(
        journald=JOURNALD, python=sys.executable, words=" ".join(machine(folder)), folder=folder
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=200,
        env={
            **ENVIRONMENT, "PATH": f"{folder}/bin:{ENVIRONMENT['PATH']}", "VIRTSERIAL_REGISTRY": f"{folder}/vms",
            "PYTHONUNBUFFERED": "1",
        },
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("no mount namespace here")
    entries = [json.loads(line) for line in (folder / "entries").read_text().splitlines()]
    assert entries, done.stderr
    assert {entry["VIRTSERIAL_VM"] for entry in entries} == {"alpha"}
    [death] = [entry for entry in entries if "was killed by SIGKILL" in entry["MESSAGE"]]
    assert (death["PRIORITY"], death["VIRTSERIAL_LOGGER"]) == ("3", "virtserial.keeper")
    devices = [entry for entry in entries if entry["VIRTSERIAL_LOGGER"] == "virtserial.device"]
    assert len({entry["_PID"] for entry in devices}) == 2, "of a worker that was forked, and of one that was spawned"
