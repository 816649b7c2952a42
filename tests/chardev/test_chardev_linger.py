"""A host that has left does not hold the port against the next one, and loses nothing while nobody else comes."""

import contextlib
import socket
import time

import pytest
from support.websocket_client import WebSocketClient, frame

from virtserial.chardev.socket_address import InetAddress, UnixAddress
from virtserial.chardev.socket_client import SocketClientChardev
from virtserial.chardev.socket_layers import SocketLayers
from virtserial.chardev.socket_server import SocketServerChardev
from virtserial.host_end import linger
from virtserial.host_end.mux import Multiplexer

REST = b"rest" * 1000


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(linger, "LINGER_SECONDS", 0.2)


@pytest.fixture(params=["unix", "tcp"])
def server(request, house, tmp_path):
    """Give (chardev, what connects a client to it)."""
    with contextlib.ExitStack() as clients:
        address = UnixAddress(str(tmp_path / "s")) if request.param == "unix" else InetAddress("127.0.0.1", "0")
        chardev = house.open(SocketServerChardev("s", address, wait=False))

        def connect():
            client = clients.enter_context(socket.socket(socket.AF_UNIX if request.param == "unix" else socket.AF_INET))
            client.settimeout(60)
            if request.param == "unix":
                client.connect(address.path)
            else:
                client.connect(("127.0.0.1", int(chardev.filename.split(",")[0].rsplit(":", 1)[1])))
            return client

        yield chardev, connect


def leave(client, data=REST):
    client.sendall(data)
    client.close()


def serve_next(house, chardev, port):
    """What the keeper does when a connection has ended."""
    assert port.end.ended
    port.end.close()
    chardev.connection_ended()
    return house.port()


def test_the_next_host_is_served_although_the_guest_does_not_read(house, server):
    chardev, connect = server
    first = connect()
    port = house.port(reads=False)
    port.end.wants_input = True
    leave(first)
    house.settle(0.5)
    assert port.events[0] == "opened"
    assert "closed" not in port.events, "nobody else waits"
    second = connect()
    house.until(lambda: "closed" in port.events)
    assert port.end.input_discarded == len(REST)
    port = serve_next(house, chardev, port)
    second.sendall(b"second")
    house.until(lambda: port.received == b"second")
    port.write(b"answer")
    assert second.recv(100) == b"answer"


def test_who_waits_already_is_served_too(house, server):
    chardev, connect = server
    first = connect()
    port = house.port(reads=False)
    port.end.wants_input = True
    second = connect()
    leave(first)
    house.until(lambda: "closed" in port.events)
    port = serve_next(house, chardev, port)
    second.sendall(b"second")
    house.until(lambda: port.received == b"second")


def test_who_stays_is_not_driven_out(house, server):
    _, connect = server
    first = connect()
    port = house.port(reads=False)
    port.end.wants_input = True
    connect()
    first.sendall(REST)
    house.settle(0.6)
    assert "closed" not in port.events
    port.reads = True
    port.read_all()
    assert port.received == REST


def test_a_closed_port_holds_nobody_up_either(house, server):
    _, connect = server
    first = connect()
    port = house.port(reads=False)
    connect()
    leave(first)
    house.until(lambda: "closed" in port.events)
    assert port.end.input_discarded == len(REST)


def test_a_guest_that_reads_slowly_gets_all_of_it(house, server):
    _, connect = server
    first = connect()
    port = house.port(reads=False)
    port.end.wants_input = True
    connect()
    leave(first)
    buffer = bytearray(len(REST) // 8)
    start = time.monotonic()
    while "closed" not in port.events:
        port.received += buffer[: port.end.readv([memoryview(buffer)])]
        house.settle(0.05)
    assert time.monotonic() - start > 2 * linger.LINGER_SECONDS
    assert port.received == REST
    assert port.end.input_discarded == 0


def test_nobody_else_can_come_to_a_pair_of_sockets_or_a_client_that_does_not_reconnect(house, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        house.open(SocketClientChardev("c", UnixAddress(str(tmp_path / "s"))))
        leave(listener.accept()[0])
        port = house.port(reads=False)
        port.end.wants_input = True
        house.settle(0.6)
        assert "closed" not in port.events
        port.reads = True
        port.read_all()
        assert port.received == REST


def test_a_client_reconnects_although_the_guest_does_not_read(house, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        chardev = house.open(
            SocketClientChardev("c", UnixAddress(str(tmp_path / "s")), reconnect_seconds=0.05)
        )
        port = house.port(reads=False)
        port.end.wants_input = True
        leave(listener.accept()[0])
        house.until(lambda: "closed" in port.events)
        port = serve_next(house, chardev, port)
        again, _ = listener.accept()
        with again:
            again.sendall(b"again")
            house.until(lambda: port.received == b"again")


def test_a_websocket_client_that_has_left(house, tmp_path):
    path = str(tmp_path / "s")
    layers = SocketLayers(server=True, websocket=True)
    chardev = house.open(SocketServerChardev("w", UnixAddress(path), wait=False, layers=layers))
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for client in (first, second):
            client.settimeout(60)
            client.connect(path)
        port = house.port(reads=False)
        WebSocketClient(first).request()
        house.until(lambda: "opened" in port.events)
        port.end.wants_input = True
        leave(first, frame(2, REST) + frame(8))
        house.until(lambda: "closed" in port.events)
        port = serve_next(house, chardev, port)
        WebSocketClient(second).request()
        house.until(lambda: "opened" in port.events)


def test_the_front_of_a_multiplexer(house, server, recording_port):
    chardev, connect = server
    first = connect()
    house.until(lambda: house.connections)
    shared = house.port(start=False).end
    mux = Multiplexer(house.loop, shared)
    front = mux.add_front()
    port = house.join(front, start=False, reads=False)
    front.wants_input = True
    front.start()
    mux.start()
    first.sendall(b"in the front")
    house.until(lambda: front.input)
    connect()
    first.close()
    house.until(lambda: "closed" in port.events)
    assert (front.ended, front.input_discarded) == (True, len(b"in the front"))
    assert chardev.connected
