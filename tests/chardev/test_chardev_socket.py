"""chardev socket, server and client, over real UNIX and TCP sockets."""

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

from virtserial.chardev.socket_address import FdAddress, InetAddress, UnixAddress
from virtserial.chardev.socket_client import SocketClientChardev
from virtserial.chardev.socket_server import SocketServerChardev
from virtserial.errors import ConfigError, StateError
from virtserial.host_end.stream import DescriptorStream


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "s")


@pytest.fixture
def connect():
    clients = []

    def connect(address, family=socket.AF_UNIX):
        client = socket.socket(family, socket.SOCK_STREAM)
        clients.append(client)
        client.settimeout(60)
        client.connect(address)
        return client

    yield connect
    for client in clients:
        client.close()


def unix_server(house, path, **how):
    return house.open(SocketServerChardev("foo", UnixAddress(path), wait=False, **how))


def end_connection(house, chardev, port):
    """What worker and keeper do when a host end has ended."""
    assert port.end.ended
    port.end.close()
    chardev.connection_ended()


class TestServer:
    def test_names_itself_as_qemu_does(self, house, path, connect):
        chardev = unix_server(house, path)
        assert chardev.filename == f"disconnected:unix:{path},server=on"
        connect(path)
        house.until(lambda: chardev.connected)
        assert chardev.filename == f"unix:{path},server=on"

    def test_bytes_go_both_ways(self, house, path, connect):
        unix_server(house, path)
        client = connect(path)
        port = house.port()
        client.sendall(b"to the guest")
        house.until(lambda: port.received == b"to the guest")
        assert port.write(b"to the host") == 11
        assert client.recv(100) == b"to the host"
        assert port.events[0] == "opened"

    def test_second_client_waits_until_the_first_has_left(self, house, path, connect):
        chardev = unix_server(house, path)
        first = connect(path)
        port = house.port()
        second = connect(path)
        second.sendall(b"second")
        house.settle()
        assert not house.connections
        first.close()
        house.until(lambda: "closed" in port.events)
        end_connection(house, chardev, port)
        assert house.port().end.connected

        def late_port():
            return bytes(house._ends[-1].listener.received)

        house.until(lambda: late_port() == b"second")

    def test_connection_churn_leaves_nothing(self, house, path, connect):
        chardev = unix_server(house, path)
        for number in range(200):
            client = connect(path)
            client.sendall(b"%d" % number)
            port = house.port()
            client.close()
            house.until(lambda port=port: port.events[-1:] == ["closed"])
            assert port.received == b"%d" % number
            end_connection(house, chardev, port)

    def test_mode_follows_the_umask(self, house, path):
        before = os.umask(0o027)
        try:
            unix_server(house, path)
        finally:
            os.umask(before)
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o750

    def test_close_removes_the_socket(self, house, path):
        unix_server(house, path).close()
        assert not os.path.lexists(path)

    def test_close_leaves_what_another_has_put_there(self, house, path):
        chardev = unix_server(house, path)
        os.rename(path, path + ".old")
        with open(path, "w"):
            pass
        chardev.close()
        assert os.path.exists(path)

    def test_live_server_is_not_replaced_nor_disturbed(self, house, path):
        chardev = unix_server(house, path)
        with pytest.raises(ConfigError, match="in use by a live server"):
            unix_server(house, path)
        house.settle()
        assert not house.connections
        assert not chardev.connected
        assert os.path.exists(path)

    def test_live_server_known_by_another_name_is_not_replaced(self, house, path, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("s")
            server.listen()
            with pytest.raises(ConfigError, match="in use by a live server"):
                unix_server(house, path)

    def test_stale_socket_is_replaced(self, house, path, connect):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        unix_server(house, path)
        connect(path)
        assert house.port().end.connected

    @pytest.mark.parametrize(
        ("make", "text"),
        [
            (lambda path: os.mkdir(path), "Failed to unlink socket {}: Is a directory"),
            (lambda path: open(path, "w").close(), "Failed to bind socket to {}: it exists and is not a socket"),
        ],
    )
    def test_what_is_no_socket_is_left_alone(self, house, path, make, text):
        make(path)
        with pytest.raises(ConfigError) as caught:
            unix_server(house, path)
        assert str(caught.value) == text.format(path)
        assert os.path.exists(path)

    def test_no_such_directory(self, house, tmp_path):
        place = str(tmp_path / "none" / "s")
        with pytest.raises(ConfigError) as caught:
            unix_server(house, place)
        assert str(caught.value) == f"Failed to bind socket to {place}: No such file or directory"

    def test_path_too_long(self, house):
        with pytest.raises(ConfigError, match="is too long\nPath must be less than 108 bytes"):
            unix_server(house, "/" + "x" * 107)

    def test_longest_path_is_taken(self, house, tmp_path, connect):
        path = str(tmp_path) + "/" + "x" * (106 - len(str(tmp_path)))
        assert len(path) == 107
        unix_server(house, path)
        connect(path)
        assert house.port().end.connected

    @pytest.mark.parametrize("tight", [True, False])
    def test_abstract(self, house, connect, tight):
        name = f"virtserial-test-{os.getpid()}-{time.monotonic_ns()}"
        address = UnixAddress(name, abstract=True, tight=tight)
        chardev = house.open(SocketServerChardev("foo", address, wait=False))
        ends = ",abstract=on,tight=on" if tight else ",abstract=on"
        assert chardev.filename == f"disconnected:unix:{name}{ends},server=on"
        with pytest.raises(ConfigError, match=r"Failed to bind socket to .*: Address already in use"):
            house.open(SocketServerChardev("bar", address, wait=False))
        place = b"\0" + name.encode()
        connect(place if tight else place.ljust(108, b"\0"))
        assert house.port().end.connected

    def test_wait_connected_says_so_and_waits(self, house, path):
        chardev = house.open(SocketServerChardev("foo", UnixAddress(path)))
        assert chardev.wait
        client = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import socket, sys, time; s = socket.socket(socket.AF_UNIX); time.sleep(0.3);"
                " s.connect(sys.argv[1]); s.recv(1)",
                path,
            ]
        )
        try:
            chardev.wait_connected()
            assert chardev.connected
            assert house.reports == [f"info: waiting for connection on: disconnected:unix:{path},server=on"]
            chardev.wait_connected()
            assert len(house.reports) == 1
        finally:
            client.kill()
            client.wait()

    def test_wait_connected_ends_when_the_loop_is_stopped(self, house, path):
        chardev = house.open(SocketServerChardev("foo", UnixAddress(path)))
        house.loop.call_later(0.05, house.loop.stop)
        with pytest.raises(ConfigError, match="chardev 'foo': stopped while waiting for a connection"):
            chardev.wait_connected()

    def test_wait_connected_is_content_with_one_who_left_at_once(self, house, path, connect):
        chardev = house.open(SocketServerChardev("foo", UnixAddress(path)))
        connect(path)
        house.loop.run_once(60)
        chardev.connection_ended()
        house.loop.add_turn(house.loop.stop)
        chardev.wait_connected()
        assert house.reports == []
        assert not chardev.connected

    def test_wait_connected_before_open_is_refused(self, path):
        with pytest.raises(StateError):
            SocketServerChardev("foo", UnixAddress(path)).wait_connected()


