"""chardev socket with tls-creds=, against Python's ssl module over real sockets."""

import contextlib
import os
import re
import select
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
from support.certificates import Authority, openssl
from support.websocket_client import WebSocketClient, frame

from virtserial.channel.tls_context import make_context
from virtserial.chardev.socket_address import InetAddress
from virtserial.chardev.socket_client import SocketClientChardev
from virtserial.chardev.socket_layers import SocketLayers
from virtserial.chardev.socket_server import SocketServerChardev
from virtserial.chardev.tls_credentials import TlsCredentials
from virtserial.errors import ConfigError
from virtserial.host_end import layered as layered_stream
from virtserial.host_end.tls import RECORDS, TlsLayer

LOCALHOST = InetAddress("127.0.0.1", "0")


@pytest.fixture(scope="module")
def credentials(tmp_path_factory):
    """Directories: "server" and "client" of one authority, "stranger" of another, "elsewhere" for another name."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl(1) makes the certificates")
    place = tmp_path_factory.mktemp("tls")
    ours, other = Authority(place / "ca", "ours"), Authority(place / "other", "other")
    return {
        "server": ours.issue(place / "server", "server"),
        "client": ours.issue(place / "client", "client"),
        "stranger": other.issue(place / "stranger", "client"),
        "elsewhere": ours.issue(place / "elsewhere", "server", "DNS:elsewhere.example"),
    }


@pytest.fixture(autouse=True)
def complaints_at_once(monkeypatch):
    monkeypatch.setattr(layered_stream.LayeredStream, "_next_complaint", 0.0)


def load(directory, endpoint, verify_peer=True):
    return TlsCredentials.load("t", directory, endpoint, verify_peer)


def peer_context(directory, endpoint, certificate=True):
    """The other end's, for the directory of that other end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if endpoint == "server" else ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(f"{directory}/ca-cert.pem")
    if certificate:
        context.load_cert_chain(f"{directory}/{endpoint}-cert.pem", f"{directory}/{endpoint}-key.pem")
    return context


class Peer:
    """The other end, in a thread, since Python's handshake waits; keeps what it finds."""

    def __init__(self, converse):
        self.result = self.error = None
        self._converse = converse
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        try:
            self.result = self._converse()
        except (OSError, AssertionError) as error:
            self.error = error

    @property
    def over(self):
        return not self._thread.is_alive()

    def join(self):
        self._thread.join(60)
        assert self.over


@pytest.fixture
def serve(house):
    """Starts our server; gives the chardev and its TCP port."""

    def serve(tls, **layers):
        chardev = house.open(
            SocketServerChardev("s", LOCALHOST, wait=False, layers=SocketLayers(server=True, tls=tls, **layers))
        )
        return chardev, chardev._listeners[0].getsockname()[1]

    return serve


def client(number, context, converse, hostname="localhost"):
    """A TLS client that says `converse` to our server."""

    def run():
        raw = socket.create_connection(("127.0.0.1", number), 20)
        with raw, context.wrap_socket(raw, server_hostname=hostname) as secure:
            return converse(secure)

    return Peer(run)


def read_exactly(secure, count):
    received = bytearray()
    while len(received) < count:
        data = secure.recv(count - len(received))
        assert data, f"the end, after {len(received)} bytes"
        received += data
    return bytes(received)


def test_bytes_go_both_ways(house, serve, credentials):
    chardev, number = serve(load(credentials["server"], "server"))

    def converse(secure):
        secure.sendall(b"to the guest")
        return secure.version(), secure.recv(100)

    peer = client(number, peer_context(credentials["client"], "client"), converse)
    port = house.port()
    assert port.events == []
    house.until(lambda: port.received == b"to the guest")
    assert port.events[0] == "opened"
    port.write(b"to the host")
    house.until(lambda: peer.over)
    assert peer.result == ("TLSv1.3", b"to the host")
    house.until(lambda: "closed" in port.events)
    assert chardev.filename.startswith(f"tcp:127.0.0.1:{number},server=on <-> ")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_much_both_ways_at_once(house, serve, credentials, version):
    _, number = serve(load(credentials["server"], "server"))
    message = os.urandom(2 << 20)
    context = peer_context(credentials["client"], "client")
    context.minimum_version = context.maximum_version = version

    def converse(secure):
        # In one thread: an SSL object is not for two at once.
        secure.setblocking(False)
        waiting, received = memoryview(message), bytearray()
        while waiting or len(received) < len(message):
            idle = True
            with contextlib.suppress(ssl.SSLWantReadError):
                received += secure.recv(1 << 16)
                idle = False
            with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
                if waiting:
                    waiting = waiting[secure.send(waiting[: 1 << 16]) :]
                    idle = False
            if idle:
                select.select([secure], [secure] if waiting else [], [], 0.05)
        return bytes(received)

    peer = client(number, context, converse)
    port = house.port()
    house.until(lambda: "opened" in port.events)
    sent = 0

    def done():
        nonlocal sent
        if sent < len(message):
            piece = memoryview(message)[sent : sent + 100_000]
            sent += port.end.writev([piece[at : at + 3000] for at in range(0, len(piece), 3000)])
        return peer.over and len(port.received) == len(message)

    house.until(done, timeout=30)
    assert peer.error is None
    assert peer.result == message
    assert port.received == message


