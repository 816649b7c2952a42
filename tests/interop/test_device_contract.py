"""What the host's side relies on: who is connected when, back-pressure, what is kept and what is discarded."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
import tty
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.guests.exchange import exchange, socket_port
from support.guests.guest_side import PORT_HELPERS
from support.guests.host_end import HostEnd
from support.rounds import rounds
from support.waiting import wait_until

from virtserial.rig import Guest, GuestError

PORTS = [f"org.test.{n}" for n in range(1, 11)]
# Chardev kinds a port can have, and whether the guest sees the host connected from the start.
CONNECTED_AT_START = {
    "file": True,
    "ringbuf": True,
    "pipe": True,
    "udp": True,
    "socket-client": True,
    "socket-server": False,
    "pty": False,
    "null": False,
    "none": False,
}
BLOCK = 32768
LAST = b"the last"


def kind_options(kind, device_folder):
    """The chardev options of each kind; the port without a chardev has none."""
    return {
        "file": f"file,path={device_folder}/file",
        "ringbuf": "ringbuf,size=4096",
        "pipe": f"pipe,path={device_folder}/pipe",
        "udp": "udp,host=127.0.0.1,port=9",
        "socket-client": f"socket,path={device_folder}/listener",
        "socket-server": f"socket,path={device_folder}/socket-server,server=on,wait=off",
        "pty": f"pty,path={device_folder}/pty",
        "null": "null",
    }.get(kind)


@pytest.fixture(scope="module")
def listener(device_folder):
    """The other end of the chardev that connects as a client."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{device_folder}/listener")
        listening.listen()
        yield listening


@pytest.fixture(scope="module")
def guest(host_device, device_folder, listener):
    os.mkfifo(f"{device_folder}/pipe.in")
    os.mkfifo(f"{device_folder}/pipe.out")
    options = ["-device", "virtio-serial,id=ser0,max_ports=31"]
    for number in range(2):
        options += ["-chardev", f"socket,id=con{number},path={device_folder}/con{number},server=on,wait=off"]
        options += ["-device", f"virtconsole,chardev=con{number},nr={number},id=console{number},bus=ser0.0"]
    for number, name in enumerate(PORTS, 2):
        options += socket_port(number, name, f"{device_folder}/{name}", "ser0")
    options += ["-device", "virtio-serial,id=ser1,max_ports=16"]
    kinds = [kind for kind in CONNECTED_AT_START if kind not in host_device.chardevs_to_come]
    for number, kind in enumerate(kinds, 1):
        backend = kind_options(kind, device_folder)
        port = f"virtserialport,nr={number},name={kind},bus=ser1.0"
        if backend:
            options += ["-chardev", f"{backend},id={kind}"]
            port += f",chardev={kind}"
        options += ["-device", port]
    with ExitStack() as stack:
        # A pipe's ends open without waiting only if somebody holds the other side.
        for name in ("pipe.in", "pipe.out"):
            stack.callback(os.close, os.open(f"{device_folder}/{name}", os.O_RDWR))
        attached = stack.enter_context(host_device.attach(options))
        yield stack.enter_context(Guest(attached.arguments))


@pytest.fixture
def app(guest):
    """An application in the guest."""
    with guest.session() as session:
        session(PORT_HELPERS)
        yield session


@pytest.fixture(scope="module")
def unused_ports(guest):
    """Ports of this guest, each for one test."""
    return iter(PORTS)


@pytest.fixture
def port(unused_ports):
    """The name of a port that no other test uses."""
    return next(unused_ports)


@pytest.fixture
def connect(device_folder):
    """Connects to a port's or console's host socket; all are closed at the end."""
    with ExitStack() as stack:

        def connect(name):
            end = HostEnd(f"{device_folder}/{name}")
            stack.callback(end.close)
            return end

        yield connect