class TestTcpServer:
    def test_shows_the_port_it_got_and_the_two_ends(self, house, connect):
        chardev = house.open(SocketServerChardev("foo", InetAddress("127.0.0.1", "0"), wait=False))
        port = int(chardev.filename.split(":")[3].split(",")[0])
        assert chardev.filename == f"disconnected:tcp:127.0.0.1:{port},server=on"
        client = connect(("127.0.0.1", port), socket.AF_INET)
        end = house.port()
        mine = client.getsockname()[1]
        assert chardev.filename == f"tcp:127.0.0.1:{port},server=on <-> 127.0.0.1:{mine}"
        client.sendall(b"x" * 300_000)
        house.until(lambda: len(end.received) == 300_000)

    @pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
    def test_ipv6(self, house, connect):
        chardev = house.open(SocketServerChardev("foo", InetAddress("::1", "0"), wait=False))
        port = int(chardev.filename.removeprefix("disconnected:tcp:::1:").removesuffix(",server=on"))
        client = connect(("::1", port), socket.AF_INET6)
        house.until(lambda: chardev.connected)
        mine = client.getsockname()[1]
        assert chardev.filename == f"tcp:[::1]:{port},server=on <-> [::1]:{mine}"

    def test_tries_ports_up_to_to(self, house):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(ConfigError, match=f"Failed to bind socket to 127.0.0.1:{port}: Address already"):
                house.open(SocketServerChardev("foo", InetAddress("127.0.0.1", str(port)), wait=False))
            address = InetAddress("127.0.0.1", str(port), to=min(65535, port + 50))
            chardev = house.open(SocketServerChardev("foo", address, wait=False))
            assert f":{port}," not in chardev.filename

    def test_every_local_address_is_served(self, house, connect):
        chardev = house.open(SocketServerChardev("foo", InetAddress("", "0", ipv6=False), wait=False))
        assert chardev.filename.startswith("disconnected:tcp:0.0.0.0:")
        port = int(chardev.filename.split(":")[3].split(",")[0])
        connect(("127.0.0.1", port), socket.AF_INET)
        assert house.port().end.connected

    @pytest.mark.parametrize(
        ("address", "text"),
        [
            (InetAddress("127.0.0.1", "99999"), "address resolution failed for 127.0.0.1:99999: "),
            (InetAddress("127.0.0.1", "foo"), "address resolution failed for 127.0.0.1:foo: Servname not supp"),
            (InetAddress("127.0.0.1", "1", ipv4=False, ipv6=False), "Cannot disable IPv4 and IPv6 at same time"),
        ],
    )
    def test_bad_addresses(self, house, address, text):
        with pytest.raises(ConfigError) as caught:
            house.open(SocketServerChardev("foo", address, wait=False))
        assert str(caught.value).startswith(text)