def test_our_close_is_a_clean_end(house, serve, credentials):
    _, number = serve(load(credentials["server"], "server"))
    peer = client(number, peer_context(credentials["client"], "client"), lambda secure: secure.recv(100))
    port = house.port()
    house.until(lambda: "opened" in port.events)
    port.end.close()
    peer.join()
    assert (peer.result, peer.error) == (b"", None)


def test_last_words_of_the_peer(house, serve, credentials):
    _, number = serve(load(credentials["server"], "server"))

    def converse(secure):
        secure.sendall(b"last words")
        secure.unwrap()

    peer = client(number, peer_context(credentials["client"], "client"), converse)
    port = house.port()
    house.until(lambda: "closed" in port.events)
    assert port.received == b"last words"
    port.end.close()
    peer.join()


def test_peer_that_vanishes_without_a_close_notify(house, serve, credentials):
    _, number = serve(load(credentials["server"], "server"))
    peer = client(number, peer_context(credentials["client"], "client"), lambda secure: secure.sendall(b"cut"))
    port = house.port()
    house.until(lambda: "closed" in port.events)
    assert port.received == b"cut"
    peer.join()


@pytest.mark.parametrize(
    ("directory", "certificate", "reason"),
    [
        ("client", False, "peer did not return a certificate"),
        ("stranger", True, "self.signed certificate in certificate chain"),
    ],
)
def test_client_without_a_good_certificate(house, serve, credentials, caplog, directory, certificate, reason):
    _, number = serve(load(credentials["server"], "server"))
    context = peer_context(credentials[directory], "client", certificate)
    context.load_verify_locations(f"{credentials['server']}/ca-cert.pem")
    peer = client(number, context, lambda secure: secure.recv(100))
    port = house.port()
    house.until(lambda: "closed" in port.events)
    assert port.events == ["closed"]
    port.end.close()
    peer.join()
    assert isinstance(peer.error, OSError) or peer.result == b""
    assert re.search(f"TLS handshake: {reason}", caplog.text)


def test_verify_peer_off_takes_any_client(house, serve, credentials):
    _, number = serve(load(credentials["server"], "server", verify_peer=False))
    context = peer_context(credentials["client"], "client", certificate=False)
    peer = client(number, context, lambda secure: secure.sendall(b"hello"))
    port = house.port()
    house.until(lambda: port.received == b"hello")
    peer.join()


def test_revoked_client(house, serve, credentials, tmp_path, caplog):
    """An empty ca-crl.pem of another authority cannot vouch for anybody: with a list, nobody unlisted gets in."""
    place = tmp_path / "revoking"
    shutil.copytree(credentials["server"], place)
    authority = Authority(tmp_path / "ca", "other")
    (tmp_path / "index").touch()
    (tmp_path / "config").write_text(
        f"[ca]\ndefault_ca=d\n[d]\ndatabase={tmp_path}/index\ndefault_md=sha256\ndefault_crl_days=2\n"
    )
    openssl(
        "ca", "-gencrl", "-config", str(tmp_path / "config"), "-keyfile", str(tmp_path / "ca" / "ca.key"),
        "-cert", authority.certificate, "-out", str(place / "ca-crl.pem"),
    )  # fmt: skip
    _, number = serve(load(str(place), "server"))
    peer = client(number, peer_context(credentials["client"], "client"), lambda secure: secure.recv(100))
    port = house.port()
    house.until(lambda: port.events == ["closed"])
    port.end.close()
    peer.join()
    assert "unable to get certificate CRL" in caplog.text


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\x16\x03\x01\xff\xff" + b"x" * 70000])
def test_garbage_instead_of_a_handshake(house, serve, credentials, caplog, garbage):
    _, number = serve(load(credentials["server"], "server"))
    with socket.create_connection(("127.0.0.1", number), 10) as raw:
        port = house.port()
        raw.sendall(garbage)
        house.until(lambda: port.events == ["closed"])
    assert port.end.ended
    assert "TLS handshake: " in caplog.text