@pytest.mark.parametrize(("kind", "connected"), CONNECTED_AT_START.items())
def test_host_is_connected_from_the_start(host_device, device_folder, app, kind, connected):
    if kind in host_device.chardevs_to_come:
        options = ["-device", "virtio-serial", "-chardev", f"{kind_options(kind, device_folder)},id={kind}"]
        with pytest.raises(AssertionError, match="is not supported"), host_device.attach(options):
            pass
        return
    assert app(f"debug({kind!r}, 'host_connected')") == str(int(connected))


def test_pty_is_connected_while_its_other_end_is_open(app, device_folder):
    other_end = os.open(f"{device_folder}/pty", os.O_RDWR | os.O_NOCTTY)
    try:
        tty.setraw(other_end)
        app("until(lambda: debug('pty', 'host_connected') == '1')")
        app("fd = open_port('pty'); os.write(fd, b'to the terminal')")
        assert os.read(other_end, 100) == b"to the terminal"
        os.write(other_end, b"from the terminal")
        assert app("read_exactly(fd, 17)") == b"from the terminal"
    finally:
        os.close(other_end)
    app("until(lambda: debug('pty', 'host_connected') == '0')")


def test_file_takes_what_the_guest_writes(app, device_folder):
    app("os.write(open_port('file'), b'a line for the file\\n')")
    wait_until(lambda: Path(f"{device_folder}/file").read_bytes() == b"a line for the file\n")


def test_pipe_carries_both_ways(app, device_folder):
    app("fd = open_port('pipe'); os.write(fd, b'out')")
    pipe = device_folder / "pipe"
    with open(f"{pipe}.out", "rb", buffering=0) as out, open(f"{pipe}.in", "wb", buffering=0) as into:
        assert out.read(3) == b"out"
        into.write(b"into the guest")
        assert app("read_exactly(fd, 14)") == b"into the guest"


def test_socket_client_carries_both_ways(app, listener):
    connection, _ = listener.accept()
    with connection:
        app("fd = open_port('socket-client'); os.write(fd, b'out')")
        assert connection.recv(10) == b"out"
        connection.sendall(b"in")
        assert app("read_exactly(fd, 2)") == b"in"


def test_host_data_waits_until_the_guest_opens(app, port, connect):
    end = connect(port)
    end.send(b"early " * 1000)
    time.sleep(0.3)
    app(f"fd = open_port({port!r})")
    assert app("read_exactly(fd, 6000)") == b"early " * 1000


