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

from virtserial.channel.channel import MAX_FDS, MAX_MESSAGE, Channel
from virtserial.daemon.keeper.held import HeldDescriptors
from virtserial.daemon.worker.limited_log import LimitedLog
from virtserial.errors import StateError
from virtserial.loop import EventLoop


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
    """Two joined ends, and the raw socket of a third that says anything."""
    one, other = Channel.pair()
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def liar():
    """A channel, and a raw socket at its other end."""
    raw, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(theirs)
    yield raw, channel
    raw.close()
    channel.close()


def null(count=1):
    return [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(count)]


def send_raw(raw, data, fds=()):
    raw.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


class TestChannel:
    def test_messages_arrive_whole_and_in_order_with_their_descriptors(self, channel):
        one, other = channel
        fds = null(MAX_FDS)
        one.send({"type": "a", "text": "x" * 60_000, "number": 1 << 63}, fds)
        one.send({"type": "b"})
        for fd in fds:
            os.close(fd)
        message, received = other.receive()
        assert message == {"type": "a", "text": "x" * 60_000, "number": 1 << 63}
        assert len(received) == MAX_FDS
        assert not any(os.get_inheritable(fd) for fd in received)
        for fd in received:
            os.close(fd)
        assert other.receive() == ({"type": "b"}, [])
        assert other.receive() is None

    def test_text_that_is_no_unicode_survives(self, channel):
        one, other = channel
        one.send({"type": "port", "name": os.fsdecode(b"\xff\xfe")})
        assert os.fsencode(other.receive()[0]["name"]) == b"\xff\xfe"

    def test_what_a_dead_sender_has_sent_arrives_before_the_end(self, channel):
        one, other = channel
        fds = null()
        one.send({"type": "last"}, fds)
        os.close(fds[0])
        one.close()
        message, received = other.receive()
        assert message == {"type": "last"}
        os.close(received[0])
        with pytest.raises(EOFError):
            other.receive()

    def test_nobody_at_the_other_end(self, channel):
        one, other = channel
        other.close()
        with pytest.raises(OSError):
            one.send({"type": "x"})
        with pytest.raises(EOFError):
            one.receive()

    @pytest.mark.parametrize("count", [MAX_MESSAGE, 10 * MAX_MESSAGE])
    def test_message_that_is_too_large_is_not_sent(self, channel, count):
        one, other = channel
        with pytest.raises(StateError, match="too large"):
            one.send({"type": "x" * count})
        assert other.receive() is None

    def test_more_descriptors_than_a_message_may_have_are_not_sent(self, channel):
        one, other = channel
        fds = null(MAX_FDS + 1)
        with pytest.raises(StateError, match=f"{MAX_FDS + 1} descriptors is too large"):
            one.send({"type": "x"}, fds)
        for fd in fds:
            os.close(fd)
        assert other.receive() is None

    @pytest.mark.parametrize(
        "data",
        [b"{", b"[1]", b'"type"', b"\xff\xfe", b"null", b"[" * 60_000, b'{"type":"x"} more', b"x" * (MAX_MESSAGE + 5)],
        ids=["cut", "list", "string", "bytes", "null", "deep", "two", "long"],
    )
    def test_malformed_message_costs_no_descriptor_and_not_the_next_message(self, liar, data):
        raw, channel = liar
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        fds = null(3)
        send_raw(raw, data, fds)
        send_raw(raw, b'{"type":"fine"}')
        for fd in fds:
            os.close(fd)
        with pytest.raises(StateError, match=f"channel message of {min(len(data), MAX_MESSAGE + 1)} bytes"):
            channel.receive()
        assert channel.receive() == ({"type": "fine"}, [])

    @pytest.mark.parametrize("count", [MAX_FDS + 1, 200])
    def test_too_many_descriptors_are_refused_and_closed(self, liar, count):
        raw, channel = liar
        fds = null(count)
        send_raw(raw, b'{"type":"x"}', fds)
        for fd in fds:
            os.close(fd)
        with pytest.raises(StateError, match="cut short"):
            channel.receive()

    def test_knows_whether_everything_was_received(self, channel):
        one, other = channel
        assert not one.unread()
        one.send({"type": "x"})
        assert one.unread()
        other.receive()
        assert not one.unread()

    def test_send_gives_up_on_an_end_that_does_not_read(self, channel):
        one, _ = channel
        one.set_send_timeout(1)
        with pytest.raises(BlockingIOError):
            for _ in range(100_000):
                one.send({"type": "x" * 10_000})

    def test_more_descriptors_under_way_than_a_user_may_have_wait(self):
        """Only who is not root is limited (unix(7), ETOOMANYREFS)."""
        program = """
import os, resource, threading, time
from virtserial.channel.channel import Channel
import json, array  # what is imported later need not be readable for that user
if os.geteuid() == 0:
    os.setresgid(65533, 65533, 65533)
    os.setresuid(65533, 65533, 65533)
one, other = Channel.pair()
fds = [os.dup(1) for _ in range(16)]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
numbers = []
def receive():
    time.sleep(0.2)
    while len(numbers) < 50:
        message, received = other.receive(wait=True)
        numbers.append((message["number"], len(received)))
        for fd in received:
            os.close(fd)
thread = threading.Thread(target=receive)
thread.start()
started = time.monotonic()
for number in range(50):
    one.send({"number": number}, fds)
print("waited" if time.monotonic() - started >= 0.15 else "did not wait")
thread.join()
assert numbers == [(number, 16) for number in range(50)], numbers
"""
        result = subprocess.run(
            [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=20
        )
        assert (result.stdout, result.stderr) == ("waited\n", "")


class TestHeldDescriptors:
    @pytest.fixture
    def held(self):
        table = HeldDescriptors()
        yield table
        table.drop_all("")

    @staticmethod
    def keys(held, prefix=""):
        return [key for key, _, _ in held.entries(prefix)]

    def test_addresses_that_begin_alike_are_not_confused(self, held):
        for address in (4096, 40960, 409600):
            held.hold(f"dma/0/{address}/", {"type": "dma"}, null())
        held.drop_all("dma/0/4096/")
        assert self.keys(held) == ["dma/0/40960/", "dma/0/409600/"]

    def test_controllers_and_interrupt_types_that_begin_alike_are_not_confused(self, held):
        for key in ("irq/1/2/1/", "irq/1/2/10/", "irq/10/2/1/", "irq/1/20/1/"):
            held.hold(key, {"type": "irq"}, null())
        held.drop_all("irq/1/2/1/")
        assert self.keys(held) == ["irq/1/2/10/", "irq/10/2/1/", "irq/1/20/1/"]
        held.drop_all("irq/1/2/")
        assert self.keys(held) == ["irq/10/2/1/", "irq/1/20/1/"]
        held.drop_all("irq/1/")
        assert self.keys(held) == ["irq/10/2/1/"]

    def test_holding_a_key_again_closes_what_was_there(self, held):
        (old,), (new,) = null(), null()
        held.hold("vmm/0", {"type": "vmm"}, [old])
        held.hold("vmm/0", {"type": "vmm", "again": True}, [new])
        assert [(key, message["again"], fds) for key, message, fds in held.entries("")] == [("vmm/0", True, [new])]
        with pytest.raises(OSError):
            os.fstat(old)

    def test_taking_gives_the_descriptors_away(self, held):
        fds = null(2)
        held.hold("vmm/0", {"type": "vmm"}, fds)
        assert held.take("vmm/0") == fds
        assert held.take("vmm/0") == []
        for fd in fds:
            os.close(fd)

    def test_entries_come_oldest_first_and_may_be_dropped_meanwhile(self, held):
        for number in (3, 1, 2):
            held.hold(f"dma/0/{number}/", {"number": number}, null())
        seen = []
        for key, message, _ in held.entries("dma/"):
            seen.append(message["number"])
            held.drop(key)
        assert seen == [3, 1, 2]
        assert self.keys(held) == []

    def test_full_table_refuses_and_closes(self, held, monkeypatch):
        monkeypatch.setattr("virtserial.daemon.keeper.held.MAX_HELD", 2)
        for number in range(2):
            held.hold(f"dma/0/{number}/", {}, null())
        held.hold("dma/0/1/", {}, null())
        with pytest.raises(StateError, match="more than 2"):
            held.hold("dma/0/2/", {}, null())
        assert self.keys(held) == ["dma/0/0/", "dma/0/1/"]


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
        assert caplog.messages[1:] == ["ser0: 99 more times within 0.1 s: port ...: ..."]

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
