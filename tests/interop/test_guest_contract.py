"""What an application in a Linux guest relies on: names, opening, reading, writing, polling, signals, plugging.

Every test runs in eight cells, one boot each: {QEMU's device, ours} x {Linux's driver, the same by the legacy
interface, the same with packed rings, ours by CUSE}; every test takes a port of its own.  The legacy interface and
packed rings are slow: VIRTSERIAL_SLOW=1 runs them; test_legacy.py and test_configurations.py have the
ordinary run's.
`PYTHONPATH=tests python3 -m support.guests.contract_table` prints the table of docs/features.md.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time

import pytest
from support.guests.exchange import exchange, socket_port
from support.guests.guest_driver import CuseDriver, LegacyDriver, LinuxDriver, PackedDriver
from support.guests.guest_side import PORT_HELPERS
from support.guests.host_end import HostEnd
from support.guests.plugging import host_monitor, hot_plugged

from virtserial.conformance.driver_contract import DRIVER_CONTRACT
from virtserial.rig import Guest, GuestError

pytestmark = pytest.mark.foreign_bug(
    "docs/guest-driver.md: under TCG with a vIOMMU a guest corrupts its own memory on QEMU's device", case="qemu-cuse"
)
PORTS = [f"org.test.{n}" for n in range(1, 25)]
EXTRA = "org.test.second-controller"
MUCH_MIB = int(os.environ.get("VIRTSERIAL_TRANSFER_MIB", "8"))
"""100 for the table of docs/features.md."""
DRIVERS = {"linux": LinuxDriver(), "legacy": LegacyDriver(), "packed": PackedDriver(), "cuse": CuseDriver()}
SLOW = ("legacy", "packed")
DRIVER_NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in DRIVERS]
linux_only = pytest.mark.parametrize("guest_driver", DRIVER_NAMES[:-1], indirect=True, scope="module")
"""For what CUSE cannot do (docs/deviations.md)."""


class Port:
    """A port of its own for one test."""

    def __init__(self, name, path):
        self.name = name
        self.path = path
        self._ends = []

    def connect(self):
        end = HostEnd(self.path)
        self._ends.append(end)
        return end

    def close(self):
        for end in self._ends:
            end.close()


@pytest.fixture(scope="module", params=DRIVER_NAMES)
def guest_driver(request):
    """The guest's driver: Linux's, then ours."""
    return DRIVERS[request.param]


@pytest.fixture(scope="module")
def guest(host_device, guest_driver, device_folder):
    options = ["-device", "virtio-serial,id=ser0,max_ports=31"]
    options += ["-chardev", f"socket,id=con0,path={device_folder}/con0,server=on,wait=off"]
    options += ["-device", "virtconsole,chardev=con0,nr=0,id=console0,bus=ser0.0"]
    for number, name in enumerate(PORTS, 1):
        options += socket_port(number, name, f"{device_folder}/{name}", "ser0")
    options += ["-device", "virtio-serial,id=ser1", *socket_port(1, EXTRA, f"{device_folder}/{EXTRA}", "ser1")]
    if host_device.kind == "virtserial":
        options += ["-qmp", f"unix:{device_folder}/qmp,server=on,wait=off"]
    with (
        host_device.attach(guest_driver.device_options(options)) as attached,
        Guest(attached.arguments, **guest_driver.machine) as guest,
    ):
        guest_driver.start(guest, [*PORTS, EXTRA])
        yield guest


@pytest.fixture
def monitor(guest, host_device, device_folder):
    """The monitor of whoever has the ports."""
    with host_monitor(host_device, guest, f"{device_folder}/qmp") as monitor:
        yield monitor


@pytest.fixture(scope="module")
def free_ports():
    return itertools.cycle(PORTS)


@pytest.fixture
def port(guest, device_folder, free_ports):
    name = next(free_ports)
    port = Port(name, f"{device_folder}/{name}")
    yield port
    port.close()


@pytest.fixture
def app(guest):
    """An application in the guest."""
    with guest.session() as session:
        session(PORT_HELPERS)
        yield session


@pytest.fixture
def opened(app, port):
    """An application that has the port open as `fd`, the host's end connected."""
    end = port.connect()
    app(f"fd = open_port({port.name!r}); until(lambda: 'HUP' not in events(fd))")
    return end


