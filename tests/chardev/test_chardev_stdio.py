"""chardev stdio: real processes on a real terminal, and on pipes."""

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

PROGRAM = """
import os, sys, time
from virtserial.host_end.factory import open_host_end
from virtserial.chardev.stdio import StdioChardev
from virtserial.errors import ConfigError
from virtserial.loop import EventLoop
class Sink:
    def connection_opened(self, chardev, *connection): self.connection = connection
class Port:
    open = True
    def host_opened(self): pass
    def host_writable(self): pass
    def host_closed(self): self.open = False
    def host_readable(self):
        buffer = bytearray(100)
        while count := end.readv([memoryview(buffer)]):
            end.writev([memoryview(b"<" + bytes(buffer[:count]) + b">\\n")])
            if buffer[0:1] == b"q": self.open = False
loop, sink, port = EventLoop(), Sink(), Port()
chardev = StdioChardev("s", signal="nosignal" not in sys.argv)
chardev.open(loop, sink)
try: StdioChardev("t").open(loop, sink)
except ConfigError as error: print(error, file=sys.stderr, flush=True)
end = open_host_end(*sink.connection, loop)
end.listener, end.wants_input = port, True
end.start()
os.write(2, b"ready\\n")
while port.open: loop.run_once(1)
if "exit" not in sys.argv: chardev.close()
"""


@pytest.fixture
def run():
    processes = []

    def start(*arguments, **how):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            **how,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


@pytest.fixture
def terminal():
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def read_until(fd, wanted, timeout=60):
    data, deadline = b"", time.monotonic() + timeout
    while wanted not in data:
        assert select.select([fd], [], [], max(0, deadline - time.monotonic()))[0], data
        more = os.read(fd, 4096)
        assert more, f"the end, after {data}"
        data += more
    return data


def test_pipes_and_the_end_of_the_input(run):
    process = run(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = process.communicate(b"hello", timeout=60)
    assert output == b"<hello>\n"
    assert errors == b"cannot use stdio by multiple character devices\nready\n"


def test_nothing_to_read(run):
    process = run(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.communicate(timeout=60)[0] == b""


def test_reader_of_the_output_leaves(run):
    process = run(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    read_until(process.stderr.fileno(), b"ready\n")
    process.stdout.close()
    assert process.wait(60) == 0


def test_closed_standard_input():
    program = """
import os
from virtserial.chardev.stdio import StdioChardev
from virtserial.errors import ConfigError
os.close(0)
try: StdioChardev("s").open(None, None)
except ConfigError as error: print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == "cannot use stdio: standard input or output is not open: Bad file descriptor\n"


@pytest.mark.parametrize("end", ["close", "exit"])
def test_terminal_is_raw_and_restored(run, terminal, end):
    master, slave = terminal
    before = termios.tcgetattr(slave)
    process = run(end, stdin=slave, stdout=slave, stderr=subprocess.PIPE)
    read_until(process.stderr.fileno(), b"ready\n")
    raw = termios.tcgetattr(slave)
    assert not raw[3] & (termios.ICANON | termios.ECHO)
    assert raw[3] & termios.ISIG
    assert raw[1] & termios.OPOST
    assert not os.get_blocking(slave)
    os.write(master, b"k")
    assert read_until(master, b"\n") == b"<k>\r\n"
    termios.tcsetattr(slave, termios.TCSANOW, before)
    os.kill(process.pid, signal.SIGCONT)
    deadline = time.monotonic() + 60
    while termios.tcgetattr(slave)[3] & termios.ECHO:
        assert time.monotonic() < deadline, "SIGCONT did not bring the raw mode back"
        time.sleep(0.02)
    os.write(master, b"q")
    assert process.wait(60) == 0
    assert termios.tcgetattr(slave) == before
    assert os.get_blocking(slave)


def test_signals_can_be_left_to_the_guest(run, terminal):
    master, slave = terminal
    process = run("nosignal", stdin=slave, stdout=slave, stderr=subprocess.PIPE)
    read_until(process.stderr.fileno(), b"ready\n")
    assert not termios.tcgetattr(slave)[3] & termios.ISIG
    os.write(master, b"\x03")
    assert read_until(master, b"\n") == b"<\x03>\r\n"
