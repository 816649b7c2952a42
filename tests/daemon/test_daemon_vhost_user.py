"""A controller behind vhost-user, with our front end as its VMM: what moves, what is refused, what a kill costs."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.device_process import connect, controller_options, holds, port_options
from support.embedded_guest import EmbeddedGuest, try_receive, try_send
from support.lingering import lingering_socket
from support.places import ENVIRONMENT, ROOT
from support.rounds import rounds
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient
from virtserial.console.wire import VIRTIO_CONSOLE_F_MULTIPORT
from virtserial.driver.console_driver import DRIVER_FEATURES
from virtserial.driver.vhost_user_device import USER_OFFSET, open_vhost_user_device
from virtserial.errors import PeerError, VirtserialError
from virtserial.vhost_user import wire
from virtserial.vhost_user.client import FrontEnd
from virtserial.vhost_user.wire import MemoryRegion, VringAddress
from virtserial.virtio.features import VIRTIO_F_RING_PACKED
from virtserial.virtio.ring.split.layout import used_ring_size


def vhost_options(folder, name="ser0", more=""):
    return ["-device", f"vhost-user-serial,id={name},socket={folder}/{name}.sock{more}"]


@pytest.fixture
def device(start, folder):
    """A vhost-user controller with the ports `a` and `b`, and a vfio-user one with `c`."""
    return start(
        *vhost_options(folder), *port_options(folder, "a", 1), *port_options(folder, "b", 2),
        *controller_options(folder, "ser1"), *port_options(folder, "c", 1, "ser1"),
    )  # fmt: skip


@pytest.fixture
def path(folder):
    return folder / "ser0.sock"


def embedded(path, *ports, **options):
    return EmbeddedGuest(path, *ports, open_device=open_vhost_user_device, **options)


def pause(guest):
    """Stop all rings as a VMM does when it pauses its VM; return where they stand."""
    function = guest.driver._transport
    return {index: function._front_end.stop_vring(index) for index in function._kicks}


def resume(guest, places):
    """Start them again there."""
    function = guest.driver._transport
    for index, place in places.items():
        function._front_end.set_vring(wire.VHOST_USER_SET_VRING_BASE, index, place)
        function._front_end.set_vring_descriptor(wire.VHOST_USER_SET_VRING_KICK, index, function._kicks[index])


def test_bytes_move_both_ways_and_a_next_driver_begins_anew(device, folder, path):
    assert f"-chardev socket,id=ser0,path={path} -device vhost-user-test-device-pci" in device.announced
    for _ in range(2):
        with embedded(path, "a", "b") as guest:
            guest.check_port("a", folder / "a")
            guest.check_port("b", folder / "b")
    assert "internal error" not in device.log


@pytest.mark.parametrize("sealed", [True, False])
def test_kills_in_the_middle_of_a_transfer(device, folder, path, sealed):
    kills = rounds(5, 10)
    move(device, folder, path, sealed, lambda guest, worker: device.wait_for_new_worker(device.kill_worker()), kills)
    assert device.log.count("a new one takes over") == kills


def test_pauses_in_the_middle_of_a_transfer(device, folder, path):
    """Half sent chains go on where they were."""

    def interrupt(guest, _):
        places = pause(guest)
        time.sleep(0.02)
        resume(guest, places)

    move(device, folder, path, True, interrupt, 20)


def test_restarts_in_the_middle_of_a_transfer(start, folder, path):
    """New code in the worker's place, and in the keeper's."""
    monitor = ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    device = start(*vhost_options(folder), *port_options(folder, "a", 1), *port_options(folder, "b", 2), *monitor)
    words = itertools.cycle([[], ["--worker"]])

    def restart(guest, _):
        command = [sys.executable, "-m", "virtserial", "restart", "--monitor", f"{folder}/qmp", *next(words)]
        subprocess.run(command, env=ENVIRONMENT, check=True, timeout=30, capture_output=True)

    move(device, folder, path, True, restart, 4)
    assert "takes over" not in device.log


def move(device, folder, path, sealed, interrupt, times):
    """Random bytes in both directions, interrupted so often; where memory is mapped not a byte is lost or doubled."""
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    data = rng.randbytes((16 if sealed else 2) << 20)
    with embedded(path, "a", "b", sealed=sealed) as guest, connect(folder / "a") as host:
        host.setblocking(False)
        received = guest.open("a")
        guest.run_until(lambda: received.port.host_connected)
        sent = given = done = 0
        taken = bytearray()
        due = time.monotonic() + 0.05
        quiet_since, seen = time.monotonic(), None
        while done < times or time.monotonic() < quiet_since + 2:
            if done == times and len(taken) == sent == len(received.data) == given == len(data):
                break
            assert guest.failure is None, f"seed {seed}: {guest.failure}; {device.log}"
            end = len(data) * (done + 1) // (times + 1)
            sent += received.port.write(data[sent : min(sent + 100_000, end)]) if sent < end else 0
            given += try_send(host, data[given : min(given + 100_000, end)])
            taken += try_receive(host)
            guest.loop.run_once(timeout=0.001)
            if done < times and time.monotonic() >= due:
                interrupt(guest, device.worker)
                done += 1
                due = time.monotonic() + rng.uniform(0.0, 0.15)
            if (now := (sent, given, len(taken), len(received.data), done)) != seen:
                seen, quiet_since = now, time.monotonic()
        received.port.close()
        if sealed:
            assert taken == data[:sent], f"seed {seed}; {device.log}"
            assert received.data == data[:given], f"seed {seed}; {device.log}"
    assert "internal error" not in device.log
    with embedded(path, "a", "b") as guest:
        guest.check_port("a", folder / "a")


def test_a_front_end_that_leaves_takes_its_descriptors_with_it(device, folder, path):
    with embedded(path, "a", "b"):
        pass
    keeper, worker = device.settled_descriptors()
    for _ in range(10):
        with embedded(path, "a", "b"):
            assert device.descriptors()[1] > worker
    wait_until(lambda: device.descriptors()[0] <= keeper and device.descriptors()[1] <= worker)
    assert "internal error" not in device.log


# What a front end must not do


REGION = MemoryRegion(0, 1 << 20, USER_OFFSET, 0)


@pytest.fixture
def memory():
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, REGION.size)
    yield fd
    os.close(fd)


@pytest.fixture
def front_end(device, path, memory):
    front_end = FrontEnd(path)
    features = front_end.get(wire.VHOST_USER_GET_FEATURES) & ~wire.VHOST_F_LOG_ALL
    front_end.set(wire.VHOST_USER_SET_FEATURES, wire.U64.pack(features))
    front_end.set_table([REGION], [memory])
    yield front_end
    front_end.close()


def set_up(front_end, index, kick, place=USER_OFFSET):
    front_end.set_vring(wire.VHOST_USER_SET_VRING_NUM, index, 64)
    address = VringAddress(index, 0, place, place + 0x2000, place + 0x1000, 0)
    front_end.set(wire.VHOST_USER_SET_VRING_ADDR, wire.pack(address))
    front_end.set_vring_descriptor(wire.VHOST_USER_SET_VRING_KICK, index, kick)
    front_end.set_vring(wire.VHOST_USER_SET_VRING_ENABLE, index, 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (wire.Header(1, 0, 0).pack(), "GET_FEATURES of version 0"),
        (wire.Header(1, 1, 1 << 20).pack(), "bytes of payload"),
        (wire.Header(1, 5, 0).pack(), "is a reply"),
        (wire.message(99), "request 99: not known here"),
        (wire.message(wire.VHOST_USER_SET_VRING_NUM, wire.pack(wire.VringState(0, 3))), "size 3"),
        (wire.message(wire.VHOST_USER_SET_VRING_NUM, wire.pack(wire.VringState(200, 8))), "the device has 64"),
        (wire.message(wire.VHOST_USER_SET_VRING_KICK, wire.U64.pack(0x100)), "does not poll"),
        (wire.message(wire.VHOST_USER_SET_MEM_TABLE, wire.TABLE.pack(9, 0)), "memory table of 9 regions"),
        (wire.message(wire.VHOST_USER_SET_FEATURES, wire.U64.pack(1 << 63)), "are not offered"),
    ],
)
def test_nonsense_closes_the_connection_with_a_reason_and_nobody_else_notices(device, folder, path, data, reason):
    with EmbeddedGuest(folder / "ser1.sock", "c") as neighbour:
        with connect(path) as vmm:
            vmm.sendall(data)
            assert vmm.recv(100) == b""
        device.wait_for_log(reason)
        neighbour.check_port("c", folder / "c", 10_000)
        with embedded(path, "a") as guest:
            guest.check_port("a", folder / "a", 10_000)


def test_descriptors_of_any_kind_make_nobody_wait(device, folder, front_end, memory):
    """A full pipe, a full socket that lingers, a file, the connection itself."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    full = os.eventfd((1 << 32) - 1, os.EFD_CLOEXEC)
    with lingering_socket() as lingering, EmbeddedGuest(folder / "ser1.sock", "c") as neighbour:
        others = [writer, full, lingering.fileno(), front_end.fileno(), reader]
        for index, fd in enumerate(others):
            set_up(front_end, index, fd)
            front_end.set_vring_descriptor(wire.VHOST_USER_SET_VRING_CALL, index, fd)
            front_end.set_vring_descriptor(wire.VHOST_USER_SET_VRING_ERR, index, fd)
        with pytest.raises(PeerError, match="refuses"):
            front_end.set_vring_descriptor(wire.VHOST_USER_SET_VRING_KICK, 7, memory)
        with pytest.raises(PeerError, match="refuses"):
            front_end.set(wire.VHOST_USER_SET_BACKEND_REQ_FD, fds=[memory])
        neighbour.check_port("c", folder / "c", 10_000)
        front_end.close()
        neighbour.check_port("c", folder / "c", 10_000)
    for fd in (reader, writer, full):
        os.close(fd)


