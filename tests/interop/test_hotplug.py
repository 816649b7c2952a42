"""Ports and back ends that come and go while the guest runs: by QEMU's monitor and by ours, with the same words."""

from __future__ import annotations

import inspect
import os
from contextlib import ExitStack, contextmanager

import pytest
from support.guests.exchange import socket_port
from support.guests.guest_side import PORT_HELPERS, TRANSFER
from support.guests.host_end import HostEnd, HostTransfer
from support.guests.plugging import host_monitor, unix_server
from support.waiting import wait_until

from virtserial.cli.demo.guest_script import wait_for
from virtserial.rig import Guest

STAY = "org.test.stay"
MIB = 1 << 20


@pytest.fixture(scope="module")
def guest(host_device, device_folder):
    options = ["-device", "virtio-serial,id=ser0", *socket_port(1, STAY, f"{device_folder}/stay")]
    if host_device.kind == "virtserial":
        options += ["-qmp", f"unix:{device_folder}/qmp,server=on,wait=off"]
    with host_device.attach(options) as attached, Guest(attached.arguments) as guest:
        yield guest


@pytest.fixture
def monitor(guest, host_device, device_folder):
    """The monitor of whoever has the ports."""
    with host_monitor(host_device, guest, f"{device_folder}/qmp") as monitor:
        yield monitor


@contextmanager
def hot_plugged(monitor, name, number, path, driver="virtserialport"):
    """A port that is there for a while, on a socket at `path`."""
    monitor("chardev-add", id=f"chr-{name}", backend=unix_server(path))
    monitor("device_add", driver=driver, id=f"id-{name}", name=name, nr=number, chardev=f"chr-{name}")
    yield
    monitor("device_del", id=f"id-{name}")
    monitor.wait_event("DEVICE_DELETED")
    monitor("chardev-remove", id=f"chr-{name}")


def is_there(guest, name):
    return guest.run(f"test -e /dev/virtio-ports/{name}").status == 0


def test_a_port_that_is_plugged_in_appears_with_its_number_and_name_and_works(guest, monitor, device_folder):
    with hot_plugged(monitor, "org.test.new", 7, f"{device_folder}/new"):
        wait_until(lambda: is_there(guest, "org.test.new"), complaint="the port did not appear")
        assert guest.check("readlink /dev/virtio-ports/org.test.new").endswith("p7")
        end = HostEnd(f"{device_folder}/new")
        job = guest.start("exec 3<>/dev/virtio-ports/org.test.new; echo to the host >&3; head -n 1 <&3")
        assert end.receive_until(b"\n") == b"to the host\n"
        end.send(b"to the guest\n")
        result = job.wait(60)
        assert (result.status, result.text) == (0, "to the guest\n")
        end.close()
    wait_until(lambda: not is_there(guest, "org.test.new"), complaint="the port did not go")


def test_a_console_whose_node_is_there_before_it_is_waited_for(guest, monitor, device_folder):
    """Linux makes eight nodes with the first console.  (The demonstration's guest waits like this.)"""
    waiting = f"import errno, os, time\n{inspect.getsource(wait_for)}\n"
    waiting += "wait_for('/dev/hvc1', os.O_RDWR | os.O_NOCTTY); print('open')"
    with ExitStack() as plugged:
        for number in (10, 11):
            path = f"{device_folder}/console{number}"
            plugged.enter_context(hot_plugged(monitor, f"console{number}", number, path, "virtconsole"))
            if number == 10:
                wait_until(lambda: guest.run("test -e /dev/hvc1").status == 0)
                assert "No such device" in guest.run("exec 3<>/dev/hvc1").text
                job = guest.start_python(waiting)
        result = job.wait(60)
        assert (result.status, result.text) == (0, "open\n")


