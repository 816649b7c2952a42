"""How host ends are asked for and given: what either side does when the other one fails."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager, suppress

import pytest

from virtserial.channel.codec import encode
from virtserial.daemon.keeper.document import HostsLeft, HostsWanted
from virtserial.daemon.keeper.handover import Handover
from virtserial.loop import EventLoop
from virtserial.migration import hosts
from virtserial.migration.hosts import SOCKET, HostsGiver, send_handover, take_hosts
from virtserial.monitor.steps import run_steps

WANTED = HostsWanted({"c1": "anything"})


class HandOver:
    """Notes what it is asked, in the place of either side's."""

    def __init__(self):
        self.calls = []
        self.changed = threading.Event()

    def _note(self, *call):
        self.calls.append(call)
        self.changed.set()

    def describe(self, wanted, put, settle):
        settle()
        self._note("describe", dict(wanted.recipes))
        put(0)
        return HostsLeft(())

    def keep(self, ids):
        self._note("keep", list(ids))

    def release(self, ids):
        self._note("release", list(ids))

    def wanted(self):
        return WANTED

    def take_over(self, left, take):
        self._note("take over", len(left.hosts))
        os.close(take(0))

    def open_rest(self):
        self._note("open rest")


class Machine:
    """As much of a MovingMachine as a giver needs."""

    def __init__(self, loop):
        self.loop = loop
        self.paused = 0

    def run(self, steps, done):
        run_steps(steps, lambda *_: None, done)

    def pause(self):
        self.paused += 1


class Departures:
    def __init__(self, *, has_left):
        self.has_left = has_left

    def over(self):
        yield from ()


@contextmanager
def giver(folder, *, has_left=True):
    """A giver in a thread of its own; what it was asked."""
    loop, hand_over = EventLoop(), HandOver()
    machine = Machine(loop)
    giving = HostsGiver(machine, Departures(has_left=has_left), hand_over, str(folder))
    giving.listen()
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield hand_over
    finally:
        stopper, other = socket.socketpair()
        with stopper, other:
            loop.watch(other.fileno(), 1, lambda _: loop.stop())
            stopper.send(b"x")
            thread.join()
        giving.close()
        loop.close()
    assert not (folder / SOCKET).exists()


def asker(folder):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(60)
    client.connect(str(folder / SOCKET))
    return client


def wait_for(hand_over, call):
    while call not in hand_over.calls:
        assert hand_over.changed.wait(60), hand_over.calls
        hand_over.changed.clear()


def test_what_is_asked_for_is_taken_and_released(folder):
    taker = HandOver()
    with giver(folder) as hand_over:
        take_hosts(taker, str(folder))
        wait_for(hand_over, ("release", []))
    assert hand_over.calls == [("describe", {"c1": "anything"}), ("release", [])]
    assert taker.calls == [("take over", 0), ("open rest",)]
    assert os.stat(folder).st_uid == os.geteuid()


def test_only_the_owner_may_ask(folder):
    with giver(folder):
        assert (folder / SOCKET).stat().st_mode & 0o777 == 0o600


def test_a_guest_that_stays_keeps_its_hosts(folder, caplog):
    taker = HandOver()
    with giver(folder, has_left=False) as hand_over:
        take_hosts(taker, str(folder))
    assert hand_over.calls == []
    assert taker.calls == [("open rest",)]
    assert "hosts have to connect again" in caplog.text


def test_where_nobody_gives_others_are_opened(folder, caplog):
    taker = HandOver()
    take_hosts(taker, str(folder))
    assert taker.calls == [("open rest",)]
    assert "hosts have to connect again" in caplog.text


def ask(client):
    send_handover(client, Handover(encode(WANTED)))


@pytest.mark.parametrize("answer", [b"", b"-", None], ids=["gone", "something else", "nothing"])
def test_who_does_not_say_that_it_has_them_has_them_not(folder, answer, monkeypatch):
    monkeypatch.setattr(hosts, "TIMEOUT", 0.3)
    with giver(folder) as hand_over, asker(folder) as client:
        ask(client)
        _, fds, _, _ = socket.recv_fds(client, 1, 1)
        os.close(fds[0])
        if answer == b"":
            client.close()
        elif answer is not None:
            client.send(answer)
        wait_for(hand_over, ("keep", []))
    assert ("release", []) not in hand_over.calls


@pytest.mark.parametrize("garbage", [b"x", b"", b"{" * 100], ids=["a byte", "nothing", "much"])
def test_garbage_gets_nothing(folder, garbage, monkeypatch):
    monkeypatch.setattr(hosts, "TIMEOUT", 0.3)
    with giver(folder) as hand_over:
        with asker(folder) as client:
            client.send(garbage)
            # What it has not read resets the connection.
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
        with asker(folder) as client:
            # A document of another kind.
            send_handover(client, Handover(encode(HostsLeft(()))))
            assert client.recv(1) == b""
        taker = HandOver()
        take_hosts(taker, str(folder))
        wait_for(hand_over, ("release", []))
    assert taker.calls == [("take over", 0), ("open rest",)]
