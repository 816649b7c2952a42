"""Back ends that are more than one descriptor, through keeper and worker: hub, mux, websocket, logfile, udp."""

import contextlib
import os
import signal
import socket
import tty

import pytest
from support.device_process import connect, controller_options, port_options
from support.embedded_guest import EmbeddedGuest, try_receive
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient
from virtserial.options.chardev_options import kinds


@pytest.fixture
def server(folder):
    """Options of a listening chardev."""

    def server(name, more=""):
        return ["-chardev", f"socket,id={name},path={folder}/{name},server=on,wait=off{more}"]

    return server


def port(name, chardev, driver="virtserialport"):
    return ["-device", f"{driver},chardev={chardev},name={name}"]


def kill_worker(device):
    worker = device.worker
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: device.worker not in (None, worker))


def receive(guest, sock, count):
    """Bytes that come while the guest goes on."""
    sock.setblocking(False)
    data = bytearray()

    def complete():
        try:
            data.extend(sock.recv(count - len(data)))
        except BlockingIOError:
            return False
        return len(data) >= count

    guest.run_until(complete)
    return bytes(data)


def test_mux_of_two_ports(start, folder, server):
    device = start(
        *controller_options(folder), *server("m", ",mux=on"), *port("one", "m"), *port("two", "m")
    )
    with EmbeddedGuest(f"{folder}/ser0.sock", "one", "two") as guest, connect(folder / "m") as host:
        one, two = guest.open("one"), guest.open("two")
        guest.run_until(lambda: one.port.host_connected and two.port.host_connected)
        one.port.write(b"1")
        assert receive(guest, host, 1) == b"1"
        two.port.write(b"2")
        assert receive(guest, host, 1) == b"2"
        host.send(b"to two\x01cto one")
        guest.run_until(lambda: (one.data, two.data) == (b"to one", b"to two"))
        kill_worker(device)
        host.send(b"\x01cto one again")  # the successor begins with the last port in focus
        guest.run_until(lambda: one.data == b"to oneto one again")
        one.port.write(b"still")
        assert receive(guest, host, 5) == b"still"
        host.close()
        guest.run_until(lambda: not one.port.host_connected and not two.port.host_connected)
        with connect(folder / "m") as host:
            guest.run_until(lambda: one.port.host_connected and two.port.host_connected)


@pytest.mark.parametrize("quits", [True, False])
def test_ctrl_a_x(start, folder, server, quits):
    device = start(
        *controller_options(folder), *server("m", ",mux=on" + ",mux-quit=on" * quits), *port("one", "m")
    )
    with EmbeddedGuest(f"{folder}/ser0.sock", "one") as guest, connect(folder / "m") as host:
        one = guest.open("one")
        guest.run_until(lambda: one.port.host_connected)
        host.send(b"\x01xafter")
        if quits:
            assert receive(guest, host, 24) == b"virtserial: Terminated\n\r"
            assert device.process.wait(60) == 0
        else:
            guest.run_until(lambda: one.data == b"after")


def test_hub_of_a_socket_a_file_and_a_udp_peer(start, folder, server):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(60)
        device = start(
            *controller_options(folder),
            *server("a"),
            *("-chardev", f"file,id=f,path={folder}/copy"),
            *("-chardev", f"udp,id=u,host=127.0.0.1,port={peer.getsockname()[1]}"),
            *("-chardev", "hub,id=h,chardevs.0=a,chardevs.1=f,chardevs.2=u"),
            *port("one", "h"),
        )
        with EmbeddedGuest(f"{folder}/ser0.sock", "one") as guest:
            one = guest.open("one")
            guest.run_until(lambda: one.port.host_connected)
            one.port.write(b"first ")
            assert peer.recv(100) == b"first "
            with connect(folder / "a") as host:
                host.send(b"from a")
                guest.run_until(lambda: one.data == b"from a")
                one.port.write(b"second ")
                assert receive(guest, host, 7) == b"second "
                datagram, place = peer.recvfrom(100)
                assert datagram == b"second "
                kill_worker(device)
                peer.sendto(b"from udp", place)
                guest.run_until(lambda: one.data.endswith(b"from udp"))
                one.port.write(b"third")
                assert receive(guest, host, 5) == b"third"
            assert (folder / "copy").read_bytes() == b"first second third"
            assert one.port.host_connected


