"""tp-qemu's scenarios of ports and consoles that are there from the start (docs/tp-qemu.md)."""

from __future__ import annotations

import os
import socket
import time
import tty
from contextlib import suppress
from itertools import pairwise

import pytest
from support.guests.guest_side import PORT_HELPERS
from support.guests.host_end import HostEnd
from support.guests.scenario import machine, opened_session, transfer
from support.rounds import LONG_RUN, rounds
from support.waiting import wait_until


@pytest.fixture(scope="module")
def tcp_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def guest(starter, starter_folder, tcp_port):
    """Two controllers, with ports on every kind of host end and consoles, as tp-qemu spreads them."""
    sockets = ("unix", "second", "third", "fourth")
    ends = {name: f"socket,path={starter_folder}/{name},server=on,wait=off" for name in sockets}
    ends |= {
        "tcp": f"socket,host=127.0.0.1,port={tcp_port},server=on,wait=off",
        "pty": f"pty,path={starter_folder}/pty",
        "tight": f"socket,path={str(starter_folder)[1:]}/tight,abstract=on,tight=on,server=on,wait=off",
        "loose": f"socket,path={str(starter_folder)[1:]}/loose,abstract=on,tight=off,server=on,wait=off",
    }
    options = ["-device", "virtio-serial-pci,id=ser0", "-device", "virtio-serial-pci,id=ser1"]
    for place, (name, end) in enumerate(ends.items()):
        kind, _, rest = end.partition(",")
        options += ["-chardev", f"{kind},id=chr-{name},{rest}"]
        options += ["-device", f"virtserialport,bus=ser{place % 2}.0,chardev=chr-{name},name={name},id={name}"]
    for place in range(2):
        options += ["-chardev", f"socket,id=con{place},path={starter_folder}/con{place},server=on,wait=off"]
        options += ["-device", f"virtconsole,bus=ser{place}.0,chardev=con{place}"]
    with machine(starter, options) as guest:
        yield guest


@pytest.fixture
def app(guest):
    session = opened_session(guest)
    yield session
    session.close()


def connect(kind, starter_folder, tcp_port):
    """A host's end of any kind, as a socket or terminal with sendall and recv."""
    if kind == "pty":
        return Terminal(f"{starter_folder}/pty")
    if kind == "tcp":
        return socket.create_connection(("127.0.0.1", tcp_port), timeout=60)
    end = socket.socket(socket.AF_UNIX)
    end.settimeout(60)
    name = f"{str(starter_folder)[1:]}/{kind}"
    addresses = {"tight": f"\0{name}", "loose": f"\0{name}".ljust(108, "\0")}
    end.connect(addresses.get(kind, f"{starter_folder}/{kind}"))
    return end


@pytest.fixture
def host_end(starter_folder, tcp_port):
    """Makes host ends: HostEnd on a unix socket by name, or `connect` by kind; all are closed afterwards."""
    ends = []

    def make(name, kind=None):
        ends.append(connect(kind, starter_folder, tcp_port) if kind else HostEnd(f"{starter_folder}/{name}"))
        return ends[-1]

    yield make
    for end in ends:
        end.close()


class Terminal:
    """A pty with a socket's calls."""

    def __init__(self, path):
        self._fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._fd)

    def sendall(self, data):
        while data:
            data = data[os.write(self._fd, data) :]

    def recv(self, count):
        return os.read(self._fd, count)

    def close(self):
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


@pytest.mark.parametrize("kind", ["unix", "tcp", "pty", "tight", "loose"])
def test_a_file_goes_both_ways(app, host_end, kind):
    """virtio_serial_file_transfer over unix_socket, tcp_socket, pty and abstract sockets."""
    size = 200_000
    content = os.urandom(size)
    end = host_end(kind, kind)
    app(f"fd = open_port('{kind}'); until(lambda: 'OUT' in events(fd))")
    app.begin(f"data = read_exactly(fd, {size}); len(data)")
    end.sendall(content)
    assert app.finish(60) == size
    app.begin("rest = memoryview(data)\nwhile rest:\n    rest = rest[os.write(fd, rest):]\nos.close(fd)")
    back = bytearray()
    while len(back) < size and (piece := end.recv(1 << 16)):
        back += piece
    app.finish(60)
    end.close()
    assert bytes(back) == content


