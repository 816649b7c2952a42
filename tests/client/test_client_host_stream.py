"""The host's end as a stream: unix, tcp and terminal; reconnecting; blocking and asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import socket
import threading
import time

import pytest

from virtserial.client import AsyncStream, HostStream, parse_address
from virtserial.client.address import TcpAddress, TerminalAddress, UnixAddress
from virtserial.errors import ConfigError
from virtserial.guest.errors import PeerAway
from virtserial.guest.stream import LINE_LIMIT

WAIT = 60


def listen(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(WAIT)
    listener.bind(str(path))
    listener.listen()
    return listener


@pytest.fixture
def ends(folder):
    """A stream and the connection it has made."""
    with listen(folder / "port") as listener, HostStream(f"unix:{folder}/port") as stream:
        assert stream.wait_connected(WAIT)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(WAIT)
            yield stream, connection


def test_lines_and_blocks(ends):
    stream, peer = ends
    peer.sendall(b"one\ntwo\nthree")
    assert stream.readline(WAIT) == b"one\n"
    assert stream.read(2, WAIT) == b"tw"
    assert stream.readexactly(4, WAIT) == b"o\nth"
    with pytest.raises(TimeoutError):
        stream.readexactly(100, 0.05)
    peer.sendall(b" and an end")
    peer.close()
    assert stream.readline(WAIT) == b"ree and an end"
    assert stream.readline(WAIT) == b""
    assert stream.readexactly(3, WAIT) == b""


def test_endless_line_is_refused_and_takes_no_memory(ends):
    stream, peer = ends

    def send():
        with contextlib.suppress(OSError):
            peer.sendall(bytes(LINE_LIMIT + (1 << 20)))

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(ValueError, match=f"more than {LINE_LIMIT} bytes"):
        stream.readline(WAIT)
    assert len(stream._received) <= LINE_LIMIT
    stream.close()
    sender.join(WAIT)


def test_write_waits_for_a_slow_peer_and_ends_with_the_time(ends):
    stream, peer = ends
    with pytest.raises(TimeoutError):
        stream.write(bytes(64 << 20), 0.1)
    data = os.urandom(1 << 20)
    received = bytearray()
    done = threading.Event()

    def read():
        while not received.endswith(data):
            received.extend(peer.recv(1 << 16))
        done.set()

    reader = threading.Thread(target=read)
    reader.start()
    stream.write(data, WAIT)
    assert done.wait(WAIT)
    reader.join()


def test_write_to_nobody_tells_how_much_was_taken(folder):
    with HostStream(f"unix:{folder}/nobody") as stream:
        assert not stream.connected
        assert stream.read() == b""
        with pytest.raises(PeerAway) as told:
            stream.write(b"lost")
    assert told.value.written == 0


def test_stream_connects_when_there_is_somebody_and_again_when_they_come_back(folder):
    with HostStream(f"unix:{folder}/port") as stream:
        assert not stream.wait_connected(0.2)
        for number in range(3):
            with listen(folder / "port") as listener:
                assert stream.wait_connected(WAIT)
                connection, _ = listener.accept()
                connection.sendall(b"%d\n" % number)
                assert stream.readline(WAIT) == b"%d\n" % number
                connection.close()
            (folder / "port").unlink()
            assert stream.wait_disconnected(WAIT)


def test_stream_waits_for_a_place_in_a_full_queue(folder):
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(f"{folder}/port")
        listener.listen(0)
        other.connect(f"{folder}/port")
        with HostStream(f"unix:{folder}/port", reconnect=False) as stream:
            assert not stream.connected
            listener.accept()[0].close()
            assert stream.wait_connected(WAIT)


def test_what_waiting_cannot_mend_is_told(folder):
    (folder / "file").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(f"{folder}/datagrams")
        for address, reason in [
            (f"unix:{folder}/file/port", "Not a directory"),
            (f"unix:{folder}/file", "Socket operation on non-socket"),
            (f"unix:{folder}/datagrams", "Protocol wrong type for socket"),
            (f"unix:{folder}/{'x' * 108}", "AF_UNIX path too long"),
            (f"pty:{folder}/file", "Inappropriate ioctl for device"),
        ]:
            with HostStream(address) as stream, pytest.raises(ConfigError, match=f"^{address}: {reason}$"):
                stream.wait_connected(WAIT)


def test_what_waiting_cannot_mend_is_told_after_a_connection_too(folder):
    with listen(folder / "port") as listener, HostStream(f"unix:{folder}/port") as stream:
        listener.accept()[0].close()
        assert stream.read(timeout=WAIT) == b""
        (folder / "port").unlink()
        (folder / "port").symlink_to("port")
        with pytest.raises(ConfigError, match="Too many levels of symbolic links"):
            stream.wait_connected(WAIT)


def test_stream_that_shall_not_connect_again_does_not(folder):
    with listen(folder / "port") as listener, HostStream(f"unix:{folder}/port", reconnect=False) as stream:
        listener.accept()[0].close()
        assert stream.read(timeout=WAIT) == b""
        assert not stream.wait_connected(1.5)


def test_waiting_for_the_other_end_to_leave_keeps_what_it_sent(ends):
    stream, peer = ends
    peer.sendall(b"last words")
    peer.close()
    assert stream.wait_disconnected(WAIT)
    assert stream.read(timeout=WAIT) == b"last words"


def test_tcp(folder):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT)
        with HostStream(f"tcp:127.0.0.1:{listener.getsockname()[1]}") as stream:
            assert stream.wait_connected(WAIT)
            with listener.accept()[0] as connection:
                stream.write(b"over tcp", WAIT)
                assert connection.recv(100) == b"over tcp"


def test_tcp_port_that_refuses_is_tried_again(folder):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with HostStream(f"tcp:127.0.0.1:{port}") as stream:
        assert not stream.wait_connected(0.3)
        with socket.create_server(("127.0.0.1", port)):
            assert stream.wait_connected(WAIT)


def test_terminal_is_raw_and_knows_its_size(folder):
    master, slave = pty.openpty()
    path = os.ttyname(slave)
    os.close(slave)
    with HostStream(f"pty:{path}") as stream:
        assert stream.wait_connected(WAIT)
        stream.set_terminal_size(33, 44)
        os.write(master, b"\x03\x04raw\r")
        assert stream.readexactly(6, WAIT) == b"\x03\x04raw\r"
        stream.write(b"up\n", WAIT)
        assert os.read(master, 100) == b"up\n"
        assert os.get_terminal_size(master) == (44, 33)
    os.close(master)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/a", UnixAddress("/run/a")),
        ("unix:/run/a,server=on", UnixAddress("/run/a")),
        ("disconnected:unix:/run/a,server=on", UnixAddress("/run/a")),
        ("tcp:127.0.0.1:80", TcpAddress("127.0.0.1", 80)),
        ("disconnected:tcp:127.0.0.1:80,server=on <-> 127.0.0.1:3", TcpAddress("127.0.0.1", 80)),
        ("tcp:[::1]:80", TcpAddress("::1", 80)),
        ("tcp::80", TcpAddress("localhost", 80)),
        ("pty:/dev/pts/3", TerminalAddress("/dev/pts/3")),
    ],
)
def test_addresses(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["tcp:here", "tcp:here:0", "tcp:here:99999", "/nothing/there", "/tmp", "", "name", "unix:", "pty:"]
)
def test_what_is_no_address_is_told(text):
    with pytest.raises(ConfigError):
        parse_address(text)


def test_path_of_a_socket_is_an_address(folder):
    with listen(folder / "port"):
        assert parse_address(f"{folder}/port") == UnixAddress(f"{folder}/port")


def test_asyncio_reads_writes_and_connects_again(folder):
    async def echo_twice():
        async with AsyncStream(HostStream(f"unix:{folder}/port")) as stream:
            for _ in range(2):
                await stream.wait_connected()
                assert await stream.readline() == b"question\n"
                await stream.write(b"answer" * 100_000)
                assert await stream.read() == b""
                await stream.wait_disconnected()

    def serve():
        for _ in range(2):
            with listen(folder / "port") as listener, listener.accept()[0] as connection:
                connection.settimeout(WAIT)
                connection.sendall(b"question\n")
                got = 0
                while got < 600_000:
                    got += len(connection.recv(1 << 16))
            (folder / "port").unlink()

    server = threading.Thread(target=serve)
    server.start()
    asyncio.run(asyncio.wait_for(echo_twice(), WAIT))
    server.join(WAIT)


def test_asyncio_idle_stream_wakes_nobody(ends):
    stream, _ = ends

    async def idle():
        async with AsyncStream(stream) as waiting:
            before = time.process_time()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(waiting.read(), 1.0)
            return time.process_time() - before

    assert asyncio.run(idle()) < 0.5
