"""chardev socket with websocket=on: good clients, slow ones, and such as break the protocol."""

import contextlib
import os
import socket
import time

import pytest
from support.websocket_client import WebSocketClient, frame

from virtserial.chardev.socket_address import UnixAddress
from virtserial.chardev.socket_layers import SocketLayers
from virtserial.chardev.socket_server import SocketServerChardev
from virtserial.errors import PeerError
from virtserial.host_end import layered as layered_stream
from virtserial.host_end.websocket import WebSocketLayer

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
REQUEST = (
    "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    "Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\nSec-WebSocket-Version: 13\r\n"
)


@pytest.fixture
def listening(house, tmp_path):
    path = str(tmp_path / "s")
    layers = SocketLayers(server=True, websocket=True)
    return house.open(SocketServerChardev("w", UnixAddress(path), wait=False, layers=layers)), path


@pytest.fixture
def connect(listening):
    clients = []

    def connect():
        client = socket.socket(socket.AF_UNIX)
        clients.append(client)
        client.settimeout(60)
        client.connect(listening[1])
        return WebSocketClient(client)

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def session(house, connect):
    client = connect()
    port = house.port()
    client.request()
    house.until(lambda: "opened" in port.events)
    assert client.response().status_code == 101
    return client, port


def test_handshake(house, connect):
    client = connect()
    port = house.port()
    house.settle(0.02)
    assert port.events == []
    assert not port.end.connected
    client.request()
    house.until(lambda: "opened" in port.events)
    assert client.response().status_code == 101
    assert client.subprotocol == "binary"


def test_client_without_a_protocol_is_given_none(house, connect):
    client = connect()
    house.port()
    client.request(protocols=())
    house.settle(0.05)
    assert client.response().status_code == 101
    assert client.subprotocol is None


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 300000])
def test_sizes_both_ways(house, session, size):
    client, port = session
    message = os.urandom(size)
    client.socket.setblocking(False)
    waiting = memoryview(frame(BINARY, message) + frame(BINARY, b"end"))
    deadline = time.monotonic() + 60
    while len(port.received) < size + 3:
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            waiting = waiting[client.socket.send(waiting) :] if waiting else waiting
        house.loop.run_once(0.01)
    assert port.received == message + b"end"
    client.socket.setblocking(True)
    client.socket.settimeout(0.01)
    sent, received = 0, b""
    while len(received) < size:
        sent += port.write(memoryview(message)[sent:]) if sent < size else 0
        house.loop.run_once(0)
        received += client.receive_bytes(1)
    assert received == message


def test_a_batch_is_one_frame(session):
    client, port = session
    assert port.end.writev([memoryview(b"one "), memoryview(b""), memoryview(b"two")]) == 7
    assert client.receive() == (BINARY, b"one two")


def test_text_parts_and_control_frames_between(house, session):
    client, port = session
    client.socket.sendall(
        frame(TEXT, b"a", final=False) + frame(PING, b"there?") + frame(0, b"b", final=False) + frame(0, b"c")
    )
    house.until(lambda: port.received == b"abc")
    assert client.receive() == (PONG, b"there?")
    client.socket.sendall(frame(PONG) + frame(BINARY, b"d"))
    house.until(lambda: port.received == b"abcd")


def test_close_of_the_client(house, session):
    client, port = session
    client.socket.sendall(frame(BINARY, b"last") + frame(CLOSE, (1000).to_bytes(2, "big")))
    house.until(lambda: "closed" in port.events)
    assert port.received == b"last"
    assert client.receive() == (CLOSE, (1000).to_bytes(2, "big"))


def test_our_close_says_so(session):
    client, port = session
    port.end.close()
    assert client.receive() == (CLOSE, (1001).to_bytes(2, "big"))


def test_what_comes_while_the_guest_has_the_port_closed_waits(house, session):
    client, port = session
    port.reads = port.end.wants_input = False
    client.socket.sendall(frame(BINARY, b"early"))
    house.settle(0.05)
    assert not port.received
    port.end.wants_input = True
    port.read_all()
    assert port.received == b"early"