def test_data_queued_by_the_guest_before_it_closes_is_delivered(app, port, connect):
    end = connect(port)
    count = app(f"fd = open_port({port!r}); until(lambda: 'OUT' in events(fd)); count = fill(fd); os.close(fd); count")
    assert count > 300_000
    time.sleep(0.3)
    assert end.receive(count) == b"".join(bytes([n % 251]) * 4096 for n in range(count // 4096))
    assert end.silent()


def test_blocked_host_throttles_the_guest_and_nothing_is_lost(app, port, connect):
    end = connect(port)
    app.begin(f"""
import hashlib
digest = hashlib.sha1()
fd = open_port({port!r})
for n in range(256):
    block = os.urandom(32768)
    digest.update(block)
    while block:
        block = block[os.write(fd, block):]
digest.hexdigest()
""")
    with pytest.raises(GuestError, match="did not write"):
        app.finish(timeout=1.5)
    received = end.receive(256 * BLOCK)
    assert hashlib.sha1(received).hexdigest() == app.finish()
    assert end.silent()


def test_host_that_leaves_while_the_guest_is_throttled_frees_the_guest(app, port, connect):
    """QEMU up to 10.0 loses the throttled chain here, and the guest's writer never comes back."""
    app(f"fd = open_port({port!r})")
    for _ in range(5):
        end = connect(port)
        app("until(lambda: 'OUT' in events(fd))")
        assert app("fill(fd)") > 300_000
        end.close()
        app("until(lambda: events(fd) == {'IN', 'HUP'})")
        with pytest.raises(GuestError, match="EAGAIN"):
            app("os.write(fd, b'x')")
    end = connect(port)
    app("until(lambda: 'OUT' in events(fd)); os.write(fd, b'fresh after the last')")
    assert end.receive(20) == b"fresh after the last"
    assert end.silent()


def test_writer_goes_on_over_reconnects_with_whole_blocks(guest, app, port, connect):
    """Blocks may be lost with the host that left, but a new host never gets a part of one or an old one."""
    app(f"fd = open_port({port!r})")
    app.begin(f"""
import struct
n = 0
while not os.path.exists('/tmp/enough'):
    assert os.write(fd, struct.pack('<I', n) * {BLOCK // 4}) == {BLOCK}
    n += 1
assert os.write(fd, {LAST!r}) == {len(LAST)}
os.close(fd)
""")
    last = -1
    for _ in range(10):
        end = connect(port)
        # 40 whole blocks and a part of one, then gone in the middle of the guest's writing.
        data = end.receive(40 * BLOCK + 1000)
        end.close()
        numbers = [struct.unpack_from("<I", data, start)[0] for start in range(0, 41 * BLOCK, BLOCK)]
        assert data == b"".join(struct.pack("<I", n) * (BLOCK // 4) for n in numbers)[: len(data)]
        assert numbers == list(range(numbers[0], numbers[0] + 41))
        assert numbers[0] > last
        last = numbers[-1]
    end = connect(port)
    end.receive(BLOCK)  # the device has taken the connection: nothing is lost any more
    guest.check("touch /tmp/enough")
    end.receive_until(LAST)
    app.finish()


def test_guest_data_for_an_absent_host_is_discarded(app, connect):
    """A console always looks connected to the guest, so it is where data can meet an absent host."""
    app("""
import tty
console = os.open('/dev/hvc1', os.O_RDWR | os.O_NOCTTY)
tty.setraw(console)
os.write(console, b'nobody hears this')
""")
    time.sleep(0.3)
    end = connect("con1")
    received = b""
    while b"this is heard" not in received:
        app("os.write(console, b'this is heard')")  # what comes before the device has taken the connection goes too
        received += end.receive_some(0.3)
    assert received.startswith(b"this is heard")
    app("os.close(console)")


def test_console_never_throttles_the_guest(app, connect):
    """A guest's kernel that prints must not hang because nobody reads: what the host does not take is dropped."""
    end = connect("con1")
    app("""
import tty
console = os.open('/dev/hvc1', os.O_RDWR | os.O_NOCTTY)
tty.setraw(console)
for _ in range(32):
    os.write(console, b'x' * 4096)
import termios
termios.tcdrain(console)
""", timeout=60)
    app("os.write(console, b'THE END'); os.close(console)")
    assert end.receive(1) == b"x"


@pytest.fixture
def logins(guest):
    """agetty on both consoles, as a distribution runs it."""
    for number in (0, 1):
        guest.check(f"setsid agetty -L hvc{number} 115200 vt100")
    yield
    guest.run("for process in $(ps -o pid,tty | awk '$2 ~ /^229,/ {print $1}'); do kill -9 $process; done")


def log_in(end):
    end.send(b"\n")
    end.receive_until(b"guest login: ")
    end.send(b"root\n")
    end.receive_until(b"Password: ")
    end.send(b"virtserial\n")
    end.receive_until(b"# ")


def test_login_on_two_consoles_at_once_while_ports_carry_data(guest, logins, connect, device_folder, unused_ports):
    consoles = [connect(f"con{n}") for n in (0, 1)]
    for end in consoles:
        log_in(end)
    exchange(guest, {name: f"{device_folder}/{name}" for name in (next(unused_ports), next(unused_ports))}, mib=4)
    for number, end in enumerate(consoles):
        end.send(b"echo $(tty) $((6 * 7))\n")
        end.receive_until(f"/dev/hvc{number} 42".encode())


def test_much_each_way_on_two_ports_at_once(guest, device_folder, unused_ports):
    sockets = {name: f"{device_folder}/{name}" for name in (next(unused_ports), next(unused_ports))}
    exchange(guest, sockets, mib=rounds(4, 12), block_bytes=4 << 20, timeout=240)
