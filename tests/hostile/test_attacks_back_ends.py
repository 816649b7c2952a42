"""Attacks by hosts: whatever comes over TLS, telnet, websocket, a FIFO or a terminal, others get their turns."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import time

import pytest
from support.certificates import Authority
from support.device_process import DeviceProcess, connect, controller_options, port_options

SECONDS = 3
"""More than a neighbour may wait."""
SERVER = "server=on,wait=off"


@pytest.fixture
def device(folder):
    """`ser0` with a port for each kind of host end, `ser1` with the neighbour's port `c`."""
    directory = Authority(folder / "ca", "authority").issue(folder / "server", "server")
    os.mkfifo(folder / "fifo.in")
    os.mkfifo(folder / "fifo.out")
    kinds = {
        "tls": f"socket,path={folder}/tls,{SERVER},tls-creds=creds",
        "telnet": f"socket,path={folder}/telnet,{SERVER},telnet=on",
        "websocket": f"socket,path={folder}/websocket,{SERVER},websocket=on",
        "fifo": f"pipe,path={folder}/fifo",
        "pty": f"pty,path={folder}/pty",
    }
    words = ["-object", f"tls-creds-x509,id=creds,endpoint=server,dir={directory},verify-peer=off"]
    for number, (name, backend) in enumerate(kinds.items(), 1):
        words += ["-chardev", f"{backend},id={name}"]
        words += ["-device", f"virtserialport,bus=ser0.0,nr={number},chardev={name}"]
    process = DeviceProcess(
        folder, *words[:2], *controller_options(folder), *words[2:],
        *controller_options(folder, "ser1"), *port_options(folder, "c", 1, "ser1"),
    )  # fmt: skip
    yield process
    if process.process.poll() is None:
        process.kill()


def attacks():
    """Yield a number for each round, until the time is over."""
    end, number = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        yield number
        number += 1


CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
GARBAGE = {
    "tls": (b"GET / HTTP/1.1\r\n\r\n", CLIENT_HELLO + bytes(508), b"\x15\x03\x01\x00\x02\x02\x28", b"\x80\xff\x01\x03"),
    "telnet": (b"\xff" * 4096, b"\xff\xfd" * 2048, b"\xff\xfa" + bytes(4096), b"\xff\xf3" * 2048),
    "websocket": (
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000,
        b"\r\n" * 4096,
        b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: binary\r\n\r\n"
        + b"\x89\x80\x00\x00\x00\x00" * 2000,
    ),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage(folder, attack, kind):
    dice = random.Random(7)
    with attack():
        for number in attacks():
            start = GARBAGE[kind][number % len(GARBAGE[kind])]
            with contextlib.suppress(OSError), connect(folder / kind) as host:
                host.settimeout(0.05)
                host.sendall(start + dice.randbytes(dice.randrange(20_000)))
                host.recv(65536)


def test_tls_hosts_that_shake_hands_and_leave_or_never_finish(folder, attack):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with attack():
        for number in attacks():
            host = socket.socket(socket.AF_UNIX)
            with contextlib.suppress(OSError):
                host.settimeout(0.5)
                host.connect(f"{folder}/tls")
                if number % 4:
                    with context.wrap_socket(host) as secured:
                        secured.sendall(bytes(10_000))
                        continue
                host.sendall(CLIENT_HELLO[: number % 11])
            host.close()


def test_both_ends_of_a_fifo_that_open_and_close(folder, attack):
    with attack():
        for _ in attacks():
            with contextlib.suppress(OSError):
                writer = os.open(folder / "fifo.in", os.O_RDWR | os.O_NONBLOCK)
                with contextlib.suppress(BlockingIOError):
                    os.write(writer, bytes(65536))
                os.close(writer)
                os.close(os.open(folder / "fifo.out", os.O_RDONLY | os.O_NONBLOCK))


def test_a_terminal_that_opens_and_closes_and_floods(folder, attack):
    with attack():
        for _ in attacks():
            with contextlib.suppress(OSError):
                terminal = os.open(folder / "pty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
                with contextlib.suppress(BlockingIOError):
                    os.write(terminal, bytes(4096))
                os.close(terminal)
