"""The private bus: what QEMU's object says to it, what others say, and what bytes without sense do."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
import time

import pytest

from virtserial.errors import ConfigError, PeerError
from virtserial.loop import EventLoop
from virtserial.migration.bus import StateBus
from virtserial.migration.dbus import MAX_MESSAGE, MAX_STATE, BusSession, parse_call

GREETING = b"\0AUTH\r\nAUTH EXTERNAL 30\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"
ANSWERS = [b"REJECTED EXTERNAL", b"OK " + b"0" * 31 + b"1", b"ERROR"]


def text(value):
    return struct.pack("<I", len(value)) + value.encode() + b"\0"


def call(member, signature="", body=b"", flags=0, serial=7):
    """A method call, as a client sends it."""
    fields = b""
    for number, kind, value in (
        (1, b"o", text("/org/qemu/VMState1")), (2, b"s", text("org.qemu.VMState1")), (3, b"s", text(member)),
        (8, b"g", bytes([len(signature)]) + signature.encode() + b"\0"),
    ):  # fmt: skip
        fields += bytes(-len(fields) % 8)
        fields += bytes([number, 1]) + kind + b"\0" + value
    head = struct.pack("<BBBBIII", ord("l"), 1, flags, 1, len(body), serial, len(fields)) + fields
    return head + bytes(-len(head) % 8) + body


def answer(message):
    """Of an answer: its type and its body."""
    kind, body = message[1], struct.unpack_from("<I", message, 4)[0]
    return kind, message[len(message) - body :]


def session(save=lambda: b"state", load=lambda _: None, look=lambda: None):
    bus = BusSession("virtserial", look, save, load)
    assert bus.receive(GREETING).split(b"\r\n")[:-1] == ANSWERS
    return bus


def test_what_qemus_object_asks():
    loaded = []
    bus = session(load=loaded.append)
    assert answer(bus.receive(call("Hello"))) == (2, text(":1.1"))
    assert answer(bus.receive(call("ListQueuedOwners", "s", text("org.qemu.VMState1"))))[0] == 2
    assert b"\x02\0\0\0Id\0\x01s\0\0\0\x0a\0\0\0virtserial\0" in bus.receive(call("GetAll", "s", text("x")))
    assert answer(bus.receive(call("Save"))) == (2, struct.pack("<I", 5) + b"state")
    assert answer(bus.receive(call("Load", "ay", struct.pack("<I", 3) + b"abc"))) == (2, b"")
    assert loaded == [b"abc"]


def test_what_comes_in_pieces_and_without_a_wish_for_an_answer():
    bus = BusSession("virtserial", lambda: None, lambda: b"state", lambda _: None)
    said = b"".join(bus.receive(bytes([byte])) for byte in GREETING + call("Save") + call("AddMatch", flags=1))
    assert said.endswith(b"\5\0\0\0state")


def test_errors_are_answers():
    def refuse(*_):
        raise ConfigError("it is none")

    bus = session(refuse, refuse)
    for asked in (call("Save"), call("Load", "ay", bytes(4)), call("Load", "s", text("x")), call("NoSuch"),
                  call("Load", "ay", struct.pack("<I", 99))):  # fmt: skip
        assert answer(bus.receive(asked))[0] == 3
    assert b"it is none" in bus.receive(call("Save"))
    assert answer(session(look=refuse).receive(call("ListQueuedOwners", "s", text("org.qemu.VMState1"))))[0] == 3
    assert answer(session(lambda: bytes(MAX_STATE + 1)).receive(call("Save")))[0] == 3


@pytest.mark.parametrize(
    "data",
    [
        b"A" * 1000,
        b"\r\n" * 20,
        GREETING + b"B" * 16,
        GREETING + struct.pack("<BBBBIII", ord("l"), 1, 0, 1, MAX_MESSAGE + 1, 1, 0),
        GREETING + struct.pack("<BBBBIII", ord("l"), 1, 0, 1, 0, 1, 0xFFFFFFFF),
        GREETING + struct.pack("<BBBBIII", ord("l"), 1, 0, 2, 0, 1, 0),
        GREETING + struct.pack("<BBBBIII", ord("l"), 1, 0, 1, 0, 1, 8) + b"\3\1v\0\0\0\0\0",
        GREETING + struct.pack("<BBBBIII", ord("l"), 1, 0, 1, 0, 1, 8) + b"\3\1s\0\xff\xff\0\0",
    ],
)
def test_what_makes_no_sense_ends_the_connection(data):
    with pytest.raises(PeerError):
        BusSession("virtserial", lambda: None, lambda: b"", lambda _: None).receive(data)


def test_any_bytes_do_no_other_harm():
    randomly = random.Random(5)
    whole = call("Load", "ay", struct.pack("<I", 9) + bytes(9))
    for _ in range(3000):
        damaged = bytearray(whole)
        for _each in range(randomly.randint(1, 4)):
            damaged[randomly.randrange(len(damaged))] = randomly.randrange(256)
        with contextlib.suppress(PeerError):
            session().receive(bytes(damaged[: randomly.randint(1, len(damaged))]))
        with contextlib.suppress(PeerError):
            parse_call(bytes(damaged))


@pytest.fixture(params=["ours"])
def bus(folder, request):
    """A listening bus for one process, and where."""
    pid = os.getpid() if request.param == "ours" else 1 << 22
    loop = EventLoop()
    made = StateBus(loop, f"{folder}/bus", "virtserial", lambda: None, lambda: b"state", lambda _: None, pid)
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield f"{folder}/bus"
    loop.call_later(0, loop.stop)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as wake:
        wake.connect(f"{folder}/bus")
    thread.join()
    made.close()
    loop.close()
    assert not os.path.exists(f"{folder}/bus")


def connect(path):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(60)
    client.connect(path)
    return client


def test_only_qemu_is_let_in(bus):
    assert os.stat(bus).st_mode & 0o777 == 0o600
    with connect(bus) as first:
        first.sendall(GREETING)
        assert first.recv(4096)
        with connect(bus) as second:
            assert second.recv(4096) == b""


@pytest.mark.parametrize("bus", ["another's"], indirect=True)
def test_another_process_is_not_let_in(bus):
    with connect(bus) as stranger:
        assert stranger.recv(4096) == b""


def test_nonsense_ends_one_connection_and_the_next_may_come(bus):
    for _ in range(3):
        with connect(bus) as client:
            client.sendall(GREETING + b"nonsense nonsense nonsense")
            while client.recv(4096):
                pass
        time.sleep(0.05)
