"""The guest's programs by their words, and on the oldest Python there is to be had."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest
from support.old_python import python39
from support.places import ENVIRONMENT as OURS
from support.places import ROOT

from virtserial.guest import __version__
from virtserial.guest.__main__ import COMMANDS
from virtserial.guest.files.report import Reporter, amount, duration
from virtserial.guest.files.sender import Progress
from virtserial.guest.files.source import Total
from virtserial.guest.terminal import EscapeKeys, parse_escape
from virtserial.guest.words import size as _size
from virtserial.rig import RigUnavailable

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "guest")}


def run(*words, command=(sys.executable,), more=()):
    result = subprocess.run(
        [*command, "-m", "virtserial_guest", *words], env={**ENVIRONMENT, **dict(more)}, capture_output=True,
        text=True, timeout=30, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return result.returncode, result.stdout, result.stderr


def test_help_names_every_command():
    status, output, errors = run("--help")
    assert (status, errors) == (0, "")
    assert [line.split()[0] for line in output.splitlines() if line.startswith("  ")] == list(COMMANDS)
    assert run() == (2, output, "")


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_a_help(command):
    status, output, errors = run(command, "--help")
    assert (status, errors) == (0, "")
    assert output.startswith(f"usage: virtserial-guest {command}")


def test_version_and_wrong_words():
    assert run("--version") == (0, f"virtserial-guest {__version__}\n", "")
    assert run("sent") == (2, "", "virtserial-guest: 'sent' is not a command; did you mean 'send'?\n")
    assert run("xyz") == (2, "", "virtserial-guest: 'xyz' is not a command; --help lists them\n")
    assert run("receive", "no.such.port", "/tmp") == (
        1, "", "virtserial-guest receive: no port is named 'no.such.port': this guest has no virtio-serial port\n"
    )  # fmt: skip


def test_what_is_typed_while_a_console_starts_reaches_the_port(tmp_path):
    ours, terminal = os.openpty()
    with socket.socket(socket.AF_UNIX) as port:
        port.bind(f"{tmp_path}/port")
        port.listen()
        port.settimeout(60)
        os.write(ours, b"early\n")
        command = [sys.executable, "-m", "virtserial", "console", f"unix:{tmp_path}/port"]
        with subprocess.Popen(command, env=OURS, stdin=terminal, stdout=subprocess.DEVNULL) as console:
            try:
                client, _ = port.accept()
                with client:
                    client.settimeout(60)
                    assert client.recv(100) == b"early\n"
                    os.write(ours, b"\x1dq")
                    assert console.wait(60) == 0
            finally:
                console.kill()
    os.close(ours)
    os.close(terminal)


def test_ports_for_programs_and_scripts():
    assert run("ports", "--json") == (0, "[]\n", "")
    assert run("ports", "--names") == (0, "", "")


def test_library_needs_nothing_but_the_standard_library_and_loads_no_asyncio():
    program = "import sys, virtserial_guest; print(sorted({'asyncio', 'ctypes', 'argparse'} & set(sys.modules)))"
    program = f"import sys; sys.path.insert(0, {str(ROOT / 'guest')!r})\n{program}"
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.fixture(scope="module")
def oldest():
    try:
        command, environment = python39()
    except RigUnavailable as reason:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no Python 3.9: {reason}")
    return {"command": command, "more": environment.items()}


TRANSFER = """
import sys
import virtserial_guest, virtserial_guest.__main__, virtserial_guest.aio
from virtserial_guest.stream import EpollStream
from virtserial_guest import programs
import socket

class End(EpollStream):
    connected = True
    def __init__(self, path):
        super().__init__()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.setblocking(False)
        self._epoll.register(self.socket, self.EDGES)
    def receive(self, limit=65536):
        try:
            data = self.socket.recv(limit)
        except BlockingIOError:
            return None
        self.connected = bool(data)
        return data
    def send(self, buffers):
        try:
            return self.socket.sendmsg(buffers[:64])
        except BlockingIOError:
            return 0

assert sys.version_info[:2] == (3, 9), sys.version
sys.exit(programs.run("t", lambda: getattr(programs, sys.argv[1])(
    "t", sys.argv[2:], lambda parser: parser.add_argument("port"), lambda options: End(options.port))))
