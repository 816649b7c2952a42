"""Our driver in a real guest: taking a device by VFIO, letting go of it in every way, and what applications get.

One boot for each host device; the controllers are ser0 (MSI-X), ser1 (INTx) and ser2, whose DMA bypasses the IOMMU.
"""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.guests.exchange import socket_port
from support.guests.guest_driver import CuseDriver, console_functions, wait_for
from support.guests.guest_side import PORT_HELPERS
from support.guests.host_end import HostEnd
from support.guests.plugging import host_monitor
from support.rounds import rounds
from support.waiting import wait_until

from virtserial.rig import Guest, GuestError
from virtserial.rig.guest_package import PROGRAM

pytestmark = pytest.mark.foreign_bug(
    "docs/guest-driver.md: under TCG with a vIOMMU a guest corrupts its own memory on QEMU's device", case="qemu"
)
LOG = "/tmp/attach.log"
RUN = "/run/virtserial"
DRIVER = CuseDriver()


@pytest.fixture(scope="module")
def guest(host_device, device_folder):
    options = ["-device", "virtio-serial,id=ser0,iommu_platform=on"]
    options += ["-chardev", f"socket,id=con0,path={device_folder}/con0,server=on,wait=off"]
    options += ["-device", "virtconsole,chardev=con0,nr=0,bus=ser0.0"]
    for number in range(1, 6):
        options += socket_port(number, f"a{number}", f"{device_folder}/a{number}", "ser0")
    options += ["-device", "virtio-serial,id=ser1,iommu_platform=on,vectors=0"]
    options += socket_port(1, "intx", f"{device_folder}/intx", "ser1")
    options += ["-device", "virtio-serial,id=ser2,iommu_platform=off"]
    options += socket_port(1, "no", f"{device_folder}/no", "ser2")
    if host_device.kind == "virtserial":
        options += ["-qmp", f"unix:{device_folder}/qmp,server=on,wait=off"]
    elif host_device.kind == "qemu":
        options = [word.replace("iommu_platform=off", "disable-legacy=on") for word in options]
    with host_device.attach(options) as attached, Guest(attached.arguments, **DRIVER.machine) as guest:
        yield guest


@pytest.fixture(scope="module")
def functions(guest):
    """PCI addresses: ser0, ser1, ser2; all of vfio-pci's."""
    functions = console_functions(guest)
    answer = guest.check(f"{PROGRAM} guest bind {' '.join(functions)}")
    assert answer.splitlines() == [f"{each}: vfio-pci has it, virtio-pci had it" for each in functions]
    return functions


@pytest.fixture
def app(guest):
    """An application in the guest."""
    with guest.session() as session:
        session(PORT_HELPERS)
        yield session


@contextmanager
def attached(guest, *devices, extra=""):
    """`virtserial guest attach`; ended by SIGTERM."""
    pid = CuseDriver("auto", extra).attach(guest, " ".join(devices))
    try:
        yield pid
    finally:
        guest.check(f"kill -TERM {pid}; {ended(pid)}")


def ended(pid):
    """A shell command that waits for the end of a process."""
    return wait_for(f"[ ! -e /proc/{pid} ]")


@contextmanager
def connected(*paths):
    with ExitStack() as stack:
        ends = [HostEnd(path) for path in paths]
        for end in ends:
            stack.callback(end.close)
        yield ends


def both_ways(app, name, end):
    """A message each way over a port; leaves it closed."""
    app(f"fd = open_port({name!r}); until(lambda: 'OUT' in events(fd)); os.write(fd, b'to the host')")
    assert end.receive(11) == b"to the host"
    end.send(b"to the guest")
    assert app("got = read_exactly(fd, 12); os.close(fd); got") == b"to the guest"


@pytest.mark.slow
def test_devices_by_msi_x_and_by_intx_work_in_one_process(guest, functions, app, device_folder):
    with attached(guest, *functions[:2]), connected(f"{device_folder}/a1", f"{device_folder}/intx") as (first, second):
        both_ways(app, "a1", first)
        both_ways(app, "intx", second)
        assert guest.check("grep -c vfio-msix /proc/interrupts") != "0"
        assert guest.check("grep -c vfio-intx /proc/interrupts") == "1"


def test_sigterm_takes_every_node_and_link_away(guest, functions):
    with attached(guest, functions[0]):
        guest.check(wait_for("[ -e /dev/virtio-ports/a5 ] && [ -e /dev/hvc0 ]"))
        assert guest.check("ls /dev | grep -c '^vport'") == "6"
    left = "ls -d /dev/vport* /dev/hvc* /dev/virtio-ports/* /sys/class/cuse/* /run/virtserial/class 2>/dev/null; true"
    assert guest.check(left) == ""
    assert guest.check(f"cat {LOG} | grep -c Traceback; true") == "0"


