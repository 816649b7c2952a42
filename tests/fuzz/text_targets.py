"""What clients of monitors, hosts at sockets, and command lines can say."""

from __future__ import annotations

import contextlib
import json

from fuzz.any_bytes import AnyBytes

from virtserial.errors import ConfigError, PeerError
from virtserial.host_end.telnet import TelnetLayer
from virtserial.host_end.websocket import WebSocketLayer
from virtserial.monitor.json_stream import JsonError, JsonStream
from virtserial.monitor.qmp import QmpError, QmpSession, greeting
from virtserial.monitor.readline import MAX_HISTORY, MAX_LINE, Readline
from virtserial.options.chardev_options import parse_chardev
from virtserial.options.device_options import parse_device
from virtserial.options.keyval import parse_options, to_number, to_size
from virtserial.options.monitor_options import parse_mon, parse_monitor


def _pieces(data):
    """The bytes in the pieces that the first of them says."""
    size = 1 + (data[0] if data else 0)
    return [data[start : start + size] for start in range(1, len(data), size)]


def _same(one, other):
    return [repr(each) for each in one] == [repr(each) for each in other]


def json_stream(data):
    """Values and errors are the same whatever pieces they come in."""
    whole = list(JsonStream().feed(data[1:]))
    stream = JsonStream()
    assert _same(whole, [value for piece in _pieces(data) for value in stream.feed(piece)])
    for value in whole:
        if not isinstance(value, JsonError):
            json.dumps(value)


def qmp(data):
    """Every request is answered once, in whole lines of JSON."""
    session = QmpSession(greeting())
    session.data_to_send()
    said, asked = b"", 0
    for number, piece in enumerate([b'{"execute":"qmp_capabilities"}\n', *_pieces(data)]):
        for received in session.receive(piece):
            asked += 1
            request = session.request(received)
            if request is not None:
                session.answer(request, {"number": number} if number % 2 else QmpError("no"))
        session.event("EVENT", {"number": number}, 1.5)
        said += session.data_to_send()
    assert said.endswith(b"\r\n")
    answers = [json.loads(line) for line in said.split(b"\r\n")[:-1]]
    for answer in answers:
        assert ("return" in answer) + ("error" in answer) + ("event" in answer) == 1
    assert sum("event" not in answer for answer in answers) == asked


def readline(data):
    """Keys of any kind: lines keep their limit, the cursor stays in the line, output is text."""
    words = ("device_add", "device_del", "chardev-add", "info ")
    line = Readline("(qemu) ", lambda text: ([word for word in words if word.startswith(text)], len(text)))
    line.show_prompt()
    for character in data.decode("utf-8", "surrogateescape"):
        ended = line.type(character)
        if ended is not None:
            assert len(ended) <= MAX_LINE + 16
            assert "\n" not in ended
            line.show_prompt()
        assert 0 <= line._cursor <= len(line._text) <= MAX_LINE + 16
        assert len(line._history) <= MAX_HISTORY
        assert isinstance(line.output(), str)


def options(data):
    """Whatever is written on a command line, the answer is a meaning or one ConfigError."""
    text = data.decode("utf-8", "surrogateescape")
    for parse in (
        parse_chardev,
        parse_device,
        parse_mon,
        lambda given: parse_monitor(given, 0, "control"),
        lambda given: parse_options(given, "id"),
        lambda given: to_number("n", given),
        lambda given: to_size("n", given),
    ):
        with contextlib.suppress(ConfigError):
            parse(text)


def websocket(data):
    """A client's handshake and frames, in any pieces: payload is never more than was sent, answers are bounded."""
    layer = WebSocketLayer()
    layer.begin()
    source = AnyBytes(data)
    if source.u8() & 1:
        layer.received(
            b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Protocol: binary\r\n\r\n"
        )
        assert layer.established
    given = payload = 0
    try:
        while source.left():
            piece = source.take(1 + source.u8())
            given += len(piece)
            payload += len(layer.received(piece))
            assert payload <= given
            assert len(layer.answers) <= 4096 + 8 * given
            if layer.ended:
                break
    except PeerError:
        pass
    assert len(layer.answers) <= 4096 + 8 * given


def telnet(data):
    """Commands are taken out; the same text comes whatever pieces it came in."""
    text = _all_received(TelnetLayer(server=True), [data[1:]])
    assert text == _all_received(TelnetLayer(server=True), _pieces(data))
    assert len(text) <= len(data)
    layer = TelnetLayer(server=True)
    assert _all_received(layer, [b"".join(layer.sent([text]))]) == text


def _all_received(layer, pieces):
    """What a layer makes of pieces, in as many turns as it takes."""
    text = b""
    for piece in pieces:
        text += layer.received(piece)
        while layer.pending:
            text += layer.received(b"")
    return text
