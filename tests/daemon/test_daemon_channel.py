"""The channel between keeper and worker, the table of held descriptors, and the log that a guest cannot fill."""

from __future__ import annotations

import array
import gc
import json
import logging
import os
import socket
import subprocess
import sys

import pytest
from support.places import ENVIRONMENT

from virtserial.channel.channel import MAX_MESSAGE, Channel, channel_pair
from virtserial.channel.codec import encode
from virtserial.channel.connections import NullConnection
from virtserial.channel.messages import (
    FROM_WORKER,
    MAX_FDS,
    Connect,
    ConnectVmm,
    Disconnect,
    DmaMap,
    Irq,
    Pong,
    Start,
    Stop,
)
from virtserial.channel.record import replace
from virtserial.daemon.keeper.held import HeldDescriptors
from virtserial.daemon.worker.limited_log import LimitedLog
from virtserial.errors import StateError
from virtserial.loop import EventLoop

PONG = b'{"type":"Pong","number":1}'


def open_here():
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def no_descriptor_is_left():
    gc.collect()  # what other tests have left for it is not this one's
    before = len(open_here())
    yield
    assert len(open_here()) == before


@pytest.fixture
def channel():
    """The keeper's end and the worker's."""
    ours, theirs = channel_pair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def liar():
    """The keeper's end, and a raw socket at the other."""
    raw, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(ours, FROM_WORKER)
    yield raw, channel
    raw.close()
    channel.close()


def null(count=1):
    return [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(count)]


def send_raw(raw, data, fds=()):
    raw.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


def connect(text=""):
    return Connect("c0", None, False, False, text, 1, NullConnection("n"))


