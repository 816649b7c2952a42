"""Clients that send without a pause what costs us most: each turn of the loop stays short, memory stays small."""

import contextlib
import os
import socket
import time

import pytest
from support.websocket_client import frame

from virtserial.accounting import Account
from virtserial.host_end.layered import MAX_OUTPUT, READ_SIZE, LayeredStream
from virtserial.host_end.telnet import TelnetLayer
from virtserial.host_end.websocket import WebSocketLayer

TURN_SECONDS = 0.05
"""Processor time: ten times what a turn takes."""
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
FLOODS = {
    "websocket empty frames": (WebSocketLayer, REQUEST, frame(2)),
    "websocket frames of a byte": (WebSocketLayer, REQUEST, frame(2, b"x")),
    "websocket pings": (WebSocketLayer, REQUEST, frame(9)),
    "websocket pongs": (WebSocketLayer, REQUEST, frame(10)),
    "telnet commands": (TelnetLayer, b"", b"\xff\xf1"),
    "telnet options": (TelnetLayer, b"", b"\xff\xfb\x01"),
    "telnet parameters": (TelnetLayer, b"\xff\xfa", b"\xff\xff"),
    "telnet bytes 255": (TelnetLayer, b"", b"\xff\xff"),
}


class Guest:
    """A port that reads once in a turn, as long as there is something."""

    def __init__(self, house, end):
        self._house, self._end = house, end
        self._buffer = memoryview(bytearray(READ_SIZE))
        self.received = 0
        end.listener = self
        end.wants_input = True

    def host_opened(self):
        pass

    def host_closed(self):
        raise AssertionError("it breaks no rule")

    def host_writable(self):
        pass

    def host_readable(self):
        self.received += self._end.readv([self._buffer])
        if not self._end.wait_readable():
            self._house.loop.add_turn(self.host_readable)


@pytest.fixture
def flooded(house):
    """Give (client, guest) of a socket with a layer."""
    with contextlib.ExitStack() as stack:

        def flooded(layer):
            client, near = socket.socketpair()
            stack.enter_context(client)
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            near.setblocking(False)
            made = layer(server=True) if layer is TelnetLayer else layer()
            ticket = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            end = LayeredStream(house.loop, "flooded", near.detach(), ticket, [made], Account())
            house._ends.append(end)
            guest = Guest(house, end)
            end.start()
            return client, end, guest

        yield flooded


@pytest.mark.parametrize("reads_answers", [True, False])
@pytest.mark.parametrize("flood", FLOODS)
def test_flood(house, flooded, flood, reads_answers):
    layer, first, piece = FLOODS[flood]
    client, end, _ = flooded(layer)
    client.send(first)
    waiting = memoryview(piece * 50_000)
    sent, worst, turns, stop = 0, 0.0, 0, time.monotonic() + 0.4
    while time.monotonic() < stop or sent <= len(waiting) // 2 or turns <= 3:
        with contextlib.suppress(BlockingIOError):
            sent += client.send(waiting[sent % len(waiting) :])
        if reads_answers:
            with contextlib.suppress(BlockingIOError):
                client.recv(1 << 20)
        before = time.thread_time()
        house.loop.run_once(0.001)
        worst, turns = max(worst, time.thread_time() - before), turns + 1
    assert worst < TURN_SECONDS
    # A pong is no longer than its ping.
    assert len(end._output) < MAX_OUTPUT + 2 * READ_SIZE
    assert len(end._input) <= READ_SIZE
    assert len(house.loop._turns) <= 3


@pytest.mark.parametrize(
    ("layer", "first", "dense", "text"),
    [
        (WebSocketLayer, REQUEST, frame(9) * 2000 + frame(2, b"end"), b"end"),
        (WebSocketLayer, REQUEST, frame(2, b"x") * 2000, b"x" * 2000),
        (TelnetLayer, b"", b"\xff\xf1x" * 5000, b"x" * 5000),
    ],
    ids=("websocket pings", "websocket bytes", "telnet commands"),
)
def test_what_takes_several_turns_arrives_whole_and_then_the_hang_up(house, flooded, layer, first, dense, text):
    client, end, guest = flooded(layer)
    closed = []
    guest.host_closed = lambda: closed.append(True)
    client.send(first)
    client.settimeout(60)
    client.sendall(dense)
    client.shutdown(socket.SHUT_WR)
    house.until(lambda: closed)
    assert guest.received == len(text)
    assert (end.ended, end.input_discarded) == (True, 0)