def test_killing_the_driver_leaves_the_device_usable(guest, functions, app, device_folder):
    with connected(f"{device_folder}/a1") as (end,):
        for _ in range(rounds(1, 3)):
            pid = DRIVER.attach(guest, functions[0])
            app("fd = open_port('a1'); until(lambda: 'OUT' in events(fd)); fill(fd)")
            guest.check(f"kill -KILL {pid}; {ended(pid)}")
            with pytest.raises(GuestError, match="OSError"):
                app("os.read(fd, 1)")
            app("os.close(fd)")
    with connected(f"{device_folder}/a1") as (end,), attached(guest, functions[0]):
        both_ways(app, "a1", end)


def test_a_device_in_use_is_refused_in_one_line(guest, functions):
    with attached(guest, functions[0]):
        result = guest.run(f"{PROGRAM} guest attach {functions[0]}")
    assert result.status == 1
    assert result.text.startswith(f"virtserial: guest attach: {functions[0]}: /dev/vfio/")
    assert result.text.endswith(": Device or resource busy\n")


def test_a_device_whose_dma_bypasses_the_iommu_is_refused(guest, functions):
    result = guest.run(f"{PROGRAM} guest attach {functions[2]}")
    assert (result.status, result.text) == (
        1,
        f"virtserial: guest attach: {functions[2]}: device: it does not offer VIRTIO_F_ACCESS_PLATFORM "
        "(iommu_platform=on): its DMA would bypass the IOMMU\n",
    )


def test_functions_that_are_none_are_refused_in_one_line(guest, functions):
    for words, status, text in (
        ("attach 0000:00:1e.7", 1, "guest attach: 0000:00:1e.7: there is no such PCI function"),
        ("bind nonsense", 2, "guest bind: 'nonsense' is not a PCI address such as 0000:00:05.0"),
        ("attach 0000:00:00.0", 1, "guest attach: 0000:00:00.0: no driver has it, not vfio-pci: "
                                   "`virtserial guest bind 0000:00:00.0` changes that"),
    ):
        result = guest.run(f"{PROGRAM} guest {words}")
        assert result.status == status
        assert result.text.startswith(f"virtserial: {text}\n")


def test_the_system_gets_the_device_back_when_it_asks(guest, functions, app):
    """Unbinding vfio-pci waits until its user lets go; the next bind finds the driver waiting."""
    with attached(guest, functions[1]):
        app("fd = open_port('intx')")
        assert guest.check(f"{PROGRAM} guest unbind {functions[1]}", timeout=30) == f"{functions[1]}: virtio-pci has it"
        with pytest.raises(GuestError, match="ENODEV"):
            app("os.read(fd, 1)")
        app("os.close(fd)")
        guest.check(f"{PROGRAM} guest bind {functions[1]}")
        app("os.close(open_port('intx'))")
        assert "in use again" in guest.check(f"cat {LOG}")


