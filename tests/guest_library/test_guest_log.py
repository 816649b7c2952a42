"""Log sender and collector over links that are cut: each line once, or counted as missing."""

from __future__ import annotations

import io
import os

import pytest

from virtserial.guest.link import Established, Link, Message
from virtserial.guest.log import BATCH, LINE_LIMIT, LogCollector, LogInput, LogSender
from virtserial.guest.stream import EpollStream


class Pair:
    def __init__(self, spool=1 << 20):
        self.stream = EpollStream()
        self.reader, self.writer = os.pipe()
        self.output = io.BytesIO()
        self.said = []
        self.links = [Link(LogSender.purpose), Link(LogCollector.purpose)]
        self.sender = LogSender(LogInput(self.reader, self.stream), self.links[0], spool)
        self.new_collector()

    def new_collector(self):
        self.collector = LogCollector(self.output, self.links[1], True, self.said.append)

    def write(self, text):
        os.write(self.writer, text)

    def connect(self):
        for link in self.links:
            link.disconnected()
            link.connected(0)

    def run(self, lose_answers=False):
        worked = True
        while worked:
            worked = self.sender.pump()
            for near, far, party in ((0, 1, self.collector), (1, 0, self.sender)):
                data = b"".join(bytes(buffer) for buffer in self.links[near].data_to_send())
                self.links[near].sent(len(data))
                worked = worked or bool(data)
                if lose_answers and near == 1 and self.links[1].established and self.links[0].established:
                    continue
                for event in self.links[far].receive(data, 0):
                    if isinstance(event, Message):
                        party.message(event.kind, event.payload)
                    elif isinstance(event, Established):
                        party.established()

    def close(self):
        self.stream.close()
        for fd in (self.reader, self.writer):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def pair():
    pair = Pair()
    yield pair
    pair.close()


def test_lines_arrive_once_though_the_answers_to_them_are_lost(pair):
    pair.connect()
    pair.run()
    for number in range(5):
        pair.write(b"line %d\n" % number)
        pair.run(lose_answers=True)
        pair.connect()
        pair.run()
    assert pair.output.getvalue() == b"".join(b"line %d\n" % number for number in range(5))
    assert pair.said == []


def test_collector_that_is_started_again_gets_what_the_first_had_not_taken(pair):
    pair.connect()
    pair.write(b"one\n")
    pair.run()
    pair.new_collector()
    pair.write(b"two\n")
    pair.connect()
    pair.run()
    assert pair.output.getvalue() == b"one\ntwo\n"
    assert pair.said == []


def test_lines_that_were_dropped_are_told_once():
    pair = Pair(spool=100)
    for number in range(50):
        pair.write(b"line %03d\n" % number)
    pair.run()
    pair.connect()
    pair.run()
    assert pair.output.getvalue() == b"".join(b"line %03d\n" % number for number in range(39, 50))
    assert pair.said == ["39 lines are missing: the spool was full"]
    pair.new_collector()
    pair.write(b"more\n")
    pair.connect()
    pair.run()
    assert pair.said == ["39 lines are missing: the spool was full"]
    assert pair.sender.dropped == 39
    pair.close()


def test_spool_is_bounded_whatever_comes():
    pair = Pair(spool=1000)
    for _ in range(100):
        pair.write(b"x" * 40000 + b"\n")
        pair.run()
        assert pair.sender._size <= 1000
        assert len(pair.sender._source._rest) < LINE_LIMIT + BATCH
    pair.close()


def test_last_line_without_an_end_gets_one_and_the_sender_is_finished(pair):
    pair.write(b"no end")
    os.close(pair.writer)
    pair.writer = -1
    pair.connect()
    pair.run()
    assert pair.output.getvalue() == b"no end\n"
    assert pair.sender.finished
    assert pair.collector.finished


def test_file_waits_instead_of_being_dropped(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"line %05d\n" % number for number in range(20000)))
    pair = Pair(spool=1000)
    fd = os.open(path, os.O_RDONLY)
    pair.sender = LogSender(LogInput(fd, pair.stream), pair.links[0], 1000)
    pair.run()
    pair.connect()
    pair.run()
    assert pair.output.getvalue() == path.read_bytes()
    assert pair.sender.dropped == 0
    os.close(fd)
    pair.close()