def test_back_pressure(house, session):
    client, port = session
    message = os.urandom(100_000)
    taken = 0
    while count := port.write(message):
        taken += count
    assert taken > len(message)
    assert len(port.end._output) <= layered_stream.MAX_OUTPUT + 20
    assert "writable" not in port.events
    received = 0
    while received < taken:
        received += len(client.receive_bytes(1))
        house.loop.run_once(0)
    house.until(lambda: "writable" in port.events)
    assert received == taken


def test_pings_of_a_client_that_does_not_read_do_not_pile_up(house, session):
    client, port = session
    client.socket.setblocking(False)
    pings = frame(PING, bytes(125)) * 500
    sent = 0
    for _ in range(200):
        with contextlib.suppress(BlockingIOError):
            sent += client.socket.send(pings)
        house.loop.run_once(0)
    assert sent > 1 << 17
    assert len(port.end._output) < 3 * layered_stream.MAX_OUTPUT


def lines(*changes):
    """The good request with some lines changed: (start of the line, what it becomes)."""
    request = REQUEST
    for start, line in changes:
        request = "\r\n".join(line if old.startswith(start) else old for old in request.split("\r\n"))
    return request.replace("\r\n\r\n", "\r\n")


@pytest.mark.parametrize(
    ("request_text", "status", "reason"),
    [
        (lines(("GET", "POST / HTTP/1.1")), "400", "it is no GET request of HTTP/1.1"),
        (lines(("GET", "GET / HTTP/1.0")), "400", "it is no GET request of HTTP/1.1"),
        (lines(("GET", "nonsense")), "400", "it is no GET request of HTTP/1.1"),
        (lines(("Host", "no colon")), "400", "a header has no name"),
        (lines(("Host", "Other: h")), "400", "it asks for no WebSocket"),
        (lines(("Upgrade", "Upgrade: h2c")), "400", "it asks for no WebSocket"),
        (lines(("Connection", "Connection: close")), "400", "it asks for no WebSocket"),
        (lines(("Sec-WebSocket-Key", "Sec-WebSocket-Key: short")), "400", "it asks for no WebSocket"),
        (lines(("Sec-WebSocket-Key", "Sec-WebSocket-Key: " + "-" * 24)), "400", "it asks for no WebSocket"),
        (lines(("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8")), "426", "it is not of WebSocket's version 13"),
        (REQUEST + "Sec-WebSocket-Protocol: chat\r\n", "400", "its protocols do not include 'binary'"),
    ],
)
def test_requests_that_are_refused(house, connect, caplog, request_text, status, reason):
    client = connect()
    port = house.port()
    client.socket.sendall(request_text.encode() + b"\r\n")
    house.until(lambda: port.events == ["closed"])
    assert port.end.ended
    assert client.socket.recv(4096).split()[1].decode() == status
    assert f"WebSocket handshake: {reason}" in caplog.text


@pytest.fixture(autouse=True)
def complaints_at_once(monkeypatch):
    monkeypatch.setattr(layered_stream.LayeredStream, "_next_complaint", 0.0)


def test_request_without_an_end(house, connect, caplog):
    client = connect()
    port = house.port()
    client.socket.sendall(REQUEST.encode() + b"Cookie: " + b"x" * 9000)
    house.until(lambda: port.events == ["closed"])
    assert "the request is longer than 8192 bytes" in caplog.text


def test_request_byte_by_byte(house, connect):
    client = connect()
    port = house.port()
    for byte in (REQUEST + "\r\n").encode() + frame(BINARY, b"early"):
        client.socket.sendall(bytes([byte]))
        house.loop.run_once(0)
    house.until(lambda: port.received == b"early")