@pytest.mark.parametrize("place", [USER_OFFSET + REGION.size - 0x1000, USER_OFFSET + 8, 0])
def test_a_ring_that_is_not_in_memory_is_refused(front_end, device, place):
    kick = os.eventfd(0)
    with pytest.raises(PeerError, match="refuses"):
        for index in (2, 3):
            set_up(front_end, index, kick, place)
    os.close(kick)
    assert front_end.get(wire.VHOST_USER_GET_QUEUE_NUM) == 64


def test_memory_that_shrinks_is_no_end_of_the_process(front_end, device, folder, memory):
    """Its file is not sealed, so it is not mapped."""
    kicks = {index: os.eventfd(0) for index in (2, 3)}
    avail_event = 0x2000 + used_ring_size(64) - 2
    os.pwrite(memory, b"\xff\xff", avail_event)
    for index, kick in kicks.items():
        set_up(front_end, index, kick)
    # The device has stored it, and stands still: what it stores while the file shrinks makes the file grow again.
    wait_until(lambda: os.pread(memory, 2, avail_event) == bytes(2))
    os.ftruncate(memory, 0)
    worker = device.worker
    for kick in kicks.values():
        os.eventfd_write(kick, 1)
    device.wait_for_log("gone: its file was truncated")
    assert device.worker == worker
    for kick in kicks.values():
        os.close(kick)


