"""chardev socket with telnet=on."""

import socket

import pytest

from virtserial.chardev.socket_address import InetAddress, UnixAddress
from virtserial.chardev.socket_client import SocketClientChardev
from virtserial.chardev.socket_layers import SocketLayers
from virtserial.chardev.socket_server import SocketServerChardev
from virtserial.host_end.telnet import TelnetLayer

OFFER = bytes.fromhex("fffb01 fffb03 fffb00 fffd00")
"""What QEMU 11.1.3 sends first: WILL ECHO, WILL SUPPRESS-GO-AHEAD, WILL BINARY, DO BINARY."""


@pytest.fixture
def telnet(house):
    with socket.socket() as client:
        client.settimeout(60)
        address = InetAddress("127.0.0.1", "0")
        chardev = house.open(
            SocketServerChardev("t", address, wait=False, layers=SocketLayers(server=True, telnet=True))
        )
        number = chardev._listeners[0].getsockname()[1]
        assert chardev.filename == f"disconnected:telnet:127.0.0.1:{number},server=on"
        client.connect(("127.0.0.1", number))
        port = house.port()
        assert chardev.filename.startswith(f"telnet:127.0.0.1:{number},server=on <-> 127.0.0.1:")
        yield client, port


def test_session(house, telnet):
    client, port = telnet
    assert client.recv(100) == OFFER
    assert port.events[0] == "opened"
    # What telnet(1) answers, and then somebody types.
    client.sendall(bytes.fromhex("fffd01 fffd03 fffd00 fffb00") + b"ls\r")
    house.until(lambda: port.received == b"ls\r")
    port.write(b"file\r\n")
    assert client.recv(100) == b"file\r\n"


def test_every_byte_passes(house, telnet):
    client, port = telnet
    every_byte = bytes(range(256))
    client.recv(100)
    client.sendall(every_byte.replace(b"\xff", b"\xff\xff"))
    house.until(lambda: port.received == every_byte)
    port.write(every_byte)
    assert client.recv(1000) == every_byte.replace(b"\xff", b"\xff\xff")


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"a\xff\xf1b", b"ab"),  # NOP: QEMU swallows the byte after it as well
        (b"a\xff\xf3b", b"ab"),  # BREAK
        (b"a\xff\xfa\x18\x00xterm\xff\xf0b", b"ab"),  # a subnegotiation
        (b"a\xff\xfa\x18\xff\xff\xf0\xff\xf0b", b"ab"),  # with 255 and 240 in it
        (b"a\xff\xfb\xffb", b"ab"),  # WILL 255
        (b"\xff\xff\xff\xff", b"\xff\xff"),
    ],
)
def test_commands_are_taken_out(sent, text):
    whole, piecewise = TelnetLayer(server=True), TelnetLayer(server=True)
    assert whole.received(sent) == text
    assert b"".join(piecewise.received(sent[at : at + 1]) for at in range(len(sent))) == text


def test_client_does_not_negotiate(house, tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        server.settimeout(60)
        house.open(SocketClientChardev("t", UnixAddress(path), layers=SocketLayers(server=False, telnet=True)))
        peer, _ = server.accept()
        with peer:
            peer.settimeout(60)
            port = house.port()
            port.write(b"hello")
            assert peer.recv(100) == b"hello"
            peer.sendall(OFFER + b"login: ")
            house.until(lambda: port.received == b"login: ")


def test_hang_up(house, telnet):
    client, port = telnet
    client.sendall(b"last words")
    client.close()
    house.until(lambda: "closed" in port.events)
    assert port.received == b"last words"
    assert port.end.ended
