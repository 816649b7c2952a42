"""`virtserial console`, `record` and `replay` on ports by name, in terminals of their own; no VM."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from types import SimpleNamespace

import pytest
from support.client_machine import running
from support.places import ENVIRONMENT
from support.waiting import wait_for_socket, wait_until

from virtserial.client import HostStream
from virtserial.client.names import find_vm_port
from virtserial.client.registry import find_vm
from virtserial.monitor.qmp import QmpError

PORT = "alpha/org.example.0"
WAIT = 60


@pytest.fixture
def machine(folder, monkeypatch):
    """A device with a port, and the user-space driver that shows its guest's end as a socket."""
    monkeypatch.setitem(ENVIRONMENT, "VIRTSERIAL_REGISTRY", f"{folder}/vms")
    monkeypatch.setenv("VIRTSERIAL_REGISTRY", f"{folder}/vms")
    device = ("--name", "alpha", "-device", f"virtio-serial,id=ser0,socket={folder}/device")
    ports = (
        *("-chardev", f"socket,id=c0,path={folder}/host,server=on,wait=off"),
        *("-device", "virtserialport,id=port0,chardev=c0,name=org.example.0"),
        *("-chardev", f"socket,id=c1,path={folder}/console,server=on,wait=off"),
        *("-device", "virtconsole,id=console0,chardev=c1"),
    )
    with (
        running("serve", *device, *ports) as device_process,
        running("guest", "attach", f"{folder}/device", "--as", "socket", "--run-dir", f"{folder}/run"),
    ):
        wait_until(lambda: (folder / "run/virtio-ports/org.example.0").exists())
        guest = f"unix:{folder}/run/virtio-ports/org.example.0"
        yield SimpleNamespace(guest=guest, folder=folder, process=device_process)


class Terminal:
    """A command on a terminal of 30 rows and 100 columns, as a person has it."""

    def __init__(self, *words):
        self.fd, child = pty.openpty()
        self.resize(30, 100)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "virtserial", *words], stdin=child, stdout=child, stderr=child,
            env=ENVIRONMENT, start_new_session=True,
        )  # fmt: skip
        os.close(child)
        self.shown = b""

    def resize(self, rows, columns):
        ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, data):
        os.write(self.fd, data)

    def expect(self, wanted, seconds=WAIT):
        deadline = time.monotonic() + seconds
        while wanted not in self.shown:
            assert select.select([self.fd], [], [], max(deadline - time.monotonic(), 0))[0], self.shown
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                data = b""
            assert data, self.shown
            self.shown += data
        self.shown = self.shown.partition(wanted)[2]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


def program(*words, **more):
    command = [sys.executable, "-m", "virtserial", *words]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, **more)


def test_a_console_by_name_says_when_the_guest_comes_and_goes(machine):
    with Terminal("console", PORT) as terminal:
        terminal.expect(b"Ctrl-] and q leave")
        with HostStream(machine.guest) as guest:
            terminal.expect(b"[virtserial: the guest has opened the port]")
            guest.write(b"login: ")
            terminal.expect(b"login: ")
            terminal.type(b"root\r")
            assert guest.readexactly(5, WAIT) == b"root\r"
        terminal.expect(b"[virtserial: the guest has closed the port]")
        terminal.type(b"\x1dq")
        assert terminal.process.wait(WAIT) == 0


def test_a_console_by_name_outlives_the_device(machine):
    with Terminal("console", PORT) as terminal:
        terminal.expect(b"Ctrl-] and q leave")
        with HostStream(machine.guest):
            terminal.expect(b"[virtserial: the guest has opened the port]")  # It has a connection to the monitor.
            machine.process.terminate()
            terminal.expect(b"[virtserial: the other end is away; waiting for it]")
            with pytest.raises(subprocess.TimeoutExpired):
                terminal.process.wait(2)
        terminal.type(b"\x1dq")
        assert terminal.process.wait(WAIT) == 0


