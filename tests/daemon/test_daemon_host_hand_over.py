"""Host ends that go from one keeper to another: connections, waiting clients and paths."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from support.embedded_guest import jumps, try_receive
from support.moving_guest import MovingGuest

from virtserial.channel.codec import decode, encode
from virtserial.cli.serve_options import Options, build, build_objects
from virtserial.daemon.keeper.document import HostsLeft, HostsWanted
from virtserial.daemon.keeper.handover import Handover
from virtserial.daemon.keeper.host_hand_over import HostHandOver
from virtserial.daemon.keeper.keeper import Keeper
from virtserial.daemon.worker_code import InstalledWorker
from virtserial.errors import ConfigError
from virtserial.host_end.clients import WINDOW
from virtserial.loop import EventLoop
from virtserial.migration.devices import Devices
from virtserial.vfio_user.migration import VFIO_DEVICE_STATE_RESUMING as RESUMING
from virtserial.vfio_user.migration import VFIO_DEVICE_STATE_RUNNING as RUNNING
from virtserial.vfio_user.migration import VFIO_DEVICE_STATE_STOP as STOP
from virtserial.vfio_user.migration import VFIO_DEVICE_STATE_STOP_COPY as STOP_COPY
from virtserial.vfio_user.migration_client import MigrationClient


@pytest.fixture
def loop():
    loop = EventLoop()
    yield loop
    loop.close()


@contextmanager
def keeper(loop, name, folder, chardevs, *, expects=False):
    """A keeper, and its part in a hand-over; port N has the chardev cN."""
    words = ["-device", f"virtio-serial-pci,id=ser0,socket={folder}/{name}.sock"]
    for number, text in enumerate(chardevs, 1):
        words += ["-chardev", f"{text},id=c{number}"]
        words += ["-device", f"virtserialport,bus=ser0.0,nr={number},name=p{number},chardev=c{number}"]
    options = Options(words)
    objects = build_objects(options)
    machine, made = build(options, objects)
    keeper = Keeper(loop, InstalledWorker(), machine, made, objects=objects)
    hand_over = HostHandOver(keeper)
    if expects:
        hand_over.expect()
    try:
        keeper.start()
        yield keeper, hand_over
    finally:
        keeper.close()


def turn(loop, until=lambda: False, seconds=60):
    """Let keepers work until something is so."""
    deadline = time.monotonic() + seconds

    def look():
        if until() or time.monotonic() > deadline:
            loop.stop()
        else:
            loop.call_later(0.01, look)

    look_now = loop.call_later(0, look)
    loop.run()
    look_now.cancel()


def moved(giver, taker, settle=lambda: None):
    """What one has described, as the other gets it."""
    handover = Handover()
    handover.document = encode(giver.describe(taker.wanted(), handover.put, settle))
    return Handover.unpack(handover.pack())


def connect(path):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(60)
    client.connect(str(path))
    return client


def is_open(client):
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True


def test_connections_and_paths_go_along(loop, folder):
    path, pipe = folder / "agent", folder / "fifo"
    os.mkfifo(pipe)
    chardevs = [f"socket,path={path},server=on,wait=off", f"pipe,path={pipe}", f"pty,path={folder}/tty"]
    with keeper(loop, "new", folder, chardevs, expects=True) as (new, taker):
        with keeper(loop, "old", folder, chardevs) as (old, giver):
            terminal = os.readlink(folder / "tty")
            client = connect(path)
            turn(loop, lambda: old.back_ends.is_connected("c1"))
            left = moved(giver, taker)
            taker.take_over(decode(HostsLeft, left.document), left.take)
            giver.release(["c1", "c2", "c3"])
            taker.open_rest()
            turn(loop, seconds=0.1)
        assert new.back_ends.is_connected("c1")
        assert is_open(client)
        assert os.readlink(folder / "tty") == terminal
        assert new.chardevs["c1"].filename.startswith(f"unix:{path}")
        client.close()
        turn(loop, lambda: not new.back_ends.is_connected("c1"))
        with connect(path) as second:
            turn(loop, lambda: new.back_ends.is_connected("c1"))
            assert new.back_ends.is_connected("c1")
            assert is_open(second)
    assert not path.exists()
    assert not (folder / "tty").is_symlink()


def test_a_client_that_just_came_goes_along(loop, folder):
    path = folder / "agent"
    chardevs = [f"socket,path={path},server=on,wait=off"]
    with (
        keeper(loop, "new", folder, chardevs, expects=True) as (new, taker),
        keeper(loop, "old", folder, chardevs) as (old, giver),
    ):
        turn(loop, seconds=1)
        client = connect(path)
        time.sleep(0.3)  # The worker takes it meanwhile, and nobody has heard of it here.
        taken = moved(giver, taker, Devices(old).pause)
        taker.take_over(decode(HostsLeft, taken.document), taken.take)
        giver.release(["c1"])
        turn(loop, lambda: new.back_ends.is_connected("c1"))
        assert new.back_ends.is_connected("c1")
        assert not old.back_ends.is_connected("c1")
        assert is_open(client)
        client.close()


def test_what_is_not_taken_stays(loop, folder):
    path = folder / "agent"
    chardevs = [f"socket,path={path},server=on,wait=off"]
    with keeper(loop, "new", folder, chardevs, expects=True) as (new, taker):
        with keeper(loop, "old", folder, chardevs) as (old, giver):
            client = connect(path)
            turn(loop, lambda: old.back_ends.is_connected("c1"))
            for fd in moved(giver, taker).rest():
                os.close(fd)
            giver.keep(["c1"])
            turn(loop, seconds=0.1)
            assert old.back_ends.is_connected("c1")
            assert is_open(client)
            client.close()
            turn(loop, lambda: not old.back_ends.is_connected("c1"))
            with connect(path):
                turn(loop, lambda: old.back_ends.is_connected("c1"))
                assert old.back_ends.is_connected("c1")
            taker.open_rest()  # The path is in use: that is said, and the port has no host end.
            assert not new.back_ends.is_connected("c1")
        assert not path.exists()


def test_a_worker_that_does_not_answer_leaves_all_as_it_was(loop, folder):
    path = folder / "agent"
    with keeper(loop, "old", folder, [f"socket,path={path},server=on,wait=off"]) as (old, giver):

        def settle():
            raise ConfigError("the worker has just ended")

        wanted = HostsWanted({"c1": json.dumps(old.chardevs["c1"].recipe, sort_keys=True)})
        with connect(path):
            turn(loop, lambda: old.back_ends.is_connected("c1"))
        turn(loop, lambda: not old.back_ends.is_connected("c1"))
        with pytest.raises(ConfigError, match="just ended"):
            giver.describe(wanted, lambda fd: 0, settle)
        with connect(path):
            turn(loop, lambda: old.back_ends.is_connected("c1"))
            assert old.back_ends.is_connected("c1")


def test_other_options_do_not_go_along(loop, folder):
    with (
        keeper(loop, "new", folder, [f"socket,path={folder}/b,server=on,wait=off"], expects=True) as (new, taker),
        keeper(loop, "old", folder, [f"socket,path={folder}/a,server=on,wait=off"]) as (_, giver),
    ):
        left = moved(giver, taker)
        assert decode(HostsLeft, left.document).hosts == ()
        taker.open_rest()
        with connect(folder / "b"):
            turn(loop, lambda: new.back_ends.is_connected("c1"))
            assert new.back_ends.is_connected("c1")


class Readers:
    """Clients of one output, and what each has got; the last one reads only what it is told to."""

    def __init__(self, *paths):
        self.sockets = [connect(path) for path in paths]
        self.taken = [bytearray() for _ in paths]
        for each in self.sockets:
            each.setblocking(False)

    def read(self, *, all_of_them=False):
        count = len(self.sockets) - (not all_of_them)
        for each, into in list(zip(self.sockets, self.taken, strict=True))[:count]:
            into += try_receive(each)

    def close(self):
        for each in self.sockets:
            each.close()


@pytest.mark.timeout(180)
def test_clients_that_share_a_port_miss_nothing_and_get_nothing_twice(loop, folder):
    """One who does not read throttles the guest in the middle of a chain; the first try to hand over fails."""
    path, watch, log = folder / "many", folder / "watch", folder / "log"
    chardevs = [f"socket,path={path},server=on,wait=off,clients=4,backlog=64k,watch={watch},logfile={log}"]
    data = os.urandom(8_000_000)
    sent = 0
    throttled = threading.Event()

    def write():
        nonlocal sent
        sent += port.port.write(data[sent : sent + 50_000])

    def write_until_throttled():
        write()
        readers.read()
        return throttled.is_set()

    def write_all():
        write()
        readers.read(all_of_them=True)
        return min(map(len, readers.taken)) >= len(data) and len(port.data) >= 10

    def load():
        guest.migration.state = STOP_COPY
        state = guest.migration.read_data()
        there = guest.connect(folder / "new.sock")
        target = MigrationClient(there)
        target.state = RESUMING
        target.write_data(state)
        target.state = STOP
        return there

    def go_on():
        MigrationClient(there).state = RUNNING
        guest.settle(there)

    def run(work, *arguments, until=lambda: False):
        """Have the guest do something while the keepers work."""
        future = pool.submit(work, *arguments)
        turn(loop, lambda: future.done() or until())
        return future.result(0)

    def is_throttled():
        if any(each["behind"] == (64 << 10) + WINDOW for each in old.back_ends.clients()[0]["clients"]):
            throttled.set()

    with (
        ThreadPoolExecutor(1) as pool,
        keeper(loop, "new", folder, chardevs, expects=True) as (new, taker),
        keeper(loop, "old", folder, chardevs) as (old, giver),
    ):
        guest = run(MovingGuest, folder / "old.sock", "p1")
        readers = Readers(path, watch, path)
        try:
            turn(loop, lambda: len(old.back_ends.clients()[0]["clients"]) == 3)
            port = run(guest.open, "p1")
            run(guest.run_until, lambda: port.port.host_connected, 40)
            run(guest.run_until, write_until_throttled, 40, until=is_throttled)
            there = run(load)
            readers.sockets[0].sendall(b"stood")
            for fd in moved(giver, taker, Devices(old).pause).rest():
                os.close(fd)
            giver.keep(["c1"])
            late = [connect(path)]
            turn(loop, lambda: len(old.back_ends.clients()[0]["clients"]) == 4)
            left = moved(giver, taker, Devices(old).pause)
            taker.take_over(decode(HostsLeft, left.document), left.take)
            # Both keepers have them.
            late.append(connect(path))
            turn(loop, lambda: len(new.back_ends.clients()[0]["clients"]) == 5)
            written = new.back_ends.clients()[0]["written"]
            turn(loop, lambda: readers.read(all_of_them=True) or min(map(len, readers.taken)) >= written)
            giver.release(["c1"])
            assert not old.back_ends.clients()
            for each in late:
                each.close()
            run(go_on)
            readers.sockets[2].sendall(b"still")
            run(guest.run_until, write_all, 60)
            for into in readers.taken:
                assert into == data, jumps(data, into)
            assert sorted([port.data[:5], port.data[5:]]) == [b"still", b"stood"]
            assert log.read_bytes() == data
            turn(loop, lambda: len(new.back_ends.clients()[0]["clients"]) == 3)
            (found,) = new.back_ends.clients()
            assert (found["written"], found["dropped"], found["disconnected"]) == (len(data), 0, 0)
            assert not any(each["behind"] for each in found["clients"])
            latest = Readers(watch, path)
            turn(loop, lambda: latest.read(all_of_them=True) or min(map(len, latest.taken)) >= 64 << 10)
            assert latest.taken == [data[-(64 << 10) :]] * 2
            latest.close()
        finally:
            readers.close()
            run(guest.close)
    assert not path.exists()
    assert not watch.exists()


def test_of_clients_that_share_a_port_those_with_a_protocol_end(loop, folder):
    path = folder / "many"
    chardevs = [f"socket,path={path},server=on,wait=off,clients=2,telnet=on"]
    with (
        keeper(loop, "new", folder, chardevs, expects=True) as (new, taker),
        keeper(loop, "old", folder, chardevs) as (old, giver),
        connect(path) as client,
    ):
        turn(loop, lambda: old.back_ends.clients()[0]["clients"])
        left = moved(giver, taker, Devices(old).pause)
        taker.take_over(decode(HostsLeft, left.document), left.take)
        giver.release(["c1"])
        while client.recv(100):
            pass
        assert not new.back_ends.clients()[0]["clients"]
        with connect(path) as again:
            turn(loop, lambda: new.back_ends.clients()[0]["clients"])
            assert again.recv(1) == b"\xff"
    assert not path.exists()