def test_all_ports_of_both_controllers_at_once(guest, starter_folder):
    """boot_with_multiple_virtserialports N_M; basic_loopback."""
    names = ("unix", "second", "third", "fourth")
    transfer(guest, {name: f"{starter_folder}/{name}" for name in names}, mib=rounds(1, 2))


@pytest.mark.parametrize("sizes", [(4, 2, 4, 8), (16384, 2048, 4096, 8192)], ids=["small", "big"])
def test_one_port_is_looped_to_three(app, host_end, sizes):
    """loopback serialport_small and serialport_big: one is sent to, three repeat it, each with a buffer of its own."""
    first, *others = "unix", "second", "third", "fourth"
    ends = {name: host_end(name) for name in (first, *others)}
    total = sizes[0] * 5  # what the others' sockets take while nobody reads them
    app(f"source = open_port('{first}'); targets = [open_port(name) for name in {others!r}]")
    app("until(lambda: all('OUT' in events(fd) for fd in [source, *targets]))")
    app.begin(
        f"count = 0\n"
        f"while count < {total}:\n"
        f"    data = os.read(source, {sizes[3]})\n"
        f"    count += len(data)\n"
        f"    for fd in targets:\n"
        f"        assert os.write(fd, data) == len(data)"
    )
    content = os.urandom(total)
    for start in range(0, total, sizes[0]):
        ends[first].send(content[start : start + sizes[0]])
    for name in others:
        assert ends[name].receive(total) == content
    app.finish(60)
    app("for fd in [source, *targets]: os.close(fd)")


def test_console_is_opened_twice(app):
    """multi_open: passes on a console."""
    app("both = [os.open('/dev/hvc0', os.O_RDWR | os.O_NOCTTY) for _ in range(2)]")
    app("for fd in both: os.close(fd)")


def test_seeking_is_refused(app):
    """lseek."""
    source = """
fd = open_port('second')
try:
    os.lseek(fd, 0, 0)
    refused = ''
except OSError as error:
    refused = errno.errorcode[error.errno]
os.close(fd)
"""
    app("import errno")
    app(source)
    assert app("refused") == "ESPIPE"


def test_much_is_written_while_the_host_is_away(app, host_end):
    """rw_host_offline, rw_host_offline_big_data, serial_no_listening: the writer waits, and nothing of it is lost."""
    app("import threading; fd = open_port('second'); block = os.urandom(1 << 15); sent = []")
    app("until(lambda: 'HUP' in events(fd))")
    assert app("os.read(fd, 10)") == b""
    app(
        "def write():\n    for n in range(32):\n        sent.append(os.write(fd, block))\n"
        "thread = threading.Thread(target=write); thread.start(); time.sleep(0.5)"
    )
    assert app("len(sent)") == 0
    end = host_end("second")
    received = end.receive(1 << 20)
    app("thread.join(); os.close(fd)")
    assert app("sum(sent)") == 1 << 20
    assert received == app("block") * 32
    end.close()


def test_host_sends_to_a_port_that_nobody_reads(app, host_end):
    """rw_notconnect_guest: as much as fits, the same again after an open and close, and the first of it arrives."""
    end = host_end("third")
    end.socket.settimeout(0.5)

    def send():
        sent = 0
        try:
            while sent < 1 << 24:
                sent += end.socket.send(b"a" * 4096)
        except TimeoutError:
            return sent
        raise AssertionError("16 MiB were taken for a port that is closed")

    assert send() > 0
    app("os.close(open_port('third'))")
    send()
    app("fd = open_port('third')")
    assert app("os.read(fd, 10)") == b"a" * 10
    app("os.close(fd)")
    end.close()


