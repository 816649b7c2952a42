"""virtserial-qemu on a terminal: -nographic, Ctrl-a c and x, a console beside the monitor, modes restored."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import termios
import time
from contextlib import contextmanager

import pytest
from support.guests.dropin_guest import PROGRAM, QUIET, DropinGuest, environment, wait_until_nothing_is_left

pytestmark = pytest.mark.timeout(180)
LIMIT = 60


class Terminal:
    """The operator's side of a terminal."""

    def __init__(self):
        self.master, self.slave = os.openpty()
        self.modes = termios.tcgetattr(self.slave)
        self._shown = b""

    def type(self, data):
        os.write(self.master, data)

    def wait_for(self, text):
        """Read until `text` has been shown; what came up to it."""
        deadline = time.monotonic() + LIMIT
        while text not in self._shown:
            ready = select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0]
            assert ready, f"no {text!r} was shown, only {self._shown[-1000:]!r}"
            self._shown += os.read(self.master, 65536)
        shown, _, self._shown = self._shown.partition(text)
        return shown

    def close(self):
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.close()


@pytest.fixture
def folder(folder):
    yield folder
    wait_until_nothing_is_left(folder)


@contextmanager
def on_terminal(terminal, folder, *words):
    """virtserial-qemu as the leader of a session on the terminal, as a shell's foreground job."""
    process = subprocess.Popen(
        # A word that names the folder, by which what is left over is found.
        ["setsid", "--ctty", *PROGRAM, *words, "-name", folder],
        env=environment(folder), stdin=terminal.slave, stdout=terminal.slave, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


NOGRAPHIC = shlex.split("-nographic -accel tcg -machine q35 -m 64 -device virtio-serial")


def test_nographic_shows_the_serial_line_and_ctrl_a_switches_to_the_monitor_and_quits(terminal, folder):
    with on_terminal(terminal, folder, *NOGRAPHIC) as process:
        terminal.wait_for(b"SeaBIOS (version")
        assert not termios.tcgetattr(terminal.slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
        terminal.type(b"\x01h")
        terminal.wait_for(b"switch between console and monitor")
        terminal.type(b"\x01c")
        terminal.wait_for(b"(qemu) ")
        terminal.type(b"info status\n")
        terminal.wait_for(b"VM status: running")
        terminal.type(b"\x01x")
        terminal.wait_for(b"Terminated")
        assert process.wait(LIMIT) == 0
        assert termios.tcgetattr(terminal.slave) == terminal.modes


def test_monitor_on_standard_input_quits_and_restores_the_terminal(terminal, folder):
    words = [*QUIET, *shlex.split("-machine q35 -m 64 -device virtio-serial -monitor stdio")]
    with on_terminal(terminal, folder, *words) as process:
        terminal.wait_for(b"(qemu) ")
        terminal.type(b"info chardev\r")
        shown = terminal.wait_for(b"\r\n(qemu) ")
        assert b"compat_monitor0: filename=stdio" in shown
        assert b"virtserial-" not in shown
        terminal.type(b"quit\r")
        assert process.wait(LIMIT) == 0
        assert termios.tcgetattr(terminal.slave) == terminal.modes


def test_interrupt_key_ends_qemu_where_the_terminal_sends_signals(terminal, folder):
    words = [*QUIET, *shlex.split("-machine q35 -m 64 -device virtio-serial -monitor stdio")]
    with on_terminal(terminal, folder, *words) as process:
        terminal.wait_for(b"(qemu) ")
        terminal.type(b"\x03")
        assert process.wait(LIMIT) == 0
        assert termios.tcgetattr(terminal.slave) == terminal.modes


def test_suspended_and_resumed_terminal_is_raw_again(terminal, folder):
    words = [*QUIET, *shlex.split("-machine q35 -m 64 -device virtio-serial -monitor stdio")]
    with on_terminal(terminal, folder, *words) as process:
        terminal.wait_for(b"(qemu) ")
        os.kill(process.pid, signal.SIGSTOP)
        termios.tcsetattr(terminal.slave, termios.TCSANOW, terminal.modes)
        os.kill(process.pid, signal.SIGCONT)
        terminal.type(b"info status\r")
        terminal.wait_for(b"VM status: ")
        assert not termios.tcgetattr(terminal.slave)[3] & termios.ECHO
        process.kill()


def test_console_of_the_guest_and_the_monitor_share_a_terminal(terminal):
    """-chardev stdio,mux=on for a virtconsole and a monitor: the console has the focus first, as with QEMU."""
    words = shlex.split(
        "-machine q35 -m 256 -chardev stdio,mux=on,signal=off,id=s -device virtio-serial "
        "-device virtconsole,chardev=s -mon chardev=s"
    )
    with DropinGuest(words, stdin=terminal.slave, wants_qmp=False) as guest:
        guest.check("stty -F /dev/hvc0 raw -echo")
        job = guest.start("head -n 1 < /dev/hvc0")
        terminal.type(b"to the guest\n")
        assert job.wait(LIMIT).text == "to the guest\n"
        guest.check("echo to the host > /dev/hvc0")
        terminal.wait_for(b"to the host")
        terminal.type(b"\x01c")
        terminal.wait_for(b"(qemu) ")
        terminal.type(b"info status\n")
        terminal.wait_for(b"VM status: running")
        terminal.type(b"\x01c")
        job = guest.start("head -n 1 < /dev/hvc0")
        terminal.type(b"again\n")
        assert job.wait(LIMIT).text == "again\n"