def test_slow_handshake(house, serve, credentials, monkeypatch, caplog):
    monkeypatch.setattr(layered_stream, "HANDSHAKE_SECONDS", 0.1)
    _, number = serve(load(credentials["server"], "server"))
    with socket.create_connection(("127.0.0.1", number), 10) as raw:
        port = house.port()
        raw.sendall(b"\x16\x03\x01\x02")
        house.until(lambda: port.events == ["closed"])
    assert "the handshake took more than 0.1 s" in caplog.text


@pytest.mark.parametrize(("split", "seconds"), [(1, 0)])
def test_handshake_byte_by_byte(house, serve, credentials, split, seconds):
    """A client whose every segment is one byte."""
    _, number = serve(load(credentials["server"], "server", verify_peer=False))
    context = peer_context(credentials["client"], "client", certificate=False)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", number), 10) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setblocking(False)
        port = house.port()
        done = False
        while "opened" not in port.events or not done:
            try:
                session.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            for byte in outgoing.read():
                raw.sendall(bytes([byte]))
                house.loop.run_once(0)
            try:
                incoming.write(raw.recv(65536))
            except BlockingIOError:
                house.loop.run_once(0.001)
        session.write(b"hello")
        raw.sendall(outgoing.read())
        house.until(lambda: port.received == b"hello")


def test_small_records_are_handled_a_few_at_a_time(credentials):
    loaded = load(credentials["server"], "server", verify_peer=False)
    files = loaded.open_files()
    layer = TlsLayer(make_context(loaded.description, files, check_hostname=False), server=True)
    for fd in files:
        os.close(fd)
    context = peer_context(credentials["client"], "client", certificate=False)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    while True:
        try:
            session.do_handshake()
            break
        except ssl.SSLWantReadError:
            layer.received(outgoing.read())
            incoming.write(bytes(layer.answers))
            layer.answers.clear()
    layer.received(outgoing.read())
    assert layer.established
    for number in range(1000):
        session.write(bytes([number % 256]))
    session.write(bytes(40_000))
    records = outgoing.read()
    got = [layer.received(records[:7]), layer.received(records[7:-9])]
    while layer.pending:
        got.append(layer.received(b""))
    got.append(layer.received(records[-9:]))
    assert b"".join(got) == bytes(number % 256 for number in range(1000)) + bytes(40_000)
    assert max(map(len, got[:60])) <= RECORDS


def test_a_client_that_changes_keys_without_end_holds_nobody_up(house, serve, credentials):
    """`K` makes openssl's client update its keys and ask for ours: 27 bytes that cost 0.1 ms."""
    _, number = serve(load(credentials["server"], "server", verify_peer=False))
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{number}", "-tls1_3"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, stdin=subprocess.PIPE, **quiet) as peer:
        try:
            port = house.port()
            house.until(lambda: "opened" in port.events)
            os.set_blocking(peer.stdin.fileno(), False)
            worst, end = 0.0, time.monotonic() + 1.5
            while time.monotonic() < end:
                with contextlib.suppress(BlockingIOError):
                    os.write(peer.stdin.fileno(), b"K\n" * 1000)
                before = time.thread_time()
                house.loop.run_once(0.001)
                worst = max(worst, time.thread_time() - before)
        finally:
            peer.kill()
    assert worst < 0.1


def test_websocket_on_tls(house, serve, credentials):
    chardev, number = serve(load(credentials["server"], "server"), websocket=True)

    def converse(secure):
        websocket = WebSocketClient(secure)
        websocket.request()
        status = websocket.response().status_code
        secure.sendall(frame(2, b"to the guest"))
        return status, websocket.receive()

    peer = client(number, peer_context(credentials["client"], "client"), converse)
    port = house.port()
    house.until(lambda: port.received == b"to the guest")
    port.write(b"to the host")
    house.until(lambda: peer.over)
    assert peer.result == (101, (2, b"to the host"))
    assert chardev.filename.startswith("websocket:127.0.0.1:")


def test_telnet_on_tls(house, serve, credentials):
    _, number = serve(load(credentials["server"], "server"), telnet=True)
    peer = client(number, peer_context(credentials["client"], "client"), lambda secure: read_exactly(secure, 12))
    port = house.port()
    house.until(lambda: peer.over)
    assert peer.result == bytes.fromhex("fffb01 fffb03 fffb00 fffd00")
    assert "opened" in port.events