def test_slow_handshake_ends_and_the_next_client_is_served(house, connect, listening, caplog, monkeypatch):
    monkeypatch.setattr(layered_stream, "HANDSHAKE_SECONDS", 0.1)
    slow = connect()
    port = house.port()
    slow.socket.sendall(b"GET / HT")
    house.until(lambda: port.events == ["closed"])
    assert "the handshake took more than 0.1 s" in caplog.text
    port.end.close()
    listening[0].connection_ended()
    assert slow.socket.recv(100) == b""
    client = connect()
    port = house.port()
    client.request()
    house.until(lambda: "opened" in port.events)


def test_client_that_leaves_in_the_handshake(house, connect):
    client = connect()
    port = house.port()
    client.socket.sendall(b"GET / HT")
    client.socket.close()
    house.until(lambda: port.events == ["closed"])
    assert port.end.ended


def test_complaints_are_few(house, connect, listening, caplog):
    for _ in range(20):
        client = connect()
        port = house.port()
        client.socket.sendall(b"x\r\n\r\n")
        house.until(lambda port=port: port.events == ["closed"])
        port.end.close()
        listening[0].connection_ended()
    assert len(caplog.records) <= 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x82\x01x", "a frame is not masked"),
        (b"\xc2\x81" + bytes(4) + b"x", "a frame has reserved bits set"),
        (b"\x83\x81" + bytes(4) + b"x", "opcode 3 is out of place"),
        (b"\x8b\x81" + bytes(4) + b"x", "opcode 11 is out of place"),
        (frame(0, b"x"), "a message is continued that has not begun"),
        (frame(BINARY, b"x", final=False) + frame(BINARY, b"y"), "opcode 2 is out of place"),
        (b"\x09\x81" + bytes(4) + b"x", "a control frame is in parts or too long"),
        (b"\x89\xfe\x00\x7e" + bytes(130), "a control frame is in parts or too long"),
        (b"\x82\xff\xff" + bytes(11), f"a frame of {0xFF << 56} bytes"),
    ],
    ids=lambda value: value[:1].hex() if isinstance(value, bytes) else value,  # masks are random, names must not be
)
def test_frames_that_break_the_protocol(house, session, caplog, data, reason):
    client, port = session
    client.socket.sendall(data)
    house.until(lambda: "closed" in port.events)
    assert f"WebSocket: {reason}" in caplog.text
    assert client.receive() == (CLOSE, (1002).to_bytes(2, "big"))


def test_a_frame_may_be_longer_than_any_memory():
    layer = WebSocketLayer()
    layer.received((REQUEST + "\r\n").encode())
    head = b"\x82\xff" + ((1 << 63) - 1).to_bytes(8, "big") + bytes(4)
    assert layer.received(head + b"begin") == b"begin"
    assert layer.received(bytes(1000)) == bytes(1000)
    assert len(layer._received) == 0


def test_any_split_gives_the_same():
    data = frame(BINARY, b"hello", final=False) + frame(PING, b"?") + frame(0, bytes(200)) + frame(TEXT, b"")
    for at in range(len(data)):
        layer = WebSocketLayer()
        layer.received((REQUEST + "\r\n").encode())
        assert layer.received(data[:at]) + layer.received(data[at:]) == b"hello" + bytes(200)


def test_nothing_is_read_after_a_violation():
    layer = WebSocketLayer()
    layer.received((REQUEST + "\r\n").encode())
    with pytest.raises(PeerError):
        layer.received(b"\x82\x01x")


def test_successor_of_a_killed_worker_ends_the_connection(house, connect, caplog):
    """It cannot know where in a frame the predecessor was."""
    client = connect()
    house.until(lambda: house.connections)
    connection, fds = house.connections[0]
    held = connection, tuple(map(os.dup, fds))
    first = house.port()
    client.request()
    house.until(lambda: "opened" in first.events)
    house.connections.append(held)
    second = house.port()
    house.until(lambda: second.events == ["closed"])
    assert second.end.ended
    assert "begun by another worker" in caplog.text
