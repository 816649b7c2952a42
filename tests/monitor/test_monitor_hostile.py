"""Clients that try to fill or hold the keeper: its memory stays bounded, other clients and guests are served."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import threading
import time

import pytest
from support.device_process import DeviceProcess, connect, controller_options, port_options, resident
from support.embedded_guest import EmbeddedGuest
from support.lingering import lingering_socket
from support.serving import QmpClient
from support.waiting import PATIENCE

from virtserial.closing import drain

GROWTH = 48 << 20
"""Bytes that the keeper may grow by under an attack; each sends or causes much more."""
LONGEST = 10.0 * PATIENCE
"""Seconds that another client may wait: attacks once held the keeper for ever."""
NEGOTIATE = b'{"execute":"qmp_capabilities"}\n'


@pytest.fixture
def device(folder):
    device = DeviceProcess(
        folder, *controller_options(folder), *port_options(folder, "a"),
        *("-qmp", f"unix:{folder}/attacked,server=on,wait=off", "-qmp", f"unix:{folder}/other,server=on,wait=off"),
        *("-monitor", f"unix:{folder}/hmp,server=on,wait=off"),
    )  # fmt: skip
    yield device
    device.kill()


class Attacker:
    """A client in bytes; reads nothing unless it is told to."""

    def __init__(self, path, reads):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.recv(4096)
        self.received = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        if reads:
            self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError):
            while data := self.socket.recv(1 << 20):
                self.received += len(data)

    def close(self):
        """Leave; the reader first, or it could read from the next socket that gets the same descriptor."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        if self._reader.is_alive():
            self._reader.join()
        self.socket.close()

    def send(self, data, seconds=2.0, piece=1 << 16):
        """Send as much as is taken in a while."""
        deadline = time.monotonic() + seconds
        view = memoryview(data)
        with contextlib.suppress(OSError):
            while view and (left := deadline - time.monotonic()) > 0:
                self.socket.settimeout(left)
                view = view[self.socket.send(view[:piece]) :]


QMP_FLOODS = {
    "string without end": lambda one: one.send(b'"' + b"a" * (64 << 20)),
    "string byte by byte": lambda one: (one.send(b'"' + b"a" * 1_000_000), one.send(b"b" * 5000, piece=1)),
    "number without end": lambda one: one.send(b"1" * (64 << 20)),
    "number digit by digit": lambda one: (one.send(b"1" * 1_000_000), one.send(b"1" * 5000, piece=1)),
    "escapes": lambda one: one.send(b'"' + b"\\u0041" * (8 << 20)),
    "nesting": lambda one: one.send(b"[" * (16 << 20)),
    "nesting below the limit": lambda one: one.send((b"[" * 500 + b"]" * 500) * 20_000),
    "many elements": lambda one: one.send((b"[" + b"1," * 16_000 + b"1]") * 300),
    "strays": lambda one: one.send(b"}" * (16 << 20)),
    "cleared again and again": lambda one: one.send(b'{"a":\xff' * (2 << 20)),
    "requests": lambda one: one.send(b'{"execute":"query-chardev"}' * 200_000),
    "large ids": lambda one: one.send(b'{"execute":"query-status","id":"%s"}' % (b"i" * 900_000) * 30),
    "lines of people": lambda one: one.send(
        b'{"execute":"human-monitor-command","arguments":{"command-line":"info qtree"}}' * 100_000
    ),
}
HMP_FLOODS = {
    "redrawn lines": lambda one: one.send(b"a" * 4000 + b"\x01b\x7f" * (1 << 20)),
    "redrawn screens": lambda one: one.send(b"a" * 4000 + b"\x0c" * (1 << 22)),
    "history": lambda one: one.send((b"a" * 4000 + b"\n") * 4 + b"\x10\x0e" * (1 << 20)),
    "empty lines": lambda one: one.send(b"\n" * (1 << 22)),
    "help": lambda one: one.send(b"help\n" * (1 << 18)),
}


def under_attack(device, folder, attack):
    """What an attack makes the keeper grow by; meanwhile another client and a guest are served."""
    other = QmpClient(f"{folder}/other")
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        other("query-status")
        before, most, longest = resident(device.pid), 0, 0.0
        attacking = threading.Thread(target=attack)
        attacking.start()
        while attacking.is_alive():
            asked = time.monotonic()
            other("query-status")
            longest = max(longest, time.monotonic() - asked)
            most = max(most, resident(device.pid))
            guest.check_port("a", folder / "a", 10_000)
        attacking.join()
    other.close()
    assert longest < LONGEST
    assert device.process.poll() is None
    return most - before


FLOODS = [
    pytest.param(name, how == "read", id=f"{name}-{how}", marks=[pytest.mark.slow] * ((number + place) % 2))
    for number, name in enumerate([*QMP_FLOODS, *HMP_FLOODS])
    for place, how in enumerate(["unread", "read"])
]
"""Each in one of two ways, by turns; VIRTSERIAL_SLOW=1 runs both."""


@pytest.mark.parametrize(("name", "reads"), FLOODS)
def test_flood(device, folder, name, reads):
    is_hmp = name in HMP_FLOODS
    attacker = Attacker(f"{folder}/{'hmp' if is_hmp else 'attacked'}", reads)
    if not is_hmp:
        attacker.send(NEGOTIATE)
    flood = (HMP_FLOODS if is_hmp else QMP_FLOODS)[name]
    assert under_attack(device, folder, lambda: flood(attacker)) < GROWTH
    attacker.close()
    # The next client finds a monitor as new.
    with contextlib.closing(QmpClient(f"{folder}/attacked")) as client:
        assert client("query-status")["running"]


@pytest.mark.parametrize("command", ["getfd", "add-fd"])
def test_descriptors_without_end(device, folder, command):
    client = QmpClient(f"{folder}/attacked")

    def pass_many():
        for number in range(1500):
            arguments = {"fdname": f"f{number}"} if command == "getfd" else {}
            client.ask({"execute": command, "arguments": arguments}, [null.fileno()])
        # Descriptors for no command.
        for _ in range(1000):
            client.ask({"execute": "query-status"}, [null.fileno()] * 16)

    with open(os.devnull) as null:
        assert under_attack(device, folder, pass_many) < GROWTH
    assert len(os.listdir(f"/proc/{device.pid}/fd")) < 1300
    client.close()


def test_passed_sockets_that_linger_hold_nobody(device, folder):
    with lingering_socket() as lingering:
        client = QmpClient(f"{folder}/attacked")
        client("getfd", fds=[lingering.fileno()], fdname="named")
        client.ask({"execute": "query-status"}, [lingering.fileno()] * 253)
        lingering.close()

        def close():
            client.close()
            QmpClient(f"{folder}/attacked").close()

        under_attack(device, folder, close)


def test_socket_closes_at_once_with_an_unread_one_that_lingers():
    ours, theirs = socket.socketpair()
    with lingering_socket() as lingering, theirs:
        theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [lingering.fileno()]))])
        lingering.close()
        began = time.monotonic()
        drain(ours, 16)
        ours.close()
        assert time.monotonic() - began < 30


def test_host_cannot_hold_a_process_by_a_socket_that_it_passes(device, folder):
    """Linux 6.16 lets us refuse it; before, the worker is replaced or stands until the time is over."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.getsockopt(socket.SOL_SOCKET, 83)
        except OSError:
            pytest.skip("this Linux has no SO_PASSRIGHTS")
    with lingering_socket() as lingering, connect(folder / "a") as host, pytest.raises(PermissionError):
        host.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [lingering.fileno()]))])