def test_websocket_is_connected_after_its_handshake_and_ended_by_a_takeover(start, folder, server):
    device = start(*controller_options(folder), *server("w", ",websocket=on"), *port("one", "w"))
    request = (
        b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with EmbeddedGuest(f"{folder}/ser0.sock", "one") as guest:
        one = guest.open("one")
        for _ in range(2):
            with connect(folder / "w") as host:
                for _ in range(20):
                    guest.loop.run_once(0.005)
                assert not one.port.host_connected
                host.send(request)
                guest.run_until(lambda: one.port.host_connected)
                assert host.recv(1000).startswith(b"HTTP/1.1 101 ")
                one.port.write(b"hello")
                assert receive(guest, host, 7) == b"\x82\x05hello"
                kill_worker(device)
                guest.run_until(lambda: not one.port.host_connected)
                host.setblocking(True)
                assert host.recv(10) == b""


def test_log_of_a_console_that_nobody_is_connected_to(start, folder, server):
    device = start(
        *controller_options(folder), *server("c", f",logfile={folder}/log"), *port("con", "c", "virtconsole")
    )
    with EmbeddedGuest(f"{folder}/ser0.sock", "con") as guest:
        console = guest.open("con").port
        console.write(b"booting ")
        guest.run_until(lambda: (folder / "log").read_bytes() == b"booting ")
        with connect(folder / "c") as host:
            host.setblocking(False)

            def heard():
                console.write(b"x")
                return try_receive(host)

            guest.run_until(heard)
        kill_worker(device)
        console.write(b" end")
        guest.run_until(lambda: (folder / "log").read_bytes().endswith(b" end"))
    written = (folder / "log").read_bytes()
    assert written == b"booting " + b"x" * (len(written) - 12) + b" end"


ECHO = """
from virtserial.chardev.handler import PortHandler

class Echo(PortHandler):
    def have_data(self, buffer):
        return self.port.write(buffer)
"""


@contextlib.contextmanager
def far_end(kind, folder):
    """Yield (options after the kind's name, what gives what the guest wrote, what the guest is sent)."""
    if kind in ("pipe", "serial"):
        if kind == "pipe":
            for way in ("in", "out"):
                os.mkfifo(f"{folder}/f.{way}")
            reading, writing = (os.open(f"{folder}/f.{way}", os.O_RDWR | os.O_NONBLOCK) for way in ("out", "in"))
            path = f"{folder}/f"
        else:
            reading, line = os.openpty()
            writing, path = reading, os.ttyname(line)
            tty.setraw(line)
        os.set_blocking(reading, False)
        yield f",path={path}", lambda: read_some(reading), lambda data: os.write(writing, data)
        os.close(reading)
    elif kind == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            peer.setblocking(False)
            place = []

            def received():
                with contextlib.suppress(BlockingIOError):
                    data, address = peer.recvfrom(100)
                    place.append(address)
                    return data
                return b""

            yield (
                f",host=127.0.0.1,port={peer.getsockname()[1]}", received, lambda data: peer.sendto(data, place[0])
            )
    elif kind == "file":
        yield f",path={folder}/f", (folder / "f").read_bytes, None
    elif kind == "handler":
        (folder / "echo.py").write_text(ECHO)
        yield f",path={folder}/echo.py", None, None
    else:
        yield "", None, None


def read_some(fd):
    try:
        return os.read(fd, 100)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize("kind", sorted({*kinds()} - {"socket", "pty", "hub", "stdio"}))
def test_every_kind_moves_bytes_in_a_confined_worker(start, folder, kind):
    """Sockets, terminals and hubs do in every other test; standard input and output in tests/monitor."""
    with far_end(kind, folder) as (options, received, send):
        device = start(
            *controller_options(folder), *port_options(folder, "a"), "-chardev", f"{kind}{options},id=c",
            "-device", "virtserialport,nr=2,chardev=c,name=c", "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
        )  # fmt: skip
        with EmbeddedGuest(folder / "ser0.sock", "a", "c") as guest, QmpClient(f"{folder}/qmp", 30) as monitor:
            port = guest.open("c")
            if kind != "null":
                guest.run_until(lambda: port.port.host_connected)
            taken = bytearray()

            def take(text):
                if kind in ("ringbuf", "memory"):
                    taken.extend(monitor.execute("ringbuf-read", {"device": "c", "size": 9}).encode())
                elif kind == "handler":
                    return port.data.endswith(text)
                elif kind != "null":
                    taken.extend(received())
                return kind == "null" or taken.endswith(text)

            def move(text):
                port.port.write(text)
                guest.run_until(lambda: take(text))
                if send is not None:
                    send(text)
                    guest.run_until(lambda: port.data.endswith(text))

            move(b"one")
            move(b"two")
            guest.check_port("a", folder / "a", 10_000)
        assert device.log == ""
