"""Connections of the web console that stay silent end; with the server that the command runs, and real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl

from aiohttp import ClientSession, WSMsgType
from support.certificates import Authority
from support.web_console import MadeSource

from virtserial.web import application, server, terminals
from virtserial.web.access import Access, Policy
from virtserial.web.recordings import Recordings
from virtserial.web.server import parse_listen, serve

HEADER = '{"version": 2, "width": 80, "height": 24, "timestamp": 1, "title": "alpha/p"}\n'


@contextlib.asynccontextmanager
async def console(folder, tls=None):
    """A console that serves; yields its port."""
    ready = asyncio.get_running_loop().create_future()
    made = application.Console(MadeSource("alpha/p"), Access(Policy()), Recordings(str(folder), 1 << 20))
    serving = asyncio.create_task(serve(made, parse_listen(":0"), tls, ready.set_result))
    try:
        yield int((await ready).strip("/").rpartition(":")[2])
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await serving


async def what_comes(port, sent, tls=None, lines=100):
    """The first so many lines that the console says before it ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    with contextlib.closing(writer):
        writer.write(sent)
        return b"".join([await reader.readline() for _ in range(lines)])


def test_a_connection_that_stays_silent_ends(run, folder, monkeypatch):
    for module, limit in (
        (server, "FIRST"), (server, "UNREAD"), (application, "BODY_TIME"), (terminals, "HEARTBEAT")
    ):  # fmt: skip
        monkeypatch.setattr(module, limit, 1.0)
    monkeypatch.setattr(server, "KEEP_ALIVE", 600.0)
    (folder / "long.cast").write_text(HEADER)
    os.truncate(folder / "long.cast", 32 << 20)

    async def answers_no_ping(port):
        origin = f"http://127.0.0.1:{port}"
        async with (
            ClientSession() as session,
            session.ws_connect(f"{origin}/api/list", origin=origin, autoping=False, autoclose=False) as web_socket,
        ):
            while (await web_socket.receive()).type in (WSMsgType.TEXT, WSMsgType.PING):
                pass

    async def reads_nothing(port):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(b"GET /api/recordings/long.cast HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                while True:
                    client.send(b"\r\n")
                    await asyncio.sleep(0.1)

    async def check():
        async with console(folder) as port:
            head = "POST /api/restart HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nContent-Length: 9\r\n"
            came = await asyncio.gather(
                what_comes(port, b""),
                what_comes(port, head.encode()),
                what_comes(port, f"{head}\r\n{{".encode(), lines=1),
                answers_no_ping(port),
                reads_nothing(port),
            )
            assert came[:2] == [b"", b""]
            assert came[2].split()[1] == b"408"

    run(check())


def test_tls_and_the_next_request_begin_in_time(run, folder, monkeypatch):
    monkeypatch.setattr(server, "HANDSHAKE", 1.0)
    monkeypatch.setattr(server, "KEEP_ALIVE", 1.0)
    issued = Authority(folder / "ca", "ca").issue(folder / "server", "server")
    tls = server.tls_context(f"{issued}/server-cert.pem", f"{issued}/server-key.pem")
    request = b"GET /api/me HTTP/1.1\r\nHost: localhost\r\n\r\n"

    async def check():
        async with console(folder, tls) as port:
            silent, slow = await asyncio.gather(
                what_comes(port, b""),
                what_comes(port, request + request[:-2], ssl.create_default_context(cafile=f"{issued}/ca-cert.pem")),
            )
            assert silent == b""
            assert (slow.split()[1], slow.count(b"HTTP/")) == (b"200", 1)

    run(check())
