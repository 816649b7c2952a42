"""The message layer: sessions over a channel that loses, cuts, repeats and invents bytes."""

from __future__ import annotations

import random

import pytest

from virtserial.guest.errors import ProtocolError
from virtserial.guest.link import (
    FIRST_REPEAT,
    HEADER,
    HIGH_WATER,
    LAST_REPEAT,
    MAGIC,
    MAX_PAYLOAD,
    SILENCE,
    Established,
    Link,
    Lost,
    Message,
)


class Pair:
    """Two links and the bytes under way between them, which a test may spoil."""

    def __init__(self, seed=1):
        dice = random.Random(seed)
        self.now = 0.0
        self.links = {"a": Link(b"ask", dice.randbytes), "b": Link(b"answer", dice.randbytes)}
        self.way = {"a": bytearray(), "b": bytearray()}
        self.events = {"a": [], "b": []}

    def connect(self, *names):
        for name in names or "ab":
            self.links[name].connected(self.now)

    def collect(self):
        """Moves what the links want to send to the way to the other end."""
        for name, other in (("a", "b"), ("b", "a")):
            link = self.links[name]
            data = b"".join(bytes(buffer) for buffer in link.data_to_send())
            link.sent(len(data))
            self.way[other] += data

    def deliver(self, piece=1 << 20):
        """Moves everything in pieces until nobody says anything any more."""
        self.collect()
        while self.way["a"] or self.way["b"]:
            for name in "ab":
                data = bytes(self.way[name][:piece])
                del self.way[name][:piece]
                if data:
                    self.events[name] += self.links[name].receive(data, self.now)
            self.collect()

    def wait(self, seconds):
        """Lets time pass, with everything that is due."""
        self.now += seconds
        for name, link in self.links.items():
            if link.timer() is not None and link.timer() <= self.now:
                self.events[name] += link.handle_timer(self.now)

    def take(self, name):
        events, self.events[name] = self.events[name], []
        return events


@pytest.fixture
def pair():
    return Pair()


@pytest.fixture
def talking(pair):
    pair.connect()
    pair.deliver()
    assert pair.take("a") == [Established(b"answer")]
    assert pair.take("b") == [Established(b"ask")]
    return pair


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_session_begins_and_messages_arrive_in_order_in_pieces_of_any_size(pair, piece):
    pair.connect()
    pair.deliver(piece)
    for number in range(5):
        pair.links["a"].send(3, b"x" * number, b"%d" % number)
    pair.links["b"].send(4)
    pair.deliver(piece)
    assert pair.take("b") == [Established(b"ask"), *[Message(3, b"x" * n + b"%d" % n) for n in range(5)]]
    assert pair.take("a") == [Established(b"answer"), Message(4, b"")]


def test_nobody_talks_when_nothing_is_to_be_said(talking):
    talking.wait(1000)
    talking.collect()
    assert talking.way == {"a": b"", "b": b""}
    assert [link.timer() for link in talking.links.values()] == [None, None]


def test_hello_is_repeated_ever_more_slowly_and_not_piled_up(pair):
    pair.connect("a")
    times = []
    while pair.now < 100:
        pair.collect()
        due = pair.links["a"].timer()
        times.append(due - pair.now)
        pair.wait(due - pair.now)
    assert times[0] == FIRST_REPEAT
    assert times[-1] == LAST_REPEAT
    before = sum(map(len, pair.links["a"].data_to_send()))
    for _ in range(50):
        pair.wait(LAST_REPEAT)
    assert sum(map(len, pair.links["a"].data_to_send())) == before, "nobody took the last one, so there is one"


def test_lost_hello_of_either_side_is_made_good(pair):
    pair.connect()
    pair.collect()
    pair.way["a"].clear()
    pair.deliver()
    for _ in range(3):
        pair.wait(FIRST_REPEAT * 2)
        pair.deliver()
    assert pair.links["a"].established
    assert pair.links["b"].established


def test_messages_of_an_earlier_session_are_passed_over(talking):
    talking.links["a"].send(1, b"old")
    talking.collect()
    stale = bytes(talking.way["b"])
    talking.links["b"].disconnected()
    talking.way["b"].clear()
    talking.connect("b")
    talking.deliver()
    assert talking.take("b") == [Established(b"ask")]
    assert [type(event) for event in talking.take("a")] == [Lost, Established]
    talking.way["b"] += stale
    talking.links["a"].send(1, b"new")
    talking.deliver()
    assert talking.take("b") == [Message(1, b"new")]


