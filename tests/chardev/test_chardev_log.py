"""logfile= and logappend=, of any chardev."""

import os
import resource
import signal
import socket

import pytest

from virtserial.chardev.handler_chardev import HandlerChardev
from virtserial.chardev.log import LoggedChardev
from virtserial.chardev.null import NullChardev
from virtserial.chardev.socket_address import UnixAddress
from virtserial.chardev.socket_server import SocketServerChardev
from virtserial.errors import BackendError, ConfigError


@pytest.fixture
def log_path(tmp_path):
    return tmp_path / "log"


def server(house, tmp_path, log_path):
    chardev = SocketServerChardev("foo", UnixAddress(str(tmp_path / "s")), wait=False)
    return house.open(LoggedChardev(chardev, str(log_path)))


def connect(tmp_path):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(60)
    client.connect(str(tmp_path / "s"))
    return client


def test_what_the_guest_writes_and_not_what_it_reads(house, tmp_path, log_path):
    server(house, tmp_path, log_path)
    house.port()  # of the log alone
    with connect(tmp_path) as client:
        port = house.port()
        assert port.events == ["opened"]
        client.sendall(b"to the guest")
        house.until(lambda: port.received == b"to the guest")
        assert port.end.writev([memoryview(b"one "), memoryview(b""), memoryview(b"two")]) == 7
        assert client.recv(100) == b"one two"
    assert log_path.read_bytes() == b"one two"


def test_what_would_block_is_logged_once_it_is_taken(house, tmp_path, log_path):
    server(house, tmp_path, log_path)
    house.port()
    message = os.urandom(1 << 20)
    with connect(tmp_path) as client:
        port = house.port()
        written, received = 0, bytearray()
        while len(received) < 4 << 20:
            piece = memoryview(message)[written % len(message) :]
            written += port.end.writev([piece[:1000], piece[1000:]]) if written < 4 << 20 else 0
            assert os.path.getsize(log_path) == written
            received += client.recv(300000)
            house.loop.run_once(0)
    assert received == message * 4
    assert log_path.read_bytes() == message * 4


def test_log_stands_in_while_nobody_is_connected(house, tmp_path, log_path):
    chardev = server(house, tmp_path, log_path)
    port = house.port()
    assert port.events == []
    assert not port.end.connected
    port.end.log_unconnected([memoryview(b"before ")])
    with connect(tmp_path):
        port = house.port()
        port.write(b"during ")
    house.until(lambda: "closed" in port.events)
    assert port.end.ended
    port.end.close()
    chardev.connection_ended()
    port = house.port()
    port.end.log_unconnected([memoryview(b"after")])
    assert log_path.read_bytes() == b"before during after"
    with connect(tmp_path):
        assert house.port().end.connected


def test_the_end_of_a_logged_host_end_is_that_of_the_other(house, tmp_path, log_path):
    server(house, tmp_path, log_path)
    house.port()
    client = connect(tmp_path)
    port = house.port()
    port.end.wants_input = False
    client.sendall(b"unread")
    client.close()
    house.until(lambda: "closed" in port.events)
    assert (port.end.ended, port.end.connected, port.end.input_discarded) == (True, False, 6)


@pytest.mark.parametrize(("append", "expected"), [(False, b"new"), (True, b"old new")])
def test_append_or_not(house, log_path, append, expected):
    log_path.write_bytes(b"old ")
    house.open(LoggedChardev(NullChardev("n"), str(log_path), append=append))
    house.port().write(b"new")
    assert log_path.read_bytes() == expected


def test_no_such_directory(house, tmp_path):
    path = str(tmp_path / "none" / "log")
    with pytest.raises(ConfigError) as caught:
        house.open(LoggedChardev(NullChardev("n"), path))
    assert str(caught.value) == f"Could not create '{path}': No such file or directory"


def test_a_chardev_that_cannot_be_opened_leaves_no_log_open(house, tmp_path, log_path):
    chardev = SocketServerChardev("foo", UnixAddress(str(tmp_path / "none" / "s")), wait=False)
    with pytest.raises(ConfigError, match="Failed to bind"):
        house.open(LoggedChardev(chardev, str(log_path)))


def test_a_handler_that_cannot_be_made_leaves_no_log_open(house, tmp_path, log_path):
    source = tmp_path / "broken.py"
    source.write_text("from virtserial.chardev.handler import PortHandler\nclass H(PortHandler):\n    x = 1 / 0\n")
    house.open(LoggedChardev(HandlerChardev("h", path=str(source)), str(log_path)))
    with pytest.raises(BackendError):
        house.port()


def test_a_full_disk_does_not_stop_the_guest(house, log_path, caplog):
    house.open(LoggedChardev(NullChardev("n"), str(log_path)))
    port = house.port()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        assert port.write(b"0123456789abcdef") == 16
        assert port.write(b"more") == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert log_path.read_bytes() == b"0123456789"
    assert [record.getMessage() for record in caplog.records] == [
        "chardev 'n': cannot write to the logfile: File too large"
    ]
