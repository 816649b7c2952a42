"""A port joined to an application's end, and ports as pseudo-terminals, on the project's device in memory."""

from __future__ import annotations

import os
import select
import socket
import struct
import termios
from fcntl import ioctl

import pytest
from support.driver_devices import BufferEnd
from support.driver_machine import Machine

from virtserial.driver.bridge import PortBridge
from virtserial.driver.port_nodes import PortNodes
from virtserial.driver.pty_ports import PtyPort
from virtserial.driver.run_directory import RunDirectory
from virtserial.errors import BackendError
from virtserial.host_end.stream import DescriptorStream


@pytest.fixture
def application(loop):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)

    def make_end():
        fd = ours.detach()
        return DescriptorStream(loop, "application", fd, fd)

    yield theirs, make_end
    theirs.close()
    ours.close()


def test_bytes_pass_both_ways_through_a_socket_and_its_end_closes_the_port(machine, application, loop):
    port, device_port, host = machine.plug()
    theirs, make_end = application
    ended = []
    bridge = PortBridge(loop, port, make_end(), ended.append)
    bridge.start()
    machine.until(lambda: device_port.guest_open)
    message = os.urandom(3 << 20)
    sent, received = 0, bytearray()
    host.give(message)
    while sent < len(message) or len(received) < len(message) or len(host.taken) < len(message):
        loop.run_once(timeout=0.01)
        _, writable, _ = select.select([], [theirs] if sent < len(message) else [], [], 0)
        if writable:
            sent += theirs.send(message[sent : sent + 100_000])
        try:
            received += theirs.recv(1 << 20)
        except BlockingIOError:
            continue
    assert host.taken == message
    assert received == message
    assert (bridge.to_port, bridge.from_port) == (len(message), len(message))
    theirs.close()
    machine.until(lambda: not device_port.guest_open)
    assert ended == [None]


def test_an_application_that_leaves_while_the_host_is_away_closes_the_port(machine, application, loop):
    port, device_port, _ = machine.plug()
    theirs, make_end = application
    ended = []
    PortBridge(loop, port, make_end(), ended.append).start()
    machine.until(lambda: device_port.guest_open)
    device_port.detach()
    machine.until(lambda: not port.host_connected)
    theirs.close()
    machine.until(lambda: not device_port.guest_open)
    assert ended == [None]


def test_an_unplugged_port_closes_the_application_s_end(machine, application, loop):
    port, _, _ = machine.plug()
    theirs, make_end = application
    ended = []
    PortBridge(loop, port, make_end(), ended.append).start()
    machine.until(lambda: port.is_open)
    machine.device.remove_port(1)
    machine.until(lambda: ended == [None])
    assert theirs.recv(1) == b""


class FullDisk(BufferEnd):
    def writev(self, buffers):
        raise BackendError("No space left on device")


def test_an_application_s_end_that_fails_closes_the_port(machine, loop):
    port, device_port, host = machine.plug()
    ended = []
    PortBridge(loop, port, FullDisk(), ended.append).start()
    machine.until(lambda: device_port.guest_open)
    host.give(b"too much")
    machine.until(lambda: not device_port.guest_open)
    assert [str(error) for error in ended] == ["No space left on device"]


def test_a_port_that_somebody_has_open_is_not_taken_away(machine, loop):
    port, device_port, _ = machine.plug()
    first, second = [], []
    PortBridge(loop, port, BufferEnd(), first.append).start()
    PortBridge(loop, port, BufferEnd(), second.append).start()
    assert "is open already" in str(second[0])
    machine.until(lambda: device_port.guest_open)
    assert first == []


# Pseudo-terminals


@pytest.fixture
def terminals(loop, tmp_path):
    directory, announced, lines = RunDirectory(tmp_path), [], []
    ports = PortNodes(
        0,
        lambda port, node: PtyPort(loop, directory, port, node),
        announce=lambda link, port: announced.append(link),
        report=lines.append,
    )
    machine = Machine(loop, ports)
    machine.announced, machine.lines = announced, lines
    yield machine
    machine.memory.driver.close()
    assert links(tmp_path) == {}, "no link is left behind"
    directory.close()
    assert os.listdir(tmp_path) == [], "no folder is left behind"


def links(path):
    """Every link below a folder."""
    found = [each for each in path.rglob("*") if each.is_symlink()]
    return {str(each.relative_to(path)): os.readlink(each) for each in found}