@pytest.mark.parametrize("sender", ["guest", "host"])
def test_an_empty_line_is_one_byte(app, host_end, sender):
    """virtio_serial_empty_line, with the driver's own counters."""
    end = host_end("fourth")
    app("fd = open_port('fourth'); until(lambda: 'OUT' in events(fd))")
    field = "bytes_sent" if sender == "guest" else "bytes_received"
    before = int(app(f"debug('fourth', '{field}')"))
    if sender == "guest":
        app("os.write(fd, b'\\n')")
        assert end.receive(1) == b"\n"
    else:
        end.send(b"\n")
        assert app("read_exactly(fd, 1)") == b"\n"
    assert int(app(f"debug('fourth', '{field}')")) == before + 1
    app("os.close(fd)")
    end.close()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_host_that_reads_nothing_throttles_and_harms_nobody(guest, app, host_end, starter_folder, kind):
    """virtio_serial_throttling."""
    end = host_end(kind, kind)
    app(f"fd = open_port('{kind}'); until(lambda: 'OUT' in events(fd)); os.write(fd, bytes(1024)); count = fill(fd)")
    end.sendall(b"Hello world \n" * 100)
    assert app("os.set_blocking(fd, True); read_exactly(fd, 1300)") == b"Hello world \n" * 100
    transfer(guest, {"fourth": f"{starter_folder}/fourth"})
    expected = 1024 + app("count")
    received = 0
    while received < expected:
        received += len(end.recv(1 << 16))
    assert received == expected
    app("os.close(fd)")
    end.close()


def test_host_disconnects_during_transfers(app, host_end):
    """interrupted_transfer port_disconnect: twenty times; every part that came is of one piece."""
    app("import threading; fd = open_port('second'); going = True")
    app(
        "def write():\n    n = 0\n    while going:\n        os.write(fd, n.to_bytes(4, 'big') * 256); n += 1\n"
        "thread = threading.Thread(target=write); thread.start()"
    )
    last = -1
    for _ in range(20):
        end = host_end("second")
        received = end.receive(64 << 10)
        end.close()
        numbers = [int.from_bytes(received[at : at + 4], "big") for at in range(0, len(received) - 3, 4)]
        # Within a connection nothing is lost or doubled; between two, what was on its way may be.
        assert all(later - earlier in (0, 1) for earlier, later in pairwise(numbers)), numbers
        assert numbers[0] >= last
        last = numbers[-1]
    end = host_end("second")
    app("going = False")
    end.socket.setblocking(False)

    def has_ended():
        # Its last write may wait for the host to read.
        with suppress(BlockingIOError):
            while end.socket.recv(1 << 20):
                pass
        return not app("thread.is_alive()")

    wait_until(has_ended, 30)
    app("os.close(fd)")
    end.close()


def test_a_port_is_no_terminal(guest):
    """virtio_port_login virtio_serial: no login by agetty there, as there is on consoles."""
    result = guest.run("stty </dev/virtio-ports/fourth")
    assert result.status != 0
    assert "Inappropriate ioctl for device" in result.text
    if LONG_RUN:  # agetty waits for ten seconds before it ends
        node = guest.check("basename $(readlink -f /dev/virtio-ports/fourth)")
        assert guest.run(f"agetty -L 115200 {node} xterm", timeout=60).status != 0


def test_driver_is_unloaded_and_loaded(guest, starter_folder):
    """rmmod."""
    for _ in range(rounds(1, 3)):
        guest.check("rmmod virtio_console")
        assert guest.run("ls /dev/vport*").status != 0
        guest.check("modprobe virtio_console")
        transfer(guest, {name: f"{starter_folder}/{name}" for name in ("unix", "second")})


def test_machine_is_reset_while_ports_carry_data(guest, host_end, starter_folder):
    """vioser_in_use, win_virtio_serial_data_transfer_reboot in their Linux form."""
    ends = [host_end(name) for name in ("unix", "second")]
    guest.start("exec cat /dev/zero >/dev/virtio-ports/unix")
    ends[1].socket.setblocking(False)
    assert ends[0].receive(100_000) == bytes(100_000)
    before = guest.channel.boot_id
    guest.monitor("system_reset")
    guest.channel.wait_for_boot(180, before)
    for end in ends:
        end.close()
    time.sleep(0.1)
    session = guest.session()
    session(PORT_HELPERS)
    session.close()
    transfer(guest, {name: f"{starter_folder}/{name}" for name in ("unix", "second")})