class TestInheritedSocket:
    def test_listening(self, house, path, connect):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        chardev = house.open(SocketServerChardev("foo", FdAddress(listener.detach()), wait=False))
        connect(path)
        assert house.port().end.connected
        assert chardev.connected

    def test_bound_but_not_listening(self, house, path, connect):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        house.open(SocketServerChardev("foo", FdAddress(listener.detach()), wait=False))
        connect(path)
        assert house.port().end.connected

    def test_that_cannot_listen(self, house):
        with socket.socket(socket.AF_UNIX) as unbound:
            with pytest.raises(ConfigError, match=r"Failed to listen on fd \d+: Invalid argument"):
                house.open(SocketServerChardev("foo", FdAddress(unbound.fileno()), wait=False))
            unbound.getsockname()

    def test_connected(self, house):
        ours, theirs = socket.socketpair()
        with theirs:
            house.open(SocketClientChardev("foo", FdAddress(ours.detach())))
            port = house.port()
            theirs.sendall(b"hello")
            house.until(lambda: port.received == b"hello")
            port.end.close()
            assert theirs.recv(1) == b""

    def test_no_socket(self, house):
        reader, writer = os.pipe()
        try:
            with pytest.raises(ConfigError) as caught:
                house.open(SocketClientChardev("foo", FdAddress(reader)))
            assert str(caught.value) == f"File descriptor '{reader}' is not a socket"
            os.fstat(reader)
        finally:
            os.close(reader)
            os.close(writer)

    def test_datagram_socket(self, house):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
            with pytest.raises(ConfigError, match="is not a stream socket"):
                house.open(SocketClientChardev("foo", FdAddress(datagram.fileno())))
            os.fstat(datagram.fileno())