"""


def test_python_3_9_sends_and_receives(oldest, folder, tmp_path, dice):
    """Both ends are Python 3.9, with a tree that has some of everything."""
    tree = tmp_path / "tree"
    (tree / "in").mkdir(parents=True)
    (tree / "in" / "large").write_bytes(dice(1 << 20))
    (tree / "link").symlink_to("in/large")
    listeners = []
    for name in ("a", "b"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{folder}/{name}")
        listener.listen()
        listener.settimeout(30)
        listeners.append(listener)

    def relay():
        ends = [listener.accept()[0] for listener in listeners]

        def copy(one, other):
            while data := one.recv(1 << 16):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

        other_way = threading.Thread(target=copy, args=(ends[1], ends[0]))
        other_way.start()
        copy(*ends)
        other_way.join(30)
        for end in [*ends, *listeners]:
            end.close()

    thread = threading.Thread(target=relay)
    thread.start()
    environment = {**ENVIRONMENT, **dict(oldest["more"])}
    sides = [
        subprocess.Popen(
            [*oldest["command"], "-c", TRANSFER, *words], env=environment, stderr=subprocess.PIPE, text=True
        )
        for words in (["send", f"{folder}/a", f"{tree}/"], ["receive", f"{folder}/b", f"{tmp_path}/to"])
    ]
    told = [side.communicate(timeout=60)[1] for side in sides]
    thread.join(30)
    assert [side.returncode for side in sides] == [0, 0], told
    assert (tmp_path / "to" / "in" / "large").read_bytes() == (tree / "in" / "large").read_bytes()
    assert os.readlink(tmp_path / "to" / "link") == "in/large"


@pytest.mark.parametrize("command", list(COMMANDS))
def test_python_3_9_knows_the_words(oldest, command):
    status, output, errors = run(command, "--help", **oldest)
    assert (status, errors) == (0, "")
    assert output.startswith("usage: ")


@pytest.mark.parametrize(
    ("typed", "sent", "commands"),
    [
        ([b"ls\r"], b"ls\r", []),
        ([b"a\x1dq"], b"a", ["q"]),
        ([b"\x1d", b"Q"], b"", ["q"]),
        ([b"\x1d\x1d"], b"\x1d", []),
        ([b"\x1dsx"], b"\x1dx", []),
        ([b"\x1dr\x1d?\x1dx"], b"", ["r", "?", "?"]),
    ],
)
def test_escape_key(typed, sent, commands):
    keys = EscapeKeys()
    taken = [keys.take(piece) for piece in typed]
    assert b"".join(data for data, _ in taken) == sent
    assert [command for _, found in taken for command in found] == commands


@pytest.mark.parametrize(("text", "key"), [("^]", 0x1D), ("^a", 1), ("^A", 1), ("~", 0x7E), ("^?", 0x7F), ("^", 0x5E)])
def test_keys_are_written_with_a_caret(text, key):
    assert parse_escape(text) == key


@pytest.mark.parametrize("text", ["", "ab", "^ö", "ö", "^^^"])
def test_what_is_no_key(text):
    with pytest.raises(ValueError, match="is no key"):
        parse_escape(text)


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("10", 10), ("2k", 2048), ("3M", 3 << 20), ("1G", 1 << 30)])
def test_sizes(text, size):
    assert _size(text) == size


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB")])
def test_amounts(size, text):
    assert amount(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3723, "1:02:03"), (1e12, "99:59:59")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_progress_is_a_bar_with_the_rate_since_the_first_byte():
    now = [100.0]
    reporter = Reporter("sent", "the guest", quiet=False, show_progress=True, clock=lambda: now[0])
    reporter.total = Total(2, 100 << 20)
    now[0] += 50  # of waiting, which is not in the rate
    reporter.session(True)
    assert reporter.line(Progress(0, 10 << 20, b"a"), now[0]) == (
        "[##------------------]  10%  10.0 MiB of 100.0 MiB  file 1 of 2  -  a"
    )
    now[0] += 4
    assert reporter.line(Progress(1, 50 << 20, b"b"), now[0]) == (
        "[##########----------]  50%  50.0 MiB of 100.0 MiB  file 2 of 2  10.0 MiB/s  0:05 left  b"
    )
    # At its end a file counts for nothing until the other end has confirmed it.
    assert "50%" in reporter.line(Progress(1, 10 << 20, b"b"), now[0])


def test_the_summary_does_not_count_the_wait(capsys):
    now = [0.0]
    reporter = Reporter("sent", "the guest", quiet=False, show_progress=False, clock=lambda: now[0])
    now[0] += 50
    reporter.session(True)
    now[0] += 2
    reporter.finish(Progress(1, 10 << 20, b"a"))
    assert capsys.readouterr().err == "sent 1 file, 10.0 MiB in 2.0 s\n"


def test_progress_says_whom_it_waits_for(capsys):
    now = [0.0]
    reporter = Reporter("sent", "the guest", quiet=False, show_progress=True, clock=lambda: now[0])
    now[0] += 1
    reporter.show(Progress(0, 0, b""))
    assert "waiting for the guest" in capsys.readouterr().err


def test_a_long_wait_is_told_once_where_no_bar_is(capsys):
    now = [0.0]
    reporter = Reporter("sent", "the guest", quiet=False, show_progress=False, clock=lambda: now[0])
    told = []
    for _ in range(3):
        reporter.show(Progress(0, 0, b""))
        told.append(capsys.readouterr().err)
        now[0] += reporter.interval
    assert told == ["", "waiting for the guest\n", ""]
