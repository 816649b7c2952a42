"""chardev pty with a real terminal."""

import contextlib
import os
import resource
import select
import subprocess
import sys
import termios

import pytest

from virtserial.chardev.pty import PtyChardev
from virtserial.errors import ConfigError


@pytest.fixture
def terminal():
    opened = []

    def open_terminal(chardev):
        opened.append(os.open(chardev.terminal, os.O_RDWR | os.O_NOCTTY))
        return opened[-1]

    yield open_terminal
    for fd in opened:
        with contextlib.suppress(OSError):
            os.close(fd)


def read_terminal(fd, timeout=60):
    return os.read(fd, 65536) if select.select([fd], [], [], timeout)[0] else b""


def test_announces_and_names_the_terminal(house):
    chardev = house.open(PtyChardev("foo"))
    assert chardev.filename == f"pty:{chardev.terminal}"
    assert chardev.announcement == f"char device redirected to {chardev.terminal} (label foo)"


def test_link_is_made_and_removed(house, tmp_path):
    link = str(tmp_path / "console")
    chardev = house.open(PtyChardev("foo", link))
    assert os.readlink(link) == chardev.terminal
    chardev.close()
    assert not os.path.lexists(link)


def test_link_of_another_is_left(house, tmp_path):
    link = str(tmp_path / "console")
    chardev = house.open(PtyChardev("foo", link))
    os.unlink(link)
    os.symlink("/dev/null", link)
    chardev.close()
    assert os.readlink(link) == "/dev/null"


def test_dead_link_of_a_killed_server_is_replaced(house, tmp_path):
    link = str(tmp_path / "console")
    os.symlink("/dev/pts/999999", link)
    chardev = house.open(PtyChardev("foo", link))
    assert os.readlink(link) == chardev.terminal


@pytest.mark.parametrize(
    ("place", "reason"), [("taken", "File exists"), ("none/console", "No such file or directory")]
)
def test_link_that_cannot_be_made(house, tmp_path, place, reason):
    (tmp_path / "taken").touch()
    with pytest.raises(ConfigError) as caught:
        house.open(PtyChardev("foo", str(tmp_path / place)))
    assert str(caught.value) == f"Failed to create PTY symlink: {reason}"
    assert not house.connections


def test_connected_while_somebody_has_it_open(house, terminal):
    chardev = house.open(PtyChardev("foo"))
    port = house.port()
    house.settle()
    assert port.events == []
    for _ in range(3):
        port.events.clear()
        fd = terminal(chardev)
        house.until(lambda: "opened" in port.events)
        assert port.end.connected
        second = terminal(chardev)
        os.close(second)
        house.settle(0.05)
        assert "closed" not in port.events
        os.close(fd)
        house.until(lambda: "closed" in port.events)
        assert not port.end.connected
        assert not port.end.ended
        assert port.events.count("opened") == port.events.count("closed") == 1


def test_open_is_noticed_without_polling(house, terminal):
    chardev = house.open(PtyChardev("foo"))
    port = house.port()
    house.settle(0.05)
    terminal(chardev)
    house.until(lambda: port.end.connected, timeout=0.5)


def test_already_open_when_the_worker_starts(house, terminal):
    chardev = house.open(PtyChardev("foo"))
    fd = terminal(chardev)
    os.write(fd, b"early")
    port = house.port()
    house.until(lambda: port.received == b"early")


def test_all_bytes_pass_as_they_are(house, terminal):
    chardev = house.open(PtyChardev("foo"))
    port = house.port()
    fd = terminal(chardev)
    everything = bytes(range(256))
    os.write(fd, everything)
    house.until(lambda: port.received == everything)
    assert port.write(everything) == 256
    received = b""
    while len(received) < 256:
        received += read_terminal(fd)
    assert received == everything


def test_typed_and_gone_before_anybody_looked(house):
    chardev = house.open(PtyChardev("foo"))
    port = house.port()
    subprocess.run([sys.executable, "-c", f"open({chardev.terminal!r}, 'w').write('quick')"], check=True)
    house.until(lambda: "closed" in port.events)
    assert port.received == b"quick"
    assert port.events[0] == "opened"


def test_typed_while_the_guest_had_the_port_closed_comes_later(house):
    chardev = house.open(PtyChardev("foo"))
    port = house.port(reads=False)
    subprocess.run([sys.executable, "-c", f"open({chardev.terminal!r}, 'w').write('later')"], check=True)
    house.settle()
    assert port.end.input_discarded == 0
    port.reads = port.end.wants_input = True
    house.until(lambda: port.received == b"later")
    house.until(lambda: not port.end.connected)


def test_back_pressure(house, terminal):
    chardev = house.open(PtyChardev("foo"))
    port = house.port()
    fd = terminal(chardev)
    house.until(lambda: port.end.connected)
    written = 0
    while count := port.write(b"z" * 65536):
        written += count
    assert port.write(b"z") == 0
    received = 0
    while "writable" not in port.events:
        received += len(read_terminal(fd))
        house.loop.run_once(0.01)
    assert port.write(b"!") == 1
    while received < written + 1:
        received += len(read_terminal(fd))
    assert received == written + 1


def test_blocked_writer_is_let_go_when_the_terminal_is_closed(house, terminal):
    chardev = house.open(PtyChardev("foo"))
    port = house.port()
    fd = terminal(chardev)
    house.until(lambda: port.end.connected)
    while port.write(b"z" * 65536):
        pass
    os.close(fd)
    house.until(lambda: "closed" in port.events)
    fd = terminal(chardev)
    house.until(lambda: port.events.count("opened") == 2)
    while read_terminal(fd, 0.1):
        pass
    port.write(b"new")
    assert read_terminal(fd).endswith(b"new")


def test_polls_where_there_is_no_inotify_left(house, terminal, monkeypatch):
    monkeypatch.setattr("virtserial.host_end.pty.POLL_SECONDS", 0.05)
    monkeypatch.setattr("virtserial.chardev.pty.IN_OPEN", 0)
    chardev = house.open(PtyChardev("foo"))
    assert len(house.connections[0][1]) == 1
    port = house.port()
    fd = terminal(chardev)
    house.until(lambda: port.end.connected)
    os.close(fd)
    house.until(lambda: "closed" in port.events)


def test_no_descriptor_left_for_a_pty(house):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        with pytest.raises(ConfigError, match="Failed to create PTY: "):
            house.open(PtyChardev("foo"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_raw_mode_outlives_the_openers(house, terminal):
    chardev = house.open(PtyChardev("foo"))
    os.close(terminal(chardev))
    assert not termios.tcgetattr(terminal(chardev))[3] & (termios.ICANON | termios.ECHO)