def test_kicks_before_a_queue_is_enabled_are_seen_when_it_is(device, folder, path):
    with embedded(path, "a") as guest:
        places = pause(guest)
        received = guest.open("a")  # the message is in the ring, and kicked
        resume(guest, places)
        with connect(folder / "a") as host:
            host.sendall(b"to the guest")
            guest.run_until(lambda: received.data == b"to the guest")


# State, resets, limits


def test_a_reset_closes_the_ports(device, folder, path):
    with embedded(path, "a") as guest, connect(folder / "a") as host:
        received = guest.open("a")
        guest.run_until(lambda: received.port.host_connected)
        guest.driver.stop()
        guest.driver.start()
        guest.run_until(lambda: any(port.name == "a" for port in guest.driver.ports.values()))
        host.sendall(b"kept")
        received = guest.open("a")
        guest.run_until(lambda: received.data == b"kept")


def transfer(front_end, direction, end_of_pipe):
    """SET_DEVICE_STATE_FD."""
    reply = front_end.ask(
        wire.VHOST_USER_SET_DEVICE_STATE_FD, wire.pack(wire.Transfer(direction, 0)), [end_of_pipe]
    )
    os.close(end_of_pipe)
    return wire.unpack_u64(reply)


def save(front_end):
    reader, writer = os.pipe()
    assert transfer(front_end, 0, writer) == wire.VRING_NO_DESCRIPTOR
    with open(reader, "rb") as pipe:
        state = pipe.read()
    assert front_end.get(wire.VHOST_USER_CHECK_DEVICE_STATE) == 0
    return state