class TestClient:
    @pytest.fixture
    def server(self, path):
        with socket.socket(socket.AF_UNIX) as server:
            server.settimeout(60)
            server.bind(path)
            server.listen()
            yield server

    def test_connects_while_it_is_opened(self, house, path, server):
        chardev = house.open(SocketClientChardev("foo", UnixAddress(path)))
        assert chardev.filename == f"unix:{path}"
        peer = server.accept()[0]
        with peer:
            port = house.port()
            port.write(b"abc")
            assert peer.recv(10) == b"abc"

    @pytest.mark.parametrize(
        ("address", "text"),
        [
            (UnixAddress("/nonexistent/s"), "Failed to connect to '/nonexistent/s': No such file or directory"),
            (InetAddress("127.0.0.1", "1"), "Failed to connect to '127.0.0.1:1': Connection refused"),
        ],
    )
    def test_server_is_not_there(self, house, address, text):
        with pytest.raises(ConfigError) as caught:
            house.open(SocketClientChardev("foo", address))
        assert str(caught.value) == text

    def test_stays_closed_without_reconnect(self, house, path, server):
        chardev = house.open(SocketClientChardev("foo", UnixAddress(path)))
        server.accept()[0].close()
        port = house.port()
        house.until(lambda: "closed" in port.events)
        end_connection(house, chardev, port)
        house.settle()
        assert not house.connections
        assert chardev.filename == f"disconnected:unix:{path}"

    def test_reconnects(self, house, path, server):
        chardev = house.open(SocketClientChardev("foo", UnixAddress(path), reconnect_seconds=0.05))
        for _ in range(3):
            port = house.port()
            server.accept()[0].close()
            house.until(lambda port=port: "closed" in port.events)
            end_connection(house, chardev, port)

    def test_reports_the_first_failure_only_and_connects_when_the_server_comes(self, house, path):
        chardev = house.open(SocketClientChardev("foo", UnixAddress(path), reconnect_seconds=0.02))
        house.settle(0.2)
        assert house.reports == [
            f"Unable to connect character device foo: Failed to connect to '{path}': No such file or directory"
        ]
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            house.until(lambda: chardev.connected)

    def test_reconnects_over_tcp_by_number_and_by_name(self, house):
        with socket.socket() as server:
            server.settimeout(60)
            server.bind(("127.0.0.1", 0))
            server.listen()
            for host in ("127.0.0.1", "localhost"):
                address = InetAddress(host, str(server.getsockname()[1]), ipv4=True)
                chardev = house.open(SocketClientChardev("foo", address, reconnect_seconds=0.05))
                port = house.port()
                peer = server.accept()[0]
                with peer:
                    peer.sendall(b"hi")
                    house.until(lambda port=port: port.received == b"hi")
                assert " <-> 127.0.0.1:" in chardev.filename

    def test_refused_over_tcp_is_tried_again(self, house):
        chardev = house.open(SocketClientChardev("foo", InetAddress("127.0.0.1", "1"), reconnect_seconds=0.02))
        house.settle(0.2)
        assert house.reports == [
            "Unable to connect character device foo: Failed to connect to '127.0.0.1:1': Connection refused"
        ]
        chardev.close()

    def test_name_that_cannot_be_resolved_is_reported(self, house):
        house.open(SocketClientChardev("foo", InetAddress("name.invalid", "1"), reconnect_seconds=60))
        house.until(lambda: house.reports, timeout=60)
        assert house.reports[0].startswith("Unable to connect character device foo: address resolution failed for")