def test_who_holds_an_unplugged_port_open_gets_enodev(guest, monitor, device_folder):
    session = guest.session()
    session(PORT_HELPERS)
    with hot_plugged(monitor, "org.test.gone", 8, f"{device_folder}/gone"):
        session("fd = open_port('org.test.gone')")
        end = HostEnd(f"{device_folder}/gone")
        session("until(lambda: 'OUT' in events(fd)); os.write(fd, b'x')")
        assert end.receive(1) == b"x"
    session(
        """
import errno
def error_of(call):
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]
until(lambda: not os.path.exists('/dev/virtio-ports/org.test.gone'))
"""
    )
    assert session("error_of(lambda: os.read(fd, 1)), error_of(lambda: os.write(fd, b'x'))") == ("ENODEV", "ENODEV")
    session("os.close(fd)")
    end.close()


def next_change(monitor, timeout=60):
    """The next VSERPORT_CHANGE of the port that stays; one of another port may still be on its way."""
    while (data := monitor.wait_event("VSERPORT_CHANGE", timeout)["data"])["id"] != f"port-{STAY}":
        pass
    return data["open"]


def test_the_monitor_hears_of_open_and_close(guest, monitor):
    session = guest.session()
    session(PORT_HELPERS)
    session(f"fd = open_port('{STAY}')")
    assert next_change(monitor) is True
    session(f"os.close(fd); os.close(open_port('{STAY}'))")
    # However often it changes: one a second, and the last state is never left out.
    changes = [next_change(monitor)]
    with pytest.raises(TimeoutError, match="no event"):
        while len(changes) < 4:
            changes.append(next_change(monitor, 3))
    assert changes[-1] is False


def test_the_back_end_of_an_open_port_is_changed(guest, monitor, device_folder):
    session = guest.session()
    session(PORT_HELPERS)
    with hot_plugged(monitor, "org.test.swap", 9, f"{device_folder}/first"):
        session("fd = open_port('org.test.swap')")
        end = HostEnd(f"{device_folder}/first")
        session("until(lambda: 'OUT' in events(fd)); os.write(fd, b'one')")
        assert end.receive(3) == b"one"
        monitor("chardev-change", id="chr-org.test.swap", backend=unix_server(f"{device_folder}/second"))
        assert end.receive(1) == b""
        end.close()
        session("until(lambda: 'HUP' in events(fd))")
        end = HostEnd(f"{device_folder}/second")
        session("until(lambda: 'OUT' in events(fd)); os.write(fd, b'two')")
        assert end.receive(3) == b"two"
        out = device_folder / "out"
        monitor("chardev-change", id="chr-org.test.swap", backend={"type": "file", "data": {"out": str(out)}})
        session("until(lambda: 'OUT' in events(fd)); os.write(fd, b'three'); os.close(fd)")
        wait_until(lambda: out.read_text() == "three")
        end.close()


@pytest.mark.slow
def test_fifty_rounds_leave_the_data_of_another_port_alone(guest, monitor, device_folder):
    block, repeat = os.urandom(MIB), 64
    end = HostEnd(f"{device_folder}/stay")
    transfer = HostTransfer(end, block, repeat, repeat * MIB)
    job = guest.start(
        TRANSFER.format(
            port=f"/dev/virtio-ports/{STAY}", name="stay", block_bytes=MIB, repeat=repeat, expected_blocks=repeat << 4
        )
    )
    try:
        for turn in range(50):
            name = f"org.test.round{turn}"
            with hot_plugged(monitor, name, 2 + turn % 3, f"{device_folder}/round"):
                if turn % 10 == 0:
                    wait_until(lambda name=name: is_there(guest, name), complaint=f"{name} did not appear")
        result = job.wait(120)
        assert result.status == 0, result.text
        sent, received = result.text.split()
        transfer.join()
        assert (transfer.received_sha1, transfer.sent_sha1) == (sent, received)
    finally:
        end.shut()
        transfer.join()
        end.close()
    wait_until(lambda: not guest.run("ls /sys/class/virtio-ports | grep -v p1$").text, complaint="ports were left over")