def test_ports_as_terminals_and_as_sockets_have_the_same_names(guest, functions, app, device_folder):
    with connected(f"{device_folder}/a1") as (end,):
        with attached(guest, functions[0], extra="--as pty"):
            guest.check(wait_for(f"[ -e {RUN}/virtio-ports/a5 ]"))
            app(f"fd = os.open('{RUN}/virtio-ports/a1', os.O_RDWR | os.O_NOCTTY); os.write(fd, b'by a terminal')")
            assert end.receive(13) == b"by a terminal"
            app("os.close(fd)")
            assert guest.check(f"cat {RUN}/class/virtio-ports/vport0p1/name") == "a1"
            assert guest.check(f"readlink {RUN}/hvc0") == "vport0p0"
        with attached(guest, functions[0], extra="--as socket"):
            guest.check(wait_for(f"[ -e {RUN}/virtio-ports/a5 ]"))
            for _ in range(2):
                app(f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('{RUN}/virtio-ports/a1')")
                app("s.sendall(b'by a socket')")
                assert end.receive(11) == b"by a socket"
                end.send(b"and back")
                assert app("got = s.recv(8, socket.MSG_WAITALL); s.close(); got") == b"and back"
            assert guest.check(f"readlink {RUN}/hvc0").startswith("/dev/pts/")
            assert guest.run(f"test -e {RUN}/vport0p0").status == 1
    assert guest.check(f"ls {RUN}; true") == ""


def test_nodes_have_the_mode_and_owner_that_were_asked_for(guest, functions):
    with attached(guest, functions[0], extra="--mode 0660 --owner 7 --group tty"):
        guest.check(wait_for("[ -e /dev/virtio-ports/a5 ]"))
        assert guest.check("stat -L -c '%a %u %g' /dev/virtio-ports/a5") == "660 7 5"


def test_a_port_that_is_plugged_while_the_driver_runs_is_shown_under_its_name(
    guest, functions, host_device, device_folder
):
    with attached(guest, functions[0]), host_monitor(host_device, guest, f"{device_folder}/qmp") as monitor:
        monitor("device_add", driver="virtserialport", id="new", name="later", nr=20, bus="ser0.0")
        guest.check(wait_for("[ -c /dev/virtio-ports/later ]"))
        monitor("device_del", id="new")
        monitor.wait_event("DEVICE_DELETED")
        guest.check(wait_for("[ ! -e /dev/vport0p20 ]"))


# What avocado-vt's guest program does with ports, in words of our own: a loop from ports to ports in three modes,
# senders and receivers of given amounts, poll masks, blocking and nonblocking mode.

LOOPBACK = """
import threading
stop = threading.Event()
def loopback(inputs, outputs, mode, size=1024):
    def move(ready):
        data = b''.join(os.read(fd, size) for fd in ready)
        if data:
            for fd in outputs:
                left = data
                while left:
                    left = left[os.write(fd, left):]
    def run():
        poll = select.poll()
        for fd in inputs:
            poll.register(fd, select.POLLIN)
        while not stop.is_set():
            if mode == 'select':
                move(select.select(inputs, [], [], 0.2)[0])
            elif mode == 'poll':
                move([fd for fd, events in poll.poll(200) if events & select.POLLIN])
            else:
                move(inputs)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["blocking", "poll", "select"])
def test_a_loop_in_the_guest_carries_one_port_to_two_others(guest, functions, app, device_folder, mode):
    data = os.urandom(1 << 20)
    with attached(guest, functions[0]), connected(*(f"{device_folder}/a{n}" for n in (1, 2, 3))) as (source, *sinks):
        app(LOOPBACK)
        app("fds = [open_port('a1'), open_port('a2'), open_port('a3')]")
        app("until(lambda: all('OUT' in events(fd) for fd in fds))")
        app(f"thread = loopback(fds[:1], fds[1:], {mode!r}); None")
        sender = threading.Thread(target=source.send, args=(data,))
        sender.start()
        received = [b"", b""]

        def receive(index):
            received[index] = sinks[index].receive(len(data))

        receivers = [threading.Thread(target=receive, args=(index,)) for index in (0, 1)]
        for thread in receivers:
            thread.start()
        for thread in (sender, *receivers):
            thread.join()
        assert [hashlib.sha1(each).hexdigest() for each in received] == [hashlib.sha1(data).hexdigest()] * 2
        app("stop.set()")
        source.send(b"x")
        assert app("thread.join(60); thread.is_alive()") is False
        app("[os.close(fd) for fd in fds]; None")


def test_senders_and_receivers_of_given_amounts_work_at_once(guest, functions, app, device_folder):
    with attached(guest, functions[0]), connected(f"{device_folder}/a4", f"{device_folder}/a5") as (sink, source):
        app("out, into = open_port('a4'), open_port('a5'); until(lambda: 'OUT' in events(out))")
        app.begin("""
import threading
counts = {}
def send(total):
    done = 0
    while done < total:
        done += os.write(out, bytes(min(4096, total - done)))
    counts['sent'] = done
def receive(total):
    done = 0
    while done < total:
        done += len(os.read(into, min(1024, total - done)))
    counts['received'] = done
threads = [threading.Thread(target=send, args=(1_000_001,)), threading.Thread(target=receive, args=(300_001,))]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
counts
""")
        sender = threading.Thread(target=source.send, args=(bytes(300_001),))
        sender.start()
        assert sink.receive(1_000_001) == bytes(1_000_001)
        sender.join()
        assert app.finish() == {"sent": 1_000_001, "received": 300_001}


def test_poll_masks_follow_the_host_and_modes_change_while_open(guest, functions, app, device_folder):
    with attached(guest, functions[0]):
        app("fd = open_port('a1')")
        assert app("events(fd)") == {"IN", "HUP"}
        with connected(f"{device_folder}/a1") as (end,):
            app("until(lambda: events(fd) == {'OUT'})")
            end.send(b"x")
            app("until(lambda: events(fd) == {'IN', 'OUT'})")
            app("os.set_blocking(fd, False); os.read(fd, 1)")
            with pytest.raises(GuestError, match="EAGAIN"):
                app("os.read(fd, 1)")
            app("os.set_blocking(fd, True)")
            app.begin("os.read(fd, 1)")
            end.send(b"y")
            assert app.finish() == b"y"
        app("until(lambda: events(fd) == {'IN', 'HUP'})")


@pytest.mark.slow
def test_thirty_ports_that_are_connected_at_boot_are_all_known_to_be(host_device):
    """QEMU's device drops the messages that find no posted buffer: Linux's driver learns of one of thirty."""
    names = [f"port{number}" for number in range(1, 31)]
    with TemporaryDirectory(prefix="vs-") as device_folder:
        options = ["-device", "virtio-serial,id=ser0,max_ports=31"]
        for number, name in enumerate(names, 1):
            options += ["-chardev", f"file,id=c{number},path={device_folder}/{name}"]
            options += ["-device", f"virtserialport,nr={number},chardev=c{number},name={name}"]
        driver = CuseDriver()
        with (
            host_device.attach(driver.device_options(options)) as attached,
            Guest(attached.arguments, **driver.machine) as guest,
        ):
            driver.start(guest, names)
            writes = f"for name in {' '.join(names)}; do echo from $name >/dev/virtio-ports/$name & done; wait"
            guest.check(writes, timeout=120)
            for name in names:
                wait_until(lambda: Path(f"{device_folder}/{name}").read_text() == f"from {name}\n")  # noqa: B023
