"""Where the console listens: refused where it would be open to others."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import ssl
from typing import TYPE_CHECKING, Final, NamedTuple

from aiohttp import web

from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.web.access import Policy
    from virtserial.web.application import Console, Handler

MAX_CONNECTIONS: Final = 1024
MAX_BACKLOG: Final = 128
KEEP_ALIVE: Final = 15.0
"""Seconds from an answer to the end of the next request's head."""
FIRST: Final = 15.0
"""Seconds for the head of a connection's first request; after at most twice as many the connection ends."""
HANDSHAKE: Final = 10.0
"""Seconds for the beginning of TLS."""
UNREAD: Final = 30.0
"""Seconds for which a TCP client may read nothing of what waits for it."""
SHUTDOWN: Final = 0.5


class Address(NamedTuple):
    """Where to listen.

    Attributes:
        path: of a UNIX socket; "" for TCP.
    """

    host: str
    port: int
    path: str = ""

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return bool(self.path) or ipaddress.ip_address(self.host).is_loopback


def parse_listen(text: str) -> Address:
    """Parse ADDRESS:PORT, [ADDRESS]:PORT, PORT or unix:PATH.

    Raises:
        ConfigError: it is none of these.
    """
    if text.startswith("unix:"):
        return Address("", 0, text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    host = "127.0.0.1" if host == "localhost" else host
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        if port.isascii() and port.isdigit() and int(port) < 1 << 16:
            return Address(host, int(port))
    raise ConfigError(f"--listen {text}: it is ADDRESS:PORT, with a numeric address, or unix:PATH")


def check_exposure(address: Address, policy: Policy, has_tls: bool) -> None:
    """Refuse what would give consoles to whoever comes.

    Raises:
        ConfigError: it says what is missing.
    """
    if policy.user_header and (policy.people is None or not policy.proxies or not policy.origins):
        raise ConfigError(
            f"--user-header {policy.user_header} needs --users (who may do what), --proxy (who may say it) and "
            "--origin (the console's address in browsers)"
        )
    if policy.proxies and not policy.user_header:
        raise ConfigError("--proxy needs --user-header, the header by which it names the user")
    if policy.origins and policy.people is None:
        raise ConfigError("--origin needs --users: without users, the console is for this machine only")
    if address.is_local:
        return
    shown = f"--listen {address.host}:{address.port} is open to other machines"
    if policy.people is None:
        raise ConfigError(f"{shown}: it needs --users, and --tls-cert with --tls-key, or --user-header behind a proxy")
    if not policy.origins:
        raise ConfigError(f"{shown}: it needs --origin, the console's address in browsers")
    if not has_tls and not policy.user_header:
        raise ConfigError(f"{shown}: tokens need TLS, --tls-cert with --tls-key")
    if has_tls and not all(origin.startswith("https://") for origin in policy.origins):
        raise ConfigError(f"{shown}: with TLS each --origin begins with https://")


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS with a certificate.

    Raises:
        ConfigError: it cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--tls-cert {certificate}, --tls-key {key}: {error}") from error
    return context


async def serve(console: Console, address: Address, tls: ssl.SSLContext | None, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        ready: called with the console's address, as a browser needs it.

    Raises:
        ConfigError: nobody can listen there.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    silent = _Silent()
    console.application.middlewares.insert(0, silent.hear)
    runner = web.AppRunner(
        console.application, access_log=None, keepalive_timeout=KEEP_ALIVE, shutdown_timeout=SHUTDOWN,
        max_line_size=4096, max_field_size=8190, max_headers=64,
    )  # fmt: skip
    await runner.setup()
    assert runner.server is not None
    connect = runner.server

    def protocol() -> asyncio.BaseProtocol:
        return connect() if len(connect.connections) < MAX_CONNECTIONS else _TurnedAway()

    listener = _listen(address)
    listen = loop.create_unix_server if address.path else loop.create_server
    ending = asyncio.create_task(silent.end(connect))
    try:
        server: asyncio.Server = await listen(
            protocol, sock=listener, ssl=tls, ssl_handshake_timeout=HANDSHAKE if tls else None
        )
        ready(_url(listener, tls is not None))
        await stop.wait()
        server.close()
    finally:
        ending.cancel()
        await runner.cleanup()
        if address.path:
            with contextlib.suppress(OSError):
                os.unlink(address.path)


class _Silent:
    """Ends connections without a first request; before 3.14, aiohttp limits the next ones only (KEEP_ALIVE)."""

    def __init__(self) -> None:
        self._heard: set[web.RequestHandler] = set()

    @web.middleware
    async def hear(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A request has come."""
        self._heard.add(request.protocol)
        return await handler(request)

    async def end(self, server: web.Server) -> None:
        """Look again and again; end who was silent already the last time."""
        before: set[web.RequestHandler] = set()
        while True:
            await asyncio.sleep(FIRST)
            now = set(server.connections)
            for connection in now & before - self._heard:
                connection.force_close()
            self._heard &= now
            before = now


class _TurnedAway(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _listen(address: Address) -> socket.socket:
    family = socket.AF_UNIX if address.path else socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        if address.path:
            _remove_dead(address.path)
            mask = os.umask(0o117)
            try:
                listener.bind(address.path)
            finally:
                os.umask(mask)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD * 1000))
            listener.bind((address.host, address.port))
        listener.listen(MAX_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"--listen {address.path or f'{address.host}:{address.port}'}: {error.strerror}") from error
    return listener


def _remove_dead(path: str) -> None:
    """Remove a socket at which nobody listens."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass


def _url(listener: socket.socket, has_tls: bool) -> str:
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http{'s' if has_tls else ''}://{host}:{name[1]}/"