def test_a_named_port_is_a_terminal_with_a_link(terminals, tmp_path):
    _, device_port, host = terminals.plug(1, "org.example")
    found = links(tmp_path)
    assert found["virtio-ports/org.example"] == "../vport0p1"
    assert found["vport0p1"].startswith("/dev/pts/")
    assert (tmp_path / "class/virtio-ports/vport0p1/name").read_text() == "org.example\n"
    assert terminals.announced == ["virtio-ports/org.example"]
    assert not device_port.guest_open
    fd = os.open(tmp_path / "virtio-ports/org.example", os.O_RDWR | os.O_NOCTTY)
    terminals.until(lambda: device_port.guest_open)
    os.write(fd, b"\x00\x03\x04raw\r\n")
    terminals.until(lambda: host.taken == b"\x00\x03\x04raw\r\n")
    host.give(b"\x11\x13back\n")
    terminals.until(lambda: select.select([fd], [], [], 0)[0])
    assert os.read(fd, 100) == b"\x11\x13back\n"
    os.close(fd)
    terminals.until(lambda: not device_port.guest_open)
    fd = os.open(tmp_path / "virtio-ports/org.example", os.O_RDWR | os.O_NOCTTY)
    terminals.until(lambda: device_port.guest_open)
    os.close(fd)


@pytest.mark.parametrize("away", [False, True], ids=["", "while the host is away"])
def test_what_an_application_wrote_and_left_reaches_the_host(terminals, tmp_path, away):
    """`echo text >DIR/virtio-ports/NAME` is over before anybody looks."""
    port, device_port, host = terminals.plug(1, "org.example")
    if away:
        device_port.detach()
        terminals.until(lambda: not port.host_connected)
    for _ in range(2):
        (tmp_path / "virtio-ports/org.example").write_text("text\n")
    if away:
        terminals.until(lambda: device_port.guest_open)
        device_port.attach(host)
    terminals.until(lambda: host.taken == b"text\r\n" * 2 or host.taken == b"text\n" * 2)
    terminals.until(lambda: not device_port.guest_open)


@pytest.mark.parametrize("name", ["../escape", "..", ".", "a/b", "a\0b", "line\nline", "x" * 4000, "\x1b[31m"])
def test_a_name_that_cannot_be_a_link_gets_none(terminals, tmp_path, name):
    terminals.plug(1, name)
    assert list(links(tmp_path)) == ["vport0p1"]
    assert not (tmp_path.parent / "escape").exists()


def test_a_file_that_is_in_the_way_stays_and_a_stale_link_is_replaced(terminals, tmp_path):
    names = tmp_path / "virtio-ports"
    (names / "taken").write_text("mine")
    (names / "stale").symlink_to("../vport7p7")
    (tmp_path / "vport0p2").symlink_to("/dev/pts/99999")
    terminals.plug(1, "taken")
    terminals.plug(2, "stale")
    assert (names / "taken").read_text() == "mine"
    assert os.readlink(names / "stale") == "../vport0p2"
    assert os.readlink(tmp_path / "vport0p2") != "/dev/pts/99999"
    (names / "taken").unlink()


def test_a_link_of_somebody_who_lives_stays(terminals, tmp_path):
    (tmp_path / "vport7p7").write_text("a node of the kernel's")
    link = tmp_path / "virtio-ports" / "busy"
    link.symlink_to("../vport7p7")
    terminals.plug(1, "busy")
    assert os.readlink(link) == "../vport7p7"
    link.unlink()
    (tmp_path / "vport7p7").unlink()


def test_consoles_are_numbered_and_have_the_host_s_window_size(terminals, tmp_path):
    port, device_port, _ = terminals.plug(0, None, is_console=True)
    terminals.plug(1, None, is_console=True)
    terminals.until(lambda: "hvc1" in terminals.announced)
    assert os.readlink(tmp_path / "hvc0") == "vport0p0"
    assert os.readlink(tmp_path / "hvc1") == "vport0p1"
    terminals.device.set_size(device_port, 132, 43)
    terminals.until(lambda: port.cols == 132)
    fd = os.open(tmp_path / "hvc0", os.O_RDWR | os.O_NOCTTY)
    assert struct.unpack("HHHH", ioctl(fd, termios.TIOCGWINSZ, bytes(8)))[:2] == (43, 132)
    os.close(fd)


def test_an_unplugged_port_loses_its_links_and_its_terminal_hangs_up(terminals, tmp_path):
    terminals.plug(1, "org.example")
    fd = os.open(tmp_path / "virtio-ports/org.example", os.O_RDWR | os.O_NOCTTY)
    terminals.until(lambda: terminals.memory.driver.ports[1].is_open)
    terminals.device.remove_port(1)
    terminals.until(lambda: links(tmp_path) == {})
    assert os.read(fd, 1) == b""
    os.close(fd)
