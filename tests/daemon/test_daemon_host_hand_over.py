"""Host ends that go from one keeper to another: connections, waiting clients and paths."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import contextmanager

import pytest

from virtserial.channel.codec import decode, encode
from virtserial.cli.serve_options import Options, build, build_objects
from virtserial.daemon.keeper.document import HostsLeft, HostsWanted
from virtserial.daemon.keeper.handover import Handover
from virtserial.daemon.keeper.host_hand_over import HostHandOver
from virtserial.daemon.keeper.keeper import Keeper
from virtserial.daemon.worker_code import InstalledWorker
from virtserial.errors import ConfigError
from virtserial.loop import EventLoop
from virtserial.migration.devices import Devices


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


def turn(loop, until=lambda: False, seconds=10):
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


def moved(giver, taker):
    """What one has described, as the other gets it."""
    handover = Handover()
    handover.document = encode(giver.describe(taker.wanted(), handover.put, lambda: None))
    return Handover.unpack(handover.pack())


def connect(path):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
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
        handover = Handover()
        left = giver.describe(taker.wanted(), handover.put, Devices(old).pause)
        handover.document = encode(left)
        taken = Handover.unpack(handover.pack())
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
