"""chardev udp, over real sockets of the loopback interface."""

import socket

import pytest

from virtserial.chardev.socket_address import InetAddress
from virtserial.chardev.udp import UdpChardev
from virtserial.errors import ConfigError

ANY = InetAddress("", "0")


@pytest.fixture
def peer():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(60)
        yield peer


def udp(house, peer, local=ANY):
    chardev = house.open(UdpChardev("u", InetAddress("127.0.0.1", str(peer.getsockname()[1])), local))
    return chardev, house.port()


def test_each_buffer_is_a_datagram(house, peer):
    chardev, port = udp(house, peer)
    assert (chardev.filename, port.events) == ("udp", ["opened"])
    assert port.end.writev([memoryview(b"one"), memoryview(b""), memoryview(b"two")]) == 6
    assert [peer.recv(100), peer.recv(100)] == [b"one", b"two"]


def test_answers_are_input_in_order(house, peer):
    _, port = udp(house, peer)
    port.write(b"hello")
    _, place = peer.recvfrom(100)
    for answer in (b"first ", b"", b"second"):
        peer.sendto(answer, place)
    house.until(lambda: port.received == b"first second")


def test_strangers_are_not_heard(house, peer):
    _, port = udp(house, peer)
    port.write(b"hello")
    _, place = peer.recvfrom(100)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"stranger", place)
    peer.sendto(b"friend", place)
    house.until(lambda: port.received)
    assert port.received == b"friend"


def test_a_datagram_larger_than_the_room_is_not_cut(house, peer):
    _, port = udp(house, peer)
    port.reads = False
    port.write(b"hello")
    _, place = peer.recvfrom(100)
    message = bytes(range(256)) * 200
    peer.sendto(message, place)
    peer.sendto(b"next", place)
    house.until(lambda: "readable" in port.events)
    port.take = 1000
    port.read_all()
    assert port.received == message + b"next"


def test_waiting_input_stays_in_the_socket_until_read(house, peer):
    _, port = udp(house, peer)
    port.reads = False
    port.write(b"hello")
    _, place = peer.recvfrom(100)
    peer.sendto(b"kept", place)
    house.settle()
    assert not port.received
    port.read_all()
    assert port.received == b"kept"


def test_a_buffer_longer_than_a_datagram_is_split(house, peer):
    _, port = udp(house, peer)
    message = bytes(70000)
    taken = port.write(message)
    assert taken == 65507
    assert port.write(memoryview(message)[taken:]) == 70000 - 65507
    assert len(peer.recv(1 << 17)) + len(peer.recv(1 << 17)) == 70000


def test_nobody_there_is_no_failure(house, peer):
    _, port = udp(house, peer)
    place = peer.getsockname()
    peer.close()
    for _ in range(20):
        assert port.write(b"lost") == 4
        house.settle(0.005)
    assert port.end.connected
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as successor:
        successor.bind(place)
        successor.settimeout(60)
        assert port.write(b"found") == 5
        assert successor.recv(100) == b"found"
    assert "closed" not in port.events


def test_local_address_and_port(house, peer):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            udp(house, peer, InetAddress("127.0.0.1", str(number)))
        assert str(caught.value) == "Failed to bind socket: Address already in use"
    _, port = udp(house, peer, InetAddress("127.0.0.1", str(number)))
    port.write(b"x")
    assert peer.recvfrom(10)[1] == ("127.0.0.1", number)


@pytest.mark.parametrize(
    ("remote", "local", "text"),
    [
        (InetAddress("127.0.0.1", "9"), InetAddress("1.2.3.4", "0"), "Failed to bind socket: Cannot assign requested"),
        (InetAddress("127.0.0.1", "9"), InetAddress("::1", "0"), "Failed to bind socket: ::1 is of another family"),
        (InetAddress("localhost", "foo"), ANY, "address resolution failed for localhost:foo: Servname not supported"),
        (InetAddress("127.0.0.1", "9", None, False, False), ANY, "Cannot disable IPv4 and IPv6 at same time"),
    ],
)
def test_refused(house, remote, local, text):
    with pytest.raises(ConfigError) as caught:
        house.open(UdpChardev("u", remote, local))
    assert str(caught.value).startswith(text)