def test_the_state_moves_to_another_back_end(start, folder, path):
    """As a front end does that moves a VM: the driver and its memory notice nothing."""
    there = folder / "there"
    there.mkdir()
    here, elsewhere = (
        start(*vhost_options(each), *port_options(each, "a", 1)) for each in (folder, there)
    )
    with embedded(path, "a") as guest, connect(folder / "a") as host:
        received = guest.open("a")
        guest.run_until(lambda: received.port.host_connected)
        host.sendall(b"before")
        guest.run_until(lambda: received.data == b"before")
        function = guest.driver._transport
        places = pause(guest)
        state = save(function._front_end)
        with FrontEnd(there / "ser0.sock") as front_end:
            reader, writer = os.pipe()
            try:
                assert transfer(front_end, 1, reader) == wire.VRING_NO_DESCRIPTOR
            except PeerError:
                raise AssertionError(elsewhere.log) from None
            os.write(writer, state)
            os.close(writer)
            assert front_end.get(wire.VHOST_USER_CHECK_DEVICE_STATE) == 0
            features = guest.driver.features | wire.VHOST_USER_F_PROTOCOL_FEATURES
            front_end.set(wire.VHOST_USER_SET_FEATURES, wire.U64.pack(features))
            for region, memory in zip(function._regions.values(), guest.driver._memory.regions, strict=True):
                front_end.add_region(region, memory.fd)
            guest.loop.unwatch(function._front_end.fileno())
            function._front_end.close()
            function._front_end = front_end
            for index, queue in function._queues.items():
                front_end.set_vring(wire.VHOST_USER_SET_VRING_BASE, index, places[index])
                start_at(function, index, queue, places[index])
            with connect(there / "a") as there_host:
                there_host.sendall(b" and after")
                guest.run_until(lambda: received.data == b"before and after")
                received.port.write(b"hello")
                assert there_host.recv(5) == b"hello"
            guest.driver.stop()
    assert "internal error" not in here.log + elsewhere.log


def start_at(function, index, queue, place):
    """Hand over a queue that stands at `place`."""
    front_end, set_vring = function._front_end, function._front_end.set_vring

    def from_there(request, which, number):
        set_vring(request, which, place if request == wire.VHOST_USER_SET_VRING_BASE else number)

    front_end.set_vring = from_there
    function._start(index, queue)
    front_end.set_vring = set_vring


@pytest.mark.parametrize("state", [b"", b"nonsense", bytes(1 << 20)])
def test_a_state_that_is_none_is_refused(device, front_end, state):
    reader, writer = os.pipe()
    assert transfer(front_end, 1, reader) == wire.VRING_NO_DESCRIPTOR
    os.set_blocking(writer, False)
    with contextlib.suppress(OSError):
        os.write(writer, state)
    os.close(writer)
    assert front_end.get(wire.VHOST_USER_CHECK_DEVICE_STATE) == 1