@pytest.mark.parametrize("case", DRIVER_CONTRACT, ids=[case.name for case in DRIVER_CONTRACT])
def test_driver(app, port, case):
    """The cases that `virtserial conformance guest:COMMAND` runs too."""
    case.act(app, port)


def test_every_port_has_its_name_in_a_file(guest, guest_driver):
    names = guest.check(f"cat {guest_driver.names}/*/name").split()
    assert sorted(names) == sorted([*PORTS, EXTRA])


def test_every_named_port_has_its_link(guest):
    links = guest.check("ls /dev/virtio-ports").split()
    assert sorted(links) == sorted([*PORTS, EXTRA])


def test_names_belong_to_the_port_numbers_asked_for(guest):
    links = guest.check("cd /dev/virtio-ports; for n in *; do echo $n $(readlink $n); done").split()
    by_name = dict(zip(links[::2], links[1::2], strict=True))
    prefix = by_name[PORTS[0]].removesuffix("p1")
    assert [by_name[name] for name in PORTS] == [f"{prefix}p{n}" for n in range(1, 25)]


def test_a_port_is_readable_and_writable_by_root_only(guest, port):
    assert guest.check(f"stat -L -c %a /dev/virtio-ports/{port.name}") == "600"




def test_console_cannot_be_opened_as_a_port(app):
    with pytest.raises(GuestError, match="ENXIO"):
        app("os.open('/dev/vport0p0', os.O_RDWR)")










@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 32768])
def test_writes_of_any_size_arrive_unchanged(app, opened, size):
    app(f"os.write(fd, bytes(n % 251 for n in range({size})))")
    assert opened.receive(size) == bytes(n % 251 for n in range(size))


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 200_000])
def test_host_data_of_any_size_arrives_unchanged(app, opened, size):
    data = bytes(n % 251 for n in range(size))
    app("import hashlib")
    app.begin(f"received = read_exactly(fd, {size}); (len(received), hashlib.sha1(received).hexdigest())")
    opened.send(data)
    assert app.finish() == (size, hashlib.sha1(data).hexdigest())


def test_closing_the_port_discards_what_was_not_read(app, guest_driver, port, opened):
    opened.send(bytes(93_000))
    opened.wait_sent()
    app("until(lambda: 'IN' in events(fd))")
    time.sleep(0.2)  # the last of it is on its way from the device into the ring
    app("os.read(fd, 10); os.close(fd)")
    if guest_driver.kind == "linux":
        assert app(f"debug({port.name!r}, 'bytes_discarded')") == "92990"
    app(f"fd = open_port({port.name!r})")
    opened.send(b"fresh")
    assert app("read_exactly(fd, 5)") == b"fresh"


@linux_only
def test_sigio_tells_of_the_host_coming_data_and_the_host_going(app, port):
    app(f"""
fd = open_port({port.name!r})
signals = []
signal.signal(signal.SIGIO, lambda *_: signals.append(events(fd)))
fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
""")
    end = port.connect()
    app("until(lambda: signals); seen = signals[-1]; signals.clear()")
    assert app("seen") == {"OUT"}
    end.send(b"data")
    app("until(lambda: signals); seen = signals[-1]; signals.clear(); os.read(fd, 10)")
    assert app("seen") == {"IN", "OUT"}
    end.close()
    app("until(lambda: signals); seen = signals[-1]")
    assert app("seen") == {"IN", "HUP"}


@linux_only
def test_sigio_tells_of_several_ports_and_disturbs_no_poll(app, port, free_ports, device_folder):
    names = [port.name, next(free_ports)]
    app(f"""
fds = [open_port(name) for name in {names!r}]
seen = set()
signal.signal(signal.SIGIO, lambda *_: seen.update((fd, *sorted(events(fd))) for fd in fds))
for fd in fds:
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
""")
    ends = [HostEnd(f"{device_folder}/{name}") for name in names]
    app("until(lambda: {(fd, 'OUT') for fd in fds} <= seen); seen.clear()")
    app.begin("poll = select.poll(); poll.register(fds[0], select.POLLIN); ready = poll.poll(20000); ready[0][1]")
    ends[0].send(b"data")
    assert app.finish() == 1
    app("until(lambda: (fds[0], 'IN', 'OUT') in seen); seen.clear()")
    for end in ends:
        end.close()
    app("until(lambda: {(fd, 'HUP', 'IN') for fd in fds} <= seen); [os.close(fd) for fd in fds]; None")