def test_busy_is_said_and_force_takes_the_port(machine):
    with Terminal("console", PORT) as first:
        wait_until(lambda: find_vm_port(PORT).clients)
        refused = program("console", PORT, stdin=subprocess.DEVNULL)
        assert refused.returncode == 1
        first_line, second_line = refused.stderr.splitlines()
        assert first_line.startswith(f"virtserial: port '{PORT}' is busy: process {first.process.pid} (")
        assert first_line.endswith(") uses it, and it serves one client at a time")
        assert second_line == (
            "virtserial: `virtserial console --force` takes it away from that client; "
            "a -chardev with clients=N serves several, and with watch=PATH others look on"
        )
        with Terminal("console", PORT, "--force") as second:
            first.expect(b"another client has the port; waiting for it")
            wait_until(lambda: find_vm_port(PORT).client_pid == second.process.pid)
            second.type(b"\x1dq")
            assert second.process.wait(WAIT) == 0
        first.expect(b"the port is ours")


@pytest.mark.parametrize("words", [("send", PORT, "/dev/null"), ("log", PORT), ("pipe", PORT)])
def test_other_commands_say_that_a_port_is_busy_too(machine, words):
    with Terminal("console", PORT):
        wait_until(lambda: find_vm_port(PORT).clients)
        done = program(*words, stdin=subprocess.DEVNULL)
    assert (done.returncode, f"port '{PORT}' is busy: process" in done.stderr) == (1, True)


def test_force_needs_a_name(machine):
    done = program("console", f"unix:{machine.folder}/host", "--force", stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr.count("--force needs the port's name")) == (1, 1)