def test_written_pages_are_in_the_log(device, folder, path):
    log = os.memfd_create("log", os.MFD_CLOEXEC)
    size, of_guest = 32 << 20, ((1 << 32) + (256 << 20)) // 4096 // 8
    os.ftruncate(log, size)
    with embedded(path, "a") as guest, connect(folder / "a") as host:
        received = guest.open("a")
        guest.run_until(lambda: received.port.host_connected)
        function = guest.driver._transport
        features = guest.driver.features | wire.VHOST_USER_F_PROTOCOL_FEATURES | wire.VHOST_F_LOG_ALL
        function._front_end.ask(wire.VHOST_USER_SET_LOG_BASE, wire.pack(wire.Log(size, 0)), [log])
        function._front_end.set(wire.VHOST_USER_SET_FEATURES, wire.U64.pack(features))
        host.sendall(b"x" * 10_000)
        guest.run_until(lambda: len(received.data) == 10_000)
        bits = int.from_bytes(os.pread(log, of_guest, 0), "little")
        buffers = guest.driver.ports[1]._receiveq._queue
        written = [page for page in range(1 << 20, (1 << 20) + 4096) if bits >> page & 1]
        assert buffers.used_address // 4096 in written, written
        assert 3 <= bits.bit_count() <= 40
        device.wait_for_new_worker(device.kill_worker())
        function._front_end.get(wire.VHOST_USER_GET_FEATURES)
        assert os.pread(log, size, 0).count(b"\xff") == size, "an answer overtook what the last worker may have left"
        os.ftruncate(log, 0)
        host.sendall(b"y" * 10_000)
        guest.run_until(lambda: len(received.data) == 20_000)
    os.close(log)
    assert device.log.count("takes over") == 1


def test_the_most_ports(start, folder):
    """Queues up to the 1,024th; QEMU's front end cannot have so many."""
    names = {1: "first", 127: "behind-the-256th-queue", 510: "last"}
    ports = [word for number, name in names.items() for word in port_options(folder, name, number)]
    device = start(*vhost_options(folder, more=",max_ports=511"), *ports)
    assert "QEMU has at most max_ports=127 over vhost-user" in device.announced
    with embedded(folder / "ser0.sock", *names.values()) as guest:
        for name in names.values():
            guest.check_port(name, folder / name, 10_000)
        device.wait_for_new_worker(device.kill_worker())
        guest.check_port("last", folder / "last", 10_000)


@pytest.mark.parametrize("disturb", ["kill", "pause"])
def test_packed_rings(start, folder, path, disturb):
    """Half sent chains go on where they were, as with split rings."""
    ports = [*port_options(folder, "a", 1), *port_options(folder, "b", 2)]
    device = start(*vhost_options(folder, more=",packed=on"), *ports)

    def interrupt(guest, _):
        assert guest.driver.features & VIRTIO_F_RING_PACKED
        if disturb == "kill":
            device.wait_for_new_worker(device.kill_worker())
        else:
            resume(guest, pause(guest))

    move(device, folder, path, True, interrupt, 5)


def test_a_console_that_is_resized_changes_the_configuration(start, folder, path):
    """Without MULTIPORT a driver learns of it by the channel for requests of the back end."""
    monitor = ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    console = ["-chardev", f"socket,id=con,path={folder}/con,server=on,wait=off"]
    console += ["-device", "virtconsole,id=con0,bus=ser0.0,chardev=con,nr=0,cols=80,rows=25"]
    start(*vhost_options(folder), *console, *monitor)
    with embedded(path, features=DRIVER_FEATURES & ~VIRTIO_CONSOLE_F_MULTIPORT) as guest:
        port = guest.driver.ports[0]
        guest.run_until(lambda: (port.cols, port.rows) == (80, 25))
        with QmpClient(str(folder / "qmp"), 30) as qmp:
            qmp("x-virtserial-resize", id="con", cols=132, rows=50)
        guest.run_until(lambda: (port.cols, port.rows) == (132, 50))