class TestChannel:
    def test_messages_arrive_whole_and_in_order_with_their_descriptors(self, channel):
        one, other = channel
        fds = null(MAX_FDS)
        one.send(connect("x" * 60_000), fds)
        one.send(Start())
        for fd in fds:
            os.close(fd)
        message, received = other.receive()
        assert message == connect("x" * 60_000)
        assert len(received) == MAX_FDS
        assert not any(os.get_inheritable(fd) for fd in received)
        for fd in received:
            os.close(fd)
        assert other.receive() == (Start(), [])
        assert other.receive() is None

    def test_text_that_is_no_unicode_survives(self, channel):
        one, other = channel
        one.send(Disconnect(os.fsdecode(b"\xff\xfe")))
        assert os.fsencode(other.receive()[0].chardev) == b"\xff\xfe"

    def test_what_a_dead_sender_has_sent_arrives_before_the_end(self, channel):
        one, other = channel
        fds = null()
        one.send(ConnectVmm(3), fds)
        os.close(fds[0])
        one.close()
        message, received = other.receive()
        assert message == ConnectVmm(3)
        os.close(received[0])
        with pytest.raises(EOFError):
            other.receive()

    def test_nobody_at_the_other_end(self, channel):
        one, other = channel
        other.close()
        with pytest.raises(OSError):
            one.send(Start())
        with pytest.raises(EOFError):
            one.receive()

    def test_an_end_does_not_take_what_is_its_own_to_send(self, channel):
        one, other = channel
        other.send(Stop())
        with pytest.raises(StateError, match="type 'Stop' is none of Ready"):
            one.receive()

    @pytest.mark.parametrize("count", [MAX_MESSAGE, 10 * MAX_MESSAGE])
    def test_message_that_is_too_large_is_not_sent(self, channel, count):
        one, other = channel
        with pytest.raises(StateError, match="too large"):
            one.send(connect("x" * count))
        assert other.receive() is None

    def test_more_descriptors_than_a_message_may_have_are_not_sent(self, channel):
        one, other = channel
        fds = null(MAX_FDS + 1)
        with pytest.raises(StateError, match=f"{MAX_FDS + 1} descriptors is too large"):
            one.send(connect(), fds)
        for fd in fds:
            os.close(fd)
        assert other.receive() is None

    @pytest.mark.parametrize(
        "data",
        [b"{", b"[1]", b'"type"', b"\xff\xfe", b"null", b"[" * 60_000, PONG + b" more", b"x" * (MAX_MESSAGE + 5),
         b'{"type":"Pong"}', b'{"type":"Pong","number":NaN}', b'{"type":"Pong","number":1e999}', PONG],
        ids=["cut", "list", "string", "bytes", "null", "deep", "two", "long", "missing", "nan", "infinity", "fds"],
    )  # fmt: skip
    def test_malformed_message_costs_no_descriptor_and_not_the_next_message(self, liar, data):
        raw, channel = liar
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        fds = null(3)
        send_raw(raw, data, fds)
        send_raw(raw, PONG)
        for fd in fds:
            os.close(fd)
        with pytest.raises(StateError, match=f"channel message of {min(len(data), MAX_MESSAGE + 1)} bytes"):
            channel.receive()
        assert channel.receive() == (Pong(1), [])

    def test_empty_message_is_the_end_and_costs_no_descriptor(self, liar):
        raw, channel = liar
        fds = null(3)
        send_raw(raw, b"", fds)
        for fd in fds:
            os.close(fd)
        with pytest.raises(EOFError):
            channel.receive()

    @pytest.mark.parametrize("count", [MAX_FDS + 1, 200])
    def test_too_many_descriptors_are_refused_and_closed(self, liar, count):
        raw, channel = liar
        fds = null(count)
        send_raw(raw, PONG, fds)
        for fd in fds:
            os.close(fd)
        with pytest.raises(StateError, match="cut short"):
            channel.receive()

    @pytest.mark.parametrize(
        ("message", "count"), [(Irq(0, 2, 1), 0), (Irq(0, 2, 1), 2), (DmaMap(0, 0, 1, 3, 0), 2), (Pong(1), 1)]
    )
    def test_wrong_number_of_descriptors_is_refused(self, liar, message, count):
        raw, channel = liar
        fds = null(count)
        send_raw(raw, json.dumps(encode(message)).encode(), fds)
        for fd in fds:
            os.close(fd)
        with pytest.raises(StateError, match=f"{type(message).__name__} with {count} descriptors"):
            channel.receive()

    def test_knows_whether_everything_was_received(self, channel):
        one, other = channel
        assert not one.unread()
        one.send(Start())
        assert one.unread()
        other.receive()
        assert not one.unread()

    def test_send_gives_up_on_an_end_that_does_not_read(self, channel):
        one, _ = channel
        one.set_send_timeout(1)
        with pytest.raises(BlockingIOError):
            for _ in range(100_000):
                one.send(connect("x" * 10_000))

    def test_more_descriptors_under_way_than_a_user_may_have_wait(self):
        """Only who is not root is limited (unix(7), ETOOMANYREFS)."""
        program = """
import os, resource, threading, time
from virtserial.channel.channel import channel_pair
from virtserial.channel.connections import NullConnection
from virtserial.channel.messages import Connect
import json, array  # what is imported later need not be readable for that user
if os.geteuid() == 0:
    os.setresgid(65533, 65533, 65533)
    os.setresuid(65533, 65533, 65533)
one, other = channel_pair()
fds = [os.dup(1) for _ in range(16)]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
numbers = []
def receive():
    time.sleep(0.2)
    while len(numbers) < 50:
        message, received = other.receive(wait=True)
        numbers.append((message.serial, len(received)))
        for fd in received:
            os.close(fd)
thread = threading.Thread(target=receive)
thread.start()
started = time.monotonic()
for number in range(50):
    one.send(Connect("c0", None, False, False, "", number, NullConnection("n")), fds)
print("waited" if time.monotonic() - started >= 0.15 else "did not wait")
thread.join()
assert numbers == [(number, 16) for number in range(50)], numbers
"""
        result = subprocess.run(
            [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
        )
        assert (result.stdout, result.stderr) == ("waited\n", "")


class TestHeldDescriptors:
    @pytest.fixture
    def held(self):
        table = HeldDescriptors()
        yield table
        table.close()

    @staticmethod
    def messages(held):
        return [message for message, _ in held]

    def test_one_map_is_dropped_by_its_address(self, held):
        maps = [DmaMap(0, address, 4096, 3, 0) for address in (4096, 40960, 409600)]
        for message in maps:
            held.hold(message, null())
        held.drop(DmaMap, 0, 4096)
        held.drop(DmaMap, 0, 1)
        held.drop(DmaMap, 1, 40960)
        assert self.messages(held) == maps[1:]
        assert (held.count(DmaMap, 0), held.count(DmaMap, 1), held.count(Irq, 0)) == (2, 0, 0)

    def test_interrupts_are_dropped_by_vector_by_type_or_all(self, held):
        irqs = [Irq(1, 2, 1), Irq(1, 2, 10), Irq(10, 2, 1), Irq(1, 3, 1), Irq(1, 0, 0)]
        for message in irqs:
            held.hold(message, null())
        held.drop(Irq, 1, (2, 1))
        assert set(self.messages(held)) == set(irqs[1:])
        held.drop_type(1, 2)
        assert set(self.messages(held)) == set(irqs[2:])
        held.drop_all(Irq, 1)
        assert self.messages(held) == [irqs[2]]

    def test_holding_a_place_again_closes_what_was_there(self, held):
        (old,), (new,) = null(), null()
        held.hold(DmaMap(0, 0, 1, 3, 0), [old])
        held.hold(DmaMap(0, 0, 2, 3, 0), [new])
        assert list(held) == [(DmaMap(0, 0, 2, 3, 0), [new])]
        with pytest.raises(OSError):
            os.fstat(old)

    def test_another_message_keeps_the_descriptors(self, held):
        fds = null()
        held.hold(connect(), fds)
        held.change(replace(connect(), hub="h"))
        assert held.find(Connect, "c0").hub == "h"
        assert list(held.all(Connect, "c0")) == [(replace(connect(), hub="h"), fds)]

    def test_taking_gives_the_descriptors_away(self, held):
        fds = null(1)
        held.hold(ConnectVmm(0), fds)
        assert held.take(ConnectVmm, 0) == fds
        assert held.take(ConnectVmm, 0) == []
        assert held.find(ConnectVmm, 0) is None
        for fd in fds:
            os.close(fd)

    def test_entries_come_oldest_first_and_may_be_dropped_meanwhile(self, held):
        for number in (3, 1, 2):
            held.hold(DmaMap(0, number, 1, 3, 0), null())
        seen = []
        for message, _ in held.all(DmaMap):
            seen.append(message.iova)
            held.drop(DmaMap, 0, message.iova)
        assert seen == [3, 1, 2]
        assert self.messages(held) == []


class TestLimitedLog:
    @pytest.fixture
    def limited(self, monkeypatch):
        monkeypatch.setattr("virtserial.daemon.worker.limited_log.INTERVAL", 0.1)
        loop = EventLoop()
        yield loop, LimitedLog(logging.getLogger("virtserial.test"), loop, "ser0")
        loop.close()

    def test_first_line_is_told_at_once_the_others_are_counted(self, limited, caplog):
        loop, log = limited
        for number in range(100):
            log.error("port %d: %s", number, "bad")
        assert caplog.messages == ["ser0: port 0: bad"]
        loop.run_once(1)
        assert caplog.messages[1:] == ["ser0: 99 more within 0.1 s: port ...: ..."]

    def test_kinds_do_not_hide_each_other(self, limited, caplog):
        _, log = limited
        for _ in range(3):
            log.error("one %s", 1)
            log.error("two")
        assert caplog.messages == ["ser0: one 1", "ser0: two"]

    def test_after_a_quiet_interval_a_line_is_told_at_once(self, limited, caplog):
        loop, log = limited
        log.error("one")
        loop.run_once(1)
        log.error("one")
        assert caplog.messages == ["ser0: one", "ser0: one"]

    def test_words_of_a_guest_are_no_format(self, limited, caplog):
        _, log = limited
        log.error("name %s", "100 %s %d")
        assert caplog.messages == ["ser0: name 100 %s %d"]

    def test_traceback_is_told_with_the_line(self, limited, caplog):
        _, log = limited
        try:
            json.loads("{")
        except ValueError:
            log.error("internal error", with_traceback=True)
        assert "JSONDecodeError" in caplog.text