def test_input_that_ends_before_anybody_is_there_is_no_success(machine):
    done = program("console", f"unix:{machine.folder}/nobody", stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (
        1, f"virtserial console: unix:{machine.folder}/nobody: nobody was at the other end before the input ended\n",
    )  # fmt: skip
    done = program("console", PORT, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_port_of_several_clients_is_busy_when_it_is_full_and_others_look_on(machine):
    folder = machine.folder
    options = (
        *("--name", "many", "-device", f"virtio-serial,socket={folder}/many"),
        *("-chardev", f"socket,id=c0,path={folder}/m0,server=on,wait=off,clients=2,watch={folder}/look"),
        *("-device", "virtserialport,chardev=c0,name=shared"),
    )
    with running("serve", *options), contextlib.ExitStack() as stack:
        for number in (1, 2):
            stack.enter_context(Terminal("console", "many/shared"))
            wait_until(lambda number=number: find_vm_port("many/shared").clients == number, WAIT)
        refused = program("console", "many", stdin=subprocess.DEVNULL)
        assert (refused.returncode, "and it serves 2 clients at a time" in refused.stderr) == (1, True)
        watcher = stack.enter_context(Terminal("console", "many", "--watch"))
        watcher.expect(b"Ctrl-] and q leave")
        assert find_vm_port("many").watch == f"{folder}/look"


def test_a_watcher_types_nothing(machine):
    with HostStream(machine.guest) as guest, Terminal("console", PORT, "--watch") as terminal:
        assert guest.wait_connected(WAIT)
        guest.write(b"seen")
        terminal.expect(b"seen")
        terminal.type(b"unheard")
        with pytest.raises(TimeoutError):
            guest.read(timeout=1)


def test_a_console_takes_a_size_and_nothing_else_does(machine):
    """What the device would tell the driver: tests/interop/test_console_size.py asks a real guest."""
    with find_vm("alpha").connect() as monitor:
        assert monitor.execute("x-virtserial-resize", {"id": "c1", "cols": 77, "rows": 11}) == {}
        for wrong in ({"id": "c0", "cols": 1, "rows": 1}, {"id": "c1", "cols": 0, "rows": 1}):
            with pytest.raises(QmpError):
                monitor.execute("x-virtserial-resize", wrong)


def test_a_console_is_recorded(machine):
    path = machine.folder / "rec.cast"
    with HostStream(machine.guest) as guest, Terminal("console", PORT, "--record", str(path)) as terminal:
        assert guest.wait_connected(WAIT)
        guest.write("grüß\r\n".encode())
        terminal.expect("grüß".encode())
        terminal.type(b"x")
        assert guest.readexactly(1, WAIT) == b"x"
        terminal.resize(40, 120)
        terminal.process.send_signal(signal.SIGWINCH)  # It is not the process's controlling terminal.
        wait_until(lambda: b'"120x40"' in path.read_bytes())
        terminal.type(b"\x1dq")
        terminal.process.wait(WAIT)
    header, *events = map(json.loads, path.read_text().splitlines())
    assert (header["title"], header["width"], header["height"]) == (PORT, 100, 30)
    assert "".join(text for _, kind, text in events if kind == "o") == "grüß\r\n"
    shown = program("replay", str(path), "--speed", "0")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "grüß\n", "")


def test_a_terminals_answers_to_a_recording_do_not_reach_the_shell(folder):
    asks = '{"version":2,"width":80,"height":24}\n[0.0,"o","where? \\u001b[6n"]\n[0.5,"o","there"]\n'
    (folder / "rec").write_text(asks)
    master, terminal = pty.openpty()
    try:
        player = subprocess.Popen(
            [sys.executable, "-m", "virtserial", "replay", f"{folder}/rec"],
            env=ENVIRONMENT, stdin=terminal, stdout=terminal,
        )  # fmt: skip
        shown = b""
        while not shown.endswith(b"\x1b[6n"):
            shown += os.read(master, 4096)
        os.write(master, b"\x1b[7;5R")
        assert player.wait(WAIT) == 0
        assert os.read(master, 4096) == b"there"
        assert not select.select([terminal], [], [], 0)[0]
    finally:
        os.close(master)
        os.close(terminal)


def test_a_port_is_recorded_and_stands_in_for_its_guest(machine):
    path = machine.folder / "rec"
    process = subprocess.Popen([sys.executable, "-m", "virtserial", "record", PORT, str(path)], env=ENVIRONMENT)
    try:
        with HostStream(machine.guest) as guest:
            assert guest.wait_connected(WAIT)
            guest.write(bytes(range(256)))
            wait_until(lambda: path.exists() and b"\\u0000" in path.read_bytes())
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 0
    finally:
        process.kill()
        process.wait()
    stage = f"{machine.folder}/stage"
    player = subprocess.Popen(
        [sys.executable, "-m", "virtserial", "replay", str(path), "--listen", stage, "--speed", "0"], env=ENVIRONMENT
    )
    with socket.socket(socket.AF_UNIX) as client:
        # It is bound before it listens.
        wait_until(lambda: client.connect_ex(stage) == 0)
        client.settimeout(WAIT)
        data = b""
        while piece := client.recv(4096):
            data += piece
    assert (data, player.wait(WAIT)) == (bytes(range(256)), 0)


DIALOGUE = """{"version":2,"virtserial":"virtserial-port"}
[0.0,"o","name? "]
[0.1,"i","eve\\n"]
[0.2,"o","hello, eve"]
"""


@pytest.mark.parametrize(
    ("answer", "rest", "said"),
    [
        (b"eve\n", b"hello, eve", ""),
        (b"bob\n", b"", r"the client said b'bob\n', where the recording has b'eve\n'"),
        (b"bo\n", b"", r"the client said b'bo\n', where the recording has b'eve\n'"),
        (b"ev", b"", r"the client left before it said b'e\n'"),
        (b"", b"", r"the client left before it said b'eve\n'"),
    ],
)
def test_who_stands_in_wants_to_hear_what_was_said_then(folder, answer, rest, said):
    (folder / "rec").write_text(DIALOGUE)
    stage = f"{folder}/stage"
    player = subprocess.Popen(
        [sys.executable, "-m", "virtserial", "replay", f"{folder}/rec", "--listen", stage], env=ENVIRONMENT,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_socket(stage)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(stage)
        client.settimeout(WAIT)
        assert client.recv(6, socket.MSG_WAITALL) == b"name? "
        client.sendall(answer)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100, socket.MSG_WAITALL) == rest
    _, errors = player.communicate(timeout=WAIT)
    assert (player.returncode, errors) == (1 if said else 0, f"virtserial: {said}\n" if said else "")


def test_a_recording_is_played_into_a_port_at_its_pace(machine):
    (machine.folder / "rec").write_text('{"version":2}\n[0.0,"i","one"]\n[0.6,"i","two"]\n')
    with HostStream(machine.guest) as guest:
        assert guest.wait_connected(WAIT) or True
        player = subprocess.Popen(
            [sys.executable, "-m", "virtserial", "replay", f"{machine.folder}/rec", PORT], env=ENVIRONMENT
        )
        assert guest.readexactly(3, WAIT) == b"one"
        begun = time.monotonic()
        assert guest.readexactly(3, WAIT) == b"two"
        assert time.monotonic() - begun > 0.3
        assert player.wait(WAIT) == 0