@linux_only
def test_a_port_cannot_seek(app, port):
    app(f"fd = open_port({port.name!r})")
    with pytest.raises(GuestError, match="ESPIPE"):
        app("os.lseek(fd, 0, os.SEEK_SET)")


@linux_only
def test_splice_from_a_pipe(app, opened):
    app("""
import tempfile
reader, writer = os.pipe()
os.write(writer, bytes(n % 251 for n in range(20000)))
moved = 0
while moved < 20000:
    moved += os.splice(reader, fd, 20000 - moved)
""")
    assert opened.receive(20000) == bytes(n % 251 for n in range(20000))


@linux_only
def test_unbinding_the_driver_ends_reads_and_signals(guest, app):
    """The driver's unbind unplugs every port of a controller; the device goes through a reset."""
    app(f"""
fd = open_port({EXTRA!r})
signals = []
signal.signal(signal.SIGIO, lambda *_: signals.append(1))
fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
port = os.path.realpath('/sys/class/virtio-ports/' + os.path.basename(os.readlink('/dev/virtio-ports/' + {EXTRA!r})))
pci = port.split('/virtio')[0]
pci_name = os.path.basename(pci)
with open(pci + '/driver/unbind', 'w') as file:
    file.write(pci_name)
until(lambda: signals)
""")
    with pytest.raises(GuestError, match="ENODEV"):
        app("os.read(fd, 10)")
    assert not app(f"os.path.exists('/dev/virtio-ports/' + {EXTRA!r})")
    app("""
os.close(fd)
with open('/sys/bus/pci/drivers/virtio-pci/bind', 'w') as file:
    file.write(pci_name)
""")
    app(f"os.close(open_port({EXTRA!r}))")









def test_unplug_while_open_is_enodev_until_the_last_close_and_the_port_comes_back(app, monitor, device_folder):
    name, path = "org.test.plugged", f"{device_folder}/plugged"
    with hot_plugged(monitor, name, 30, path):
        app(f"fd = open_port({name!r}); node = os.path.realpath('/dev/virtio-ports/' + {name!r})")
        assert app("node").endswith("p30")
        end = HostEnd(path)
        app("os.write(fd, b'hello')")
        assert end.receive(5) == b"hello"
        end.close()
        app("until(lambda: 'HUP' in events(fd))")
    app(f"until(lambda: not os.path.exists('/dev/virtio-ports/' + {name!r}) and not os.path.exists(node))")
    for call in ("os.read(fd, 10)", "os.write(fd, b'x')"):
        with pytest.raises(GuestError, match="ENODEV"):
            app(call)
    assert "HUP" in app("events(fd)")
    with hot_plugged(monitor, name, 30, path):
        app(f"again = open_port({name!r})")
        end = HostEnd(path)
        app("until(lambda: 'HUP' not in events(again))")
        end.send(b"anew")
        assert app("read_exactly(again, 4)") == b"anew"
        with pytest.raises(GuestError, match="ENODEV"):
            app("os.read(fd, 10)")
        end.close()
        app("os.close(fd); os.close(again)")


def test_a_read_that_waits_ends_by_enodev_when_the_port_is_unplugged(app, monitor, device_folder):
    name, path = "org.test.waiting", f"{device_folder}/waiting"
    with hot_plugged(monitor, name, 29, path):
        app(f"fd = open_port({name!r})")
        end = HostEnd(path)
        app("until(lambda: 'OUT' in events(fd))")
        app.begin("os.read(fd, 10)")
    with pytest.raises(GuestError, match="ENODEV"):
        app.finish(timeout=60)
    end.close()


def test_console_login(guest, device_folder):
    guest.check("setsid agetty -L hvc0 115200 vt100")
    end = HostEnd(f"{device_folder}/con0")
    try:
        for prompt, answer in ((b"", b"\n"), (b"guest login: ", b"root\n"), (b"Password: ", b"virtserial\n")):
            end.receive_until(prompt) if prompt else None
            end.send(answer)
        end.receive_until(b"# ")
        end.send(b"echo $((6 * 7)) is the answer\n")
        end.receive_until(b"\n42 is the answer")
        end.send(b"exit\n")
    finally:
        end.close()


def test_much_each_way_at_once_arrives_unchanged(guest, port):
    exchange(guest, {port.name: port.path}, mib=MUCH_MIB, block_bytes=4 << 20, timeout=240)
