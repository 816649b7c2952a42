"""Terminals: pyserial and the real screen on a pty, a login by agetty on a console, and the same over a fleet."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

import pytest
from support.broker import joined_cluster
from support.fetched import fetch_or_skip

from virtserial.rig import Guest
from virtserial.rig.image import ROOT_PASSWORD
from virtserial.rig.programs import programs

VM = f"desk{os.getpid()}"


@pytest.fixture(scope="module")
def machine(our_device, module_folder):
    options = ["--name", VM, "-device", "virtio-serial"]
    for name, device in (("port", "virtserialport,name=org.test.port"), ("console", "virtconsole,id=con0")):
        options += ["-chardev", f"pty,id={name},path={module_folder}/{name}", "-device", f"{device},chardev={name}"]
    with our_device.attach(options) as attached, Guest(attached.arguments) as guest:
        yield guest


@pytest.fixture(scope="module")
def serial():
    """pyserial, from Debian's package: it is Python alone."""
    root = fetch_or_skip(programs, "python3-serial").root
    sys.path.append(str(root / "usr/lib/python3/dist-packages"))
    import serial

    yield serial
    sys.path.pop()


def test_pyserial_talks_to_a_port(machine, module_folder, serial):
    # While nobody has the terminal open the port is at its end of file.
    echo = 'while :; do while read -r line <&3; do echo "<$line>" >&3; done; sleep 0.05; done'
    job = machine.start(f"exec 3<>/dev/virtio-ports/org.test.port; {echo}")
    for speed in (9600, 115200):
        with serial.Serial(f"{module_folder}/port", speed, timeout=60) as line:
            for text in (b"one", b"two"):
                line.write(text + b"\n")
                assert line.readline() == b"<" + text + b">\n"
            assert line.in_waiting == 0
            binary = bytes(range(1, 10)) + bytes(range(14, 256))  # all but NUL and what ends a line
            line.write(binary + b"\n")
            assert line.read_until(b">\n") == b"<" + binary + b">\n"
    job.signal(9)
    job.wait()


class Terminal:
    """A pty of our own with a program on it, as a person at a terminal has it."""

    def __init__(self, command, **environment):
        self.fd, child = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, start_new_session=True,
            env={**os.environ, "TERM": "xterm", **environment},
        )  # fmt: skip
        os.close(child)
        self.shown = b""

    def type(self, data):
        os.write(self.fd, data)

    def expect(self, wanted, seconds=90):
        deadline = time.monotonic() + seconds
        while wanted not in self.shown:
            ready, _, _ = select.select([self.fd], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"no {wanted!r} in {seconds} s, only {self.shown[-1000:]!r}"
            try:
                self.shown += os.read(self.fd, 65536)
            except OSError as error:  # The program has ended.
                raise AssertionError(f"no {wanted!r}, and then the end: {self.shown[-1000:]!r}") from error
        self.shown = self.shown.partition(wanted)[2]

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


def login(terminal):
    """A login on a console where agetty waits, a command, and a logout."""
    terminal.type(b"\r")
    terminal.expect(b"login: ")
    terminal.type(b"root\r")
    terminal.expect(b"assword: ")
    terminal.type(ROOT_PASSWORD.encode() + b"\r")
    terminal.expect(b"# ")
    terminal.type(b"echo $((6 * 7)) on $(tty)\r")
    terminal.expect(b"42 on /dev/hvc0")
    terminal.type(b"exit\r")
    terminal.expect(b"login: ")


@pytest.fixture
def getty(machine):
    job = machine.start("while :; do agetty -L 115200 hvc0 xterm; done")
    yield
    job.signal(9)
    job.wait()


def test_login_in_screen(machine, getty, module_folder):
    screen = fetch_or_skip(programs, "screen")
    terminfo = str(screen.root / "lib/terminfo")
    os.mkdir(f"{module_folder}/screens", 0o700)
    terminal = Terminal(
        [*screen.command("screen"), "-c", "/dev/null", f"{module_folder}/console"],
        SCREENDIR=f"{module_folder}/screens", TERMINFO=terminfo, LC_ALL="C",
    )  # fmt: skip
    try:
        login(terminal)
    finally:
        terminal.close()
        for name in os.listdir(f"{module_folder}/screens"):
            os.kill(int(name.partition(".")[0]), 15)


def test_login_with_pyserial_s_miniterm(machine, getty, module_folder, serial):
    terminal = Terminal(
        [sys.executable, "-m", "serial.tools.miniterm", "--raw", f"{module_folder}/console", "115200"],
        PYTHONPATH=os.path.dirname(os.path.dirname(serial.__file__)),
    )
    try:
        login(terminal)
        terminal.type(b"\x1d")
        terminal.process.wait(60)
    finally:
        terminal.close()


@pytest.mark.timeout(300)
def test_login_through_three_brokers_one_of_which_is_killed(getty, folder):
    with joined_cluster(folder, VM) as (broker, environment):
        terminal = Terminal([sys.executable, "-m", "virtserial", "console", f"h1/{VM}/con0"], **environment)
        try:
            login(terminal)
            broker.servers[0].kill()
            login(terminal)
            terminal.type(b"\x1dq")
            assert terminal.process.wait(60) == 0
        finally:
            terminal.close()