@pytest.mark.parametrize("word", ["iommu_platform=on", "vectors=4", "unplug=on", "disable-legacy=off"])
def test_what_vhost_user_cannot_carry_is_an_error_at_start(start, folder, word):
    with pytest.raises(AssertionError, match=f"Property 'vhost-user-serial.{word.split('=')[0]}' not found"):
        start(*vhost_options(folder, more=f",{word}"))


def test_many_ports_are_all_connected(start, folder):
    names = [f"p{number}" for number in range(1, 31)]
    options = [word for number, name in enumerate(names, 1) for word in port_options(folder, name, number)]
    start(*vhost_options(folder), *options)
    hosts = [connect(folder / name) for name in names]
    with embedded(folder / "ser0.sock", *names) as guest:
        guest.run_until(lambda: all(port.host_connected for port in guest.driver.ports.values()))
    for host in hosts:
        host.close()


def unplugged(monitor, controller):
    """Whether it can be unplugged: not while its front end is there."""
    try:
        monitor("device_del", id=controller)
    except VirtserialError:
        return False
    return True


def test_a_controller_is_plugged_and_unplugged_by_the_monitor(start, folder):
    device = start("-qmp", f"unix:{folder}/qmp,server=on,wait=off", *controller_options(folder, "ser1"))
    with QmpClient(str(folder / "qmp"), 10) as monitor:
        monitor("device_add", driver="vhost-user-serial", id="ser0", socket=f"{folder}/ser0.sock")
        monitor("chardev-add", id="a", backend={"type": "socket", "data": {
            "addr": {"type": "unix", "data": {"path": f"{folder}/a"}}, "server": True, "wait": False}})
        monitor("device_add", driver="virtserialport", id="port", bus="ser0.0", chardev="a", name="a")
        with embedded(folder / "ser0.sock", "a") as guest:
            guest.check_port("a", folder / "a", 10_000)
        wait_until(lambda: unplugged(monitor, "ser0"), complaint="its front end's end is not noticed")
    wait_until(lambda: not (folder / "ser0.sock").exists())
    assert "internal error" not in device.log


# The conventions of vhost-user back ends


def test_the_conventions_of_back_ends(start, folder):
    start(f"--socket-path={folder}/a,b.sock", *port_options(folder, "a", bus="vhost-user"))
    with embedded(folder / "a,b.sock", "a") as guest:
        guest.check_port("a", folder / "a", 10_000)


def test_a_front_end_that_is_connected_already(start, folder):
    ours, theirs = socket.socketpair()
    environment = {**ENVIRONMENT, "XDG_RUNTIME_DIR": str(folder)}
    with theirs:
        popen = {"pass_fds": [theirs.fileno()]}
        words = ["-v", f"--fd={theirs.fileno()}", *port_options(folder, "a", bus="vhost-user")]
        device = start(*words, environment=environment, **popen)
    bound = [line.split() for line in Path("/proc/net/unix").read_text().splitlines() if "/vhost-user.sock" in line]
    assert not device.announced
    assert not [path for *_, inode, path in bound if holds(device.pid, int(inode))]
    with embedded(ours, "a") as guest:
        device.process.send_signal(signal.SIGUSR2)
        device.wait_for_log("this process takes over from the previous one")
        guest.check_port("a", folder / "a", 10_000)
    assert device.process.wait(60) == 0


def test_capabilities_are_printed_and_nothing_is_done():
    program = "from virtserial.cli.vhost_user import main; raise SystemExit(main())"
    words = [sys.executable, "-c", program, "--print-capabilities"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    discovery = json.loads((ROOT / "packaging/vhost-user/50-virtserial.json").read_text())
    assert found["type"] == discovery["type"] == "console"