class TestClient:
    @pytest.fixture
    def server(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(60)
            yield server

    def connect(self, house, server, tls, context, converse, host="127.0.0.1"):
        def run():
            raw, _ = server.accept()
            with raw, context.wrap_socket(raw, server_side=True) as secure:
                return converse(secure)

        peer = Peer(run)
        address = InetAddress(host, str(server.getsockname()[1]))
        house.open(SocketClientChardev("c", address, layers=SocketLayers(server=False, tls=tls)))
        return peer, house.port()

    def test_bytes_go_both_ways(self, house, server, credentials):
        context = peer_context(credentials["server"], "server")
        context.verify_mode = ssl.CERT_REQUIRED

        def converse(secure):
            secure.sendall(b"to the guest")
            return secure.getpeercert()["subject"], secure.recv(100)

        tls = load(credentials["client"], "client")
        peer, port = self.connect(house, server, tls, context, converse)
        house.until(lambda: port.received == b"to the guest")
        port.write(b"to the host")
        house.until(lambda: peer.over)
        assert peer.result == (((("commonName", "client"),),), b"to the host")

    @pytest.mark.parametrize(
        ("ours", "theirs", "reason"),
        [
            ("client", "elsewhere", "IP address mismatch, certificate is not valid for '127.0.0.1'"),
            ("stranger", "server", "self.signed certificate in certificate chain"),
        ],
    )
    def test_wrong_server(self, house, server, credentials, caplog, ours, theirs, reason):
        tls = load(credentials[ours], "client")
        context = peer_context(credentials[theirs], "server")
        peer, port = self.connect(house, server, tls, context, lambda secure: secure.recv(100))
        house.until(lambda: port.events == ["closed"])
        port.end.close()
        peer.join()
        assert re.search(f"TLS handshake: {reason}", caplog.text)

    def test_verify_peer_off_takes_any_server(self, house, server, credentials):
        tls = load(credentials["stranger"], "client", verify_peer=False)
        context = peer_context(credentials["elsewhere"], "server")
        peer, port = self.connect(house, server, tls, context, lambda secure: secure.sendall(b"hello"))
        house.until(lambda: port.received == b"hello")
        peer.join()


class TestCredentials:
    def test_missing_file(self, credentials):
        with pytest.raises(ConfigError) as caught:
            load(credentials["client"], "server")
        path = f"{credentials['client']}/server-cert.pem"
        assert str(caught.value) == f"Unable to access credentials {path}: No such file or directory"

    def test_client_needs_no_certificate_of_its_own(self, credentials):
        assert set(load(credentials["server"], "client").contents) == {"ca-cert"}

    def test_no_certificates_at_all(self, tmp_path):
        (tmp_path / "ca-cert.pem").write_text("nonsense")
        with pytest.raises(ConfigError, match=r"TLS credentials: .*no certificate"):
            load(str(tmp_path), "client")

    def test_key_of_another_certificate(self, credentials, tmp_path):
        place = tmp_path / "mixed"
        shutil.copytree(credentials["server"], place)
        shutil.copy(f"{credentials['elsewhere']}/server-key.pem", place)
        with pytest.raises(ConfigError, match="key values mismatch"):
            load(str(place), "server")

    def test_encrypted_key_is_refused_without_asking(self, credentials, tmp_path):
        place = tmp_path / "encrypted"
        shutil.copytree(credentials["server"], place)
        key = str(place / "server-key.pem")
        openssl("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", key + ".new")
        shutil.move(key + ".new", key)
        with pytest.raises(ConfigError, match="the key is encrypted"):
            load(str(place), "server")

    def test_file_that_is_too_large(self, tmp_path):
        (tmp_path / "ca-cert.pem").write_bytes(bytes(2 << 20))
        with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
            load(str(tmp_path), "client")

    def test_fifo_is_refused_and_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "ca-cert.pem")
        with pytest.raises(ConfigError, match=r"credentials .*/ca-cert\.pem: not a regular file"):
            load(str(tmp_path), "client")

    def test_endpoint(self, credentials):
        with pytest.raises(ConfigError) as caught:
            load(credentials["client"], "client").check_endpoint(server=True)
        assert str(caught.value) == "Expected TLS credentials for a server endpoint"

    def test_the_keeper_does_not_load_openssl(self, credentials):
        program = (
            "import sys\nfrom virtserial.chardev.tls_credentials import TlsCredentials\n"
            f"TlsCredentials.load('t', {credentials['server']!r}, 'server', True)\nprint('ssl' in sys.modules)"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout == "False\n"