@pytest.mark.parametrize("lost", [slice(0, 1), slice(10, 40), slice(0, 60), slice(100, 5000), slice(40, 41)])
def test_missing_bytes_end_the_session_and_begin_a_new_one(talking, lost):
    for number in range(4):
        talking.links["a"].send(1, bytes([number]) * 2000)
    talking.collect()
    del talking.way["b"][lost]
    talking.deliver()
    for _ in range(4):
        talking.wait(SILENCE)
        talking.deliver()
    events = talking.take("b")
    payloads = [event.payload[:1] for event in events if isinstance(event, Message)]
    assert payloads == [bytes([n]) for n in range(len(payloads))], "what arrived is the beginning, in order"
    assert len(payloads) < 4
    assert [type(event) for event in events if not isinstance(event, Message)] == [Lost, Established]
    talking.links["a"].send(9, b"and on")
    talking.deliver()
    assert talking.take("b") == [Message(9, b"and on")]


def test_changed_byte_anywhere_is_noticed():
    for position in range(0, 160, 7):
        talking = Pair(position)
        talking.connect()
        talking.deliver()
        talking.take("b")
        talking.links["a"].send(1, b"p" * 100)
        talking.links["a"].send(2, b"q")
        talking.collect()
        if position >= len(talking.way["b"]):
            continue
        talking.way["b"][position] ^= 0x20
        talking.deliver()
        messages = [event for event in talking.take("b") if isinstance(event, Message)]
        assert messages in ([], [Message(1, b"p" * 100)]), position


def test_frame_whose_rest_never_comes_does_not_swallow_the_next_hello(talking):
    talking.links["a"].send(1, bytes(50000))
    talking.collect()
    del talking.way["b"][30000:]
    # The other end is started again; the port's end here noticed nothing.
    talking.links["a"].disconnected()
    talking.connect("a")
    talking.deliver()
    assert not talking.links["a"].established
    talking.wait(SILENCE)
    talking.deliver()
    assert talking.links["a"].established
    assert talking.links["b"].established


def test_slow_frame_is_no_damaged_frame(talking):
    talking.links["a"].send(1, bytes(50000))
    talking.collect()
    data = bytes(talking.way["b"])
    talking.way["b"].clear()
    for start in range(0, len(data), 10000):
        talking.events["b"] += talking.links["b"].receive(data[start : start + 10000], talking.now)
        talking.wait(SILENCE * 3)
    assert talking.take("b") == [Message(1, bytes(50000))]


def test_garbage_before_the_session_is_passed_over(pair):
    pair.way["b"] += b"\xff" * 5000 + MAGIC + b"\0" * 100 + MAGIC[:2]
    pair.connect()
    pair.deliver()
    assert pair.take("b") == [Established(b"ask")]


def test_link_survives_any_bytes_and_keeps_little_of_them(talking):
    dice = random.Random(5)
    for _ in range(300):
        noise = dice.randbytes(dice.randrange(1, 4000))
        if dice.random() < 0.5:
            noise = MAGIC + noise
        talking.events["b"] += talking.links["b"].receive(noise, talking.now)
        assert len(talking.links["b"]._buffer) <= HEADER.size + MAX_PAYLOAD + 4
    assert not [event for event in talking.take("b") if isinstance(event, Message)]
    talking.wait(SILENCE * 2)
    talking.links["a"].disconnected()
    talking.links["b"].disconnected()
    talking.connect()
    talking.deliver()
    assert talking.links["b"].established


def test_frame_that_is_cut_everywhere_never_gives_a_wrong_message():
    for cut in range(1, 150, 4):
        pair = Pair(cut)
        pair.connect()
        pair.deliver()
        pair.take("b")
        pair.links["a"].send(1, b"first" * 10)
        pair.links["a"].send(1, b"second" * 5)
        pair.collect()
        del pair.way["b"][cut:]
        pair.links["a"].disconnected()
        pair.connect("a")
        for _ in range(5):
            pair.deliver()
            pair.wait(SILENCE)
        pair.links["a"].send(2, b"third")
        pair.deliver()
        messages = [event.payload for event in pair.take("b") if isinstance(event, Message)]
        assert messages[-1] == b"third"
        assert set(messages) <= {b"first" * 10, b"second" * 5, b"third"}


def test_own_words_from_a_port_that_echoes_are_nobody(pair):
    pair.connect("a")
    pair.collect()
    echo = bytes(pair.way["b"])
    assert pair.links["a"].receive(echo, 0) == []
    assert not pair.links["a"].established


def test_storm_of_stale_hellos_comes_to_rest(pair):
    for _ in range(50):
        pair.connect("a")
        pair.collect()
    pair.connect("b")
    pair.deliver()
    assert pair.links["a"].established
    assert pair.links["b"].established


def test_too_long_message_is_refused_where_it_is_sent(talking):
    with pytest.raises(ProtocolError, match=f"{MAX_PAYLOAD + 1} bytes"):
        talking.links["a"].send(1, bytes(MAX_PAYLOAD + 1))


def test_room_ends_when_much_waits(talking):
    link = talking.links["a"]
    while link.room:
        link.send(1, bytes(100000))
    assert sum(map(len, link.data_to_send())) < HIGH_WATER + 200000
    talking.deliver()
    assert link.room


def test_message_without_a_session_is_dropped(pair):
    pair.links["a"].send(1, b"nobody")
    assert pair.links["a"].data_to_send() == []