class TestStream:
    """What the moving half does on a connection."""

    @pytest.fixture
    def pair(self, house):
        ours, theirs = socket.socketpair()
        house.open(SocketClientChardev("foo", FdAddress(ours.detach())))
        theirs.settimeout(60)
        with theirs:
            yield theirs

    def test_many_buffers_in_one_call(self, house, pair):
        port = house.port(reads=False)
        pieces = [bytes([number % 256]) * 10 for number in range(1500)]
        assert port.end.writev([memoryview(piece) for piece in pieces]) == 10 * 1024
        assert port.end.writev([memoryview(piece) for piece in pieces[1024:]]) == 10 * 476
        received = b""
        while len(received) < 15000:
            received += pair.recv(65536)
        assert received == b"".join(pieces)
        pair.sendall(received)
        house.until(lambda: port.end.readable)
        buffers = [bytearray(7) for _ in range(1500)]
        views = [memoryview(buffer) for buffer in buffers]
        assert port.end.readv(views) == 7 * 1024
        assert port.end.readv(views[1024:]) == 7 * 476
        assert b"".join(buffers) == received[: 7 * 1500]

    def test_empty_buffers_are_no_end_of_the_stream(self, house, pair):
        port = house.port(reads=False)
        port.end.wants_input = True
        pair.sendall(b"x")
        house.until(lambda: port.end.readable)
        assert port.end.readv([memoryview(bytearray(0))]) == 0
        assert port.end.writev([memoryview(b"")]) == 0
        port.read_all()
        assert port.received == b"x"
        house.settle(0.05)
        assert "closed" not in port.events

    def test_back_pressure(self, house, pair):
        port = house.port()
        block = b"z" * 65536
        written = 0
        while count := port.write(block):
            written += count
        assert written >= 65536
        assert port.write(block) == 0
        house.settle(0.05)
        assert "writable" not in port.events
        received = 0
        while "writable" not in port.events:
            received += len(pair.recv(65536))
            house.loop.run_once(0.01)
        assert port.write(b"tail") == 4
        while received < written + 4:
            received += len(pair.recv(65536))
        assert received == written + 4

    def test_no_event_while_nothing_happens(self, house, pair):
        port = house.port(reads=False)
        pair.sendall(b"waits")
        house.settle(0.2)
        assert port.events == ["opened", "readable"]
        port.read_all()
        assert port.received == b"waits"

    def test_what_was_sent_before_the_hang_up_is_read(self, house, pair):
        port = house.port(reads=False)
        port.end.wants_input = True
        pair.sendall(b"a" * 100_000)
        pair.close()
        house.settle(0.05)
        assert "closed" not in port.events
        port.read_all()
        house.until(lambda: "closed" in port.events)
        assert len(port.received) == 100_000
        assert port.end.ended
        assert not port.end.connected

    def test_hang_up_is_told_at_once_and_counted_if_nobody_reads(self, house, pair):
        port = house.port(reads=False)
        pair.sendall(b"a" * 1000)
        pair.close()
        house.until(lambda: "closed" in port.events)
        assert port.end.input_discarded == 1000

    def test_guest_that_closes_after_the_hang_up_ends_it(self, house, pair):
        port = house.port(reads=False)
        port.end.wants_input = True
        pair.sendall(b"a" * 1000)
        pair.close()
        house.settle(0.05)
        assert "closed" not in port.events
        port.end.wants_input = False
        house.until(lambda: "closed" in port.events)

    def test_half_close_ends_the_connection_as_with_qemu(self, house, pair):
        port = house.port()
        pair.sendall(b"question")
        pair.shutdown(socket.SHUT_WR)
        house.until(lambda: "closed" in port.events)
        assert port.received == b"question"

    def test_half_close_with_the_guest_closed_keeps_the_data(self, house, pair):
        port = house.port(reads=False)
        pair.sendall(b"early")
        pair.shutdown(socket.SHUT_WR)
        house.settle(0.05)
        assert "closed" not in port.events
        port.end.wants_input = True
        port.read_all()
        assert port.received == b"early"
        house.until(lambda: "closed" in port.events)

    def test_a_tcp_client_that_leaves_a_closed_port_is_noticed_at_once(self, house):
        """Its FIN is no hang-up: who waits for one keeps the next client out, and loses what the guest writes first."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        ours.setblocking(False)
        port = house.join(DescriptorStream(house.loop, "tcp", ours.fileno(), ours.detach()), reads=False)
        house.settle(0.05)
        client.close()
        house.until(lambda: "closed" in port.events)

    def test_a_client_that_has_nothing_more_to_say_leaves_when_the_guest_closes(self, house, pair):
        port = house.port(reads=False)
        port.end.wants_input = True
        pair.shutdown(socket.SHUT_WR)
        house.settle(0.05)
        assert "closed" not in port.events
        port.end.wants_input = False
        house.until(lambda: "closed" in port.events)

    def test_writer_is_not_stuck_when_the_peer_left_unread_bytes(self, house, pair):
        port = house.port(reads=False)
        port.end.wants_input = True
        while port.write(b"z" * 65536):
            pass
        pair.sendall(b"last words")
        pair.close()
        house.until(lambda: "writable" in port.events)
        assert port.write(b"z" * 1000) == 1000
        assert port.end.output_discarded == 1000
        port.read_all()
        assert port.received == b"last words"
        house.until(lambda: "closed" in port.events)

    def test_write_after_the_peer_has_left(self, house, pair):
        port = house.port(reads=False)
        pair.close()
        assert port.write(b"into nothing") == 12
        assert port.end.output_discarded == 12
        house.until(lambda: "closed" in port.events)

    def test_peer_that_reads_no_more_but_still_sends(self, house, pair):
        port = house.port()
        pair.shutdown(socket.SHUT_RD)
        assert port.write(b"nobody reads this") == 17
        pair.sendall(b"but this comes")
        house.until(lambda: port.received == b"but this comes")
        assert port.end.output_discarded == 17
        assert port.end.connected

    def test_client_that_passes_descriptors_loses_no_byte(self, house, pair):
        port = house.port()
        for number in range(20):
            data = b"%02d" % number
            try:
                socket.send_fds(pair, [data], [pair.fileno()])
            except PermissionError:  # from Linux 6.16 on they are refused
                pair.sendall(data)
        house.until(lambda: len(port.received) == 40)
        assert port.received == b"".join(b"%02d" % number for number in range(20))

    def test_nothing_is_heard_after_close(self, house, pair):
        port = house.port()
        pair.sendall(b"late")
        pair.close()
        port.end.close()
        port.end.close()
        house.settle(0.05)
        assert port.events == ["opened"]

    def test_reset_over_tcp_closes(self, house):
        chardev = house.open(SocketServerChardev("t", InetAddress("127.0.0.1", "0"), wait=False))
        place = int(chardev.filename.split(":")[3].split(",")[0])
        client = socket.create_connection(("127.0.0.1", place), 10)
        port = house.port()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        house.until(lambda: "closed" in port.events)
        assert port.end.ended

    def test_sustained_transfer_both_ways(self, house, pair):
        port = house.port()
        size = 20 << 20
        outcome = []

        def peer():
            received = 0
            while received < size:
                received += len(pair.recv(1 << 16))
            for _ in range(size >> 16):
                pair.sendall(b"q" * 65536)
            outcome.append(received)

        thread = threading.Thread(target=peer)
        thread.start()
        block, sent = memoryview(b"p" * 65536), 0
        while sent < size:
            count = port.end.writev([block[: size - sent]])
            sent += count
            if not count:
                house.loop.run_once(1)
        house.until(lambda: len(port.received) == size, timeout=30)
        thread.join()
        assert outcome == [size]


def test_accept_is_tried_again_when_descriptors_run_out(tmp_path):
    """In a process of its own, because its descriptor limit is lowered."""
    program = """
import os, resource, socket, sys
from virtserial.chardev import socket_server
from virtserial.chardev.socket_address import UnixAddress
from virtserial.loop import EventLoop
socket_server.ACCEPT_AGAIN_SECONDS = 0.05
class Sink:
    def connection_opened(self, chardev, connection, fds): os.write(1, b"connected\\n")
loop = EventLoop()
chardev = socket_server.SocketServerChardev("foo", UnixAddress(sys.argv[1]), wait=False)
chardev.report = lambda line: print(line, flush=True)
chardev.open(loop, Sink())
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, 100))
loop.run_once(1)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
while not chardev.connected: loop.run_once(1)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "s")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    reason = os.strerror(errno.EMFILE)
    assert done.stdout == f"warning: chardev 'foo': cannot accept a client: {reason}\nconnected\n"
