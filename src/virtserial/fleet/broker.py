"""The connection to the broker, by the fleet's file, and what a fleet keeps there.

The file is TOML: $VIRTSERIAL_FLEET, else ~/.config/virtserial/fleet.toml, else /etc/virtserial/fleet.toml.

| key | is |
|---|---|
| servers | a list of nats:// or tls:// addresses; one that is there will do |
| creds | a file of credentials (JWT and seed) |
| user, password | instead of creds; then nobody else may read the file |
| ca | certificates that servers' ones are signed by; the system's, if it is left out |
| cert, key | our own certificate, for brokers that ask for one |
| inbox | the prefix of subjects for answers, _INBOX and more, where each user has one of its own; else _INBOX |
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import stat
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from virtserial.errors import ConfigError, PeerError
from virtserial.fleet.protocol import (
    HOSTS,
    INBOX,
    LEAST_KEPT,
    LIFETIME,
    OUTPUTS,
    OWNERS,
    PIECE,
    PORTS,
    STREAM,
    is_inbox,
)
from virtserial.tasks import end_tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.client import Client

VARIABLE = "VIRTSERIAL_FLEET"
FILES = ("~/.config/virtserial/fleet.toml", "/etc/virtserial/fleet.toml")
KEYS = ("servers", "creds", "user", "password", "ca", "cert", "key", "inbox")
INSTALL = "pipx inject virtserial 'nats-py[nkeys]'"
"""What brings the package that a fleet needs."""
CONNECT_TIME = 5
RETRY = 1
CLOSE_TIME = 2
"""Seconds for the end of TLS with a broker that has refused us."""
MAX_UNSENT = 1 << 21
"""Bytes that wait for a broker that is away."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The fleet's file, read: see the head of this module."""

    servers: tuple[str, ...]
    creds: str = ""
    user: str = ""
    password: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    inbox: str = INBOX


def settings_file() -> str | None:
    """The fleet's file, None if there is none."""
    if VARIABLE in os.environ:
        return os.environ[VARIABLE] or None
    return next((path for path in map(os.path.expanduser, FILES) if os.path.exists(path)), None)


def load_settings(path: str | None = None) -> Settings:
    """Read the fleet's file, or another.

    Raises:
        ConfigError: it is missing or wrong.
    """
    path = path or settings_file()
    if path is None:
        raise ConfigError("no fleet is set up here", f"write {FILES[0]} (docs/fleet.md), or set ${VARIABLE} to a file")
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for key, value in values.items():
        if key not in KEYS:
            raise ConfigError(f"{path}: there is no key {key!r}", f"there are {', '.join(KEYS)}")
        if key != "servers" and not isinstance(value, str):
            raise ConfigError(f"{path}: {key} is no text")
    servers = values.pop("servers", None)
    if not isinstance(servers, list) or not servers or not all(isinstance(each, str) for each in servers):
        raise ConfigError(f'{path}: servers is a list of addresses, such as ["tls://nats.example:4222"]')
    if values.get("password") and stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"{path}: it has a password, and others may read it", f"chmod 600 {path}")
    if not is_inbox(values.get("inbox", INBOX)):
        raise ConfigError(f"{path}: inbox begins with {INBOX}: agents answer nowhere else")
    folder = os.path.dirname(os.path.abspath(path))
    for name in ("creds", "ca", "cert", "key"):
        if values.get(name):
            values[name] = os.path.join(folder, os.path.expanduser(values[name]))
    for name in ("creds", "key"):
        if values.get(name):
            _check_secret(values[name])
    return Settings(tuple(servers), **values)


async def connect(
    settings: Settings,
    name: str,
    said: Callable[[str], None],
    patience: float | None = 10.0,
) -> Client:
    """Connect to a server of the fleet; lost connections are made again without end.

    Args:
        name: what the broker shows of us.
        said: takes a line when the connection is lost, is back, or something is refused.
        patience: seconds for the first connection, None for no end.

    Raises:
        ConfigError: nats-py is missing, a file cannot be read, or the broker refuses us.
        PeerError: no server answers.
    """
    try:
        from nats.aio.client import Client as NatsClient
        from nats.errors import Error
    except ImportError as error:
        raise ConfigError(f"a fleet needs nats-py ({error})", INSTALL) from error

    class Connection(NatsClient):
        """A client whose close() does not fail where the broker has cut the connection off just then."""

        async def close(self) -> None:
            with suppress(OSError):
                await super().close()

        async def give_up(self) -> None:
            """Close what never was a connection; a broker that does not end TLS with us is not waited for."""
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIME):
                    await self.close()

        async def __aexit__(self, *_: object) -> None:
            await self.close()

    last, is_connected = "", False

    async def failed(error: Exception) -> None:
        nonlocal last
        text = str(error) or type(error).__name__
        if not connecting.done() and "authorization" in text.lower():
            # Raised through nats-py's connect(), which would try again.
            raise ConfigError(f"the broker refuses us: {text}")
        if text != last and (is_connected or (patience is None and not connecting.done())):
            said(f"broker: {text}")
        last = text

    async def lost() -> None:
        if not client.is_closed:
            said("the connection to the broker is lost")

    async def back() -> None:
        said("the connection to the broker is back")

    options: dict[str, Any] = {"inbox_prefix": settings.inbox}
    if settings.creds:
        options["user_credentials"] = settings.creds
    if settings.user:
        options |= {"user": settings.user, "password": settings.password}
    tls = _tls(settings)
    if tls is not None:
        options["tls"] = tls
        logging.getLogger("asyncio").addFilter(_is_news)
    client = Connection()
    connecting = asyncio.create_task(
        client.connect(
            list(settings.servers), name=name, error_cb=failed, disconnected_cb=lost, reconnected_cb=back,
            connect_timeout=CONNECT_TIME, reconnect_time_wait=RETRY, max_reconnect_attempts=-1,
            pending_size=MAX_UNSENT, ping_interval=5, max_outstanding_pings=2, **options,
        )
    )  # fmt: skip
    try:
        await asyncio.wait((connecting,), timeout=patience)
    finally:
        await end_tasks(connecting)
    if connecting.cancelled():
        await client.give_up()
        raise PeerError(f"no broker answers at {', '.join(settings.servers)}{last and ': '}{last}")
    try:
        connecting.result()
    except ConfigError:
        await client.give_up()
        raise
    except ImportError as error:
        hint = "pipx inject virtserial nkeys"
        raise ConfigError(f"creds need the package nkeys ({error})", hint) from error
    except (OSError, Error, ValueError) as error:
        raise ConfigError(f"{', '.join(settings.servers)}: {error}") from error
    is_connected = True
    return client


async def set_up(client: Client, replicas: int = 1, kept: int = 256, size: int = 1 << 30, memory: bool = False) -> None:
    """Make what a fleet keeps in its account, or change it.

    Args:
        replicas: servers that keep each message: 1, 3 or 5.
        kept: messages of output that are kept of each port.
        size: bytes of output that are kept of all; then the oldest go.
        memory: keep it in memory instead of files.

    Raises:
        ConfigError: too few, or the broker refuses.
    """
    from nats.errors import Error
    from nats.js.api import DiscardPolicy, KeyValueConfig, StorageType, StreamConfig
    from nats.js.errors import NotFoundError

    if kept < LEAST_KEPT:
        raise ConfigError(f"{kept} messages are too few: a session needs {LEAST_KEPT}")
    storage = StorageType.MEMORY if memory else StorageType.FILE
    jetstream = client.jetstream()
    output = StreamConfig(
        name=STREAM, subjects=[OUTPUTS], max_msgs_per_subject=kept, max_bytes=size, discard=DiscardPolicy.OLD,
        storage=storage, num_replicas=replicas, max_msg_size=PIECE + 4096, duplicate_window=120,
    )  # fmt: skip
    try:
        try:
            await jetstream.stream_info(STREAM)
            await jetstream.update_stream(output)
        except NotFoundError:
            await jetstream.add_stream(output)
        for bucket, lifetime in ((HOSTS, LIFETIME), (PORTS, None), (OWNERS, LIFETIME)):
            try:
                there = (await jetstream.stream_info(f"KV_{bucket}")).config
                await jetstream.update_stream(there, num_replicas=replicas)
            except NotFoundError:
                await jetstream.create_key_value(
                    KeyValueConfig(bucket=bucket, ttl=lifetime, history=1, storage=storage, replicas=replicas)
                )
    except Error as error:
        raise ConfigError(f"the broker refuses: {error}") from error


def _check_secret(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if mode & 0o007:
        raise ConfigError(f"{path}: everybody may read or change it", f"chmod 600 {path}")


def _is_news(record: logging.LogRecord) -> bool:
    # nats-py begins TLS on a stream that asyncio made for a plain connection; asyncio says so at each one's end.
    return "eof_received" not in str(record.msg)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if not (settings.ca or settings.cert or any(each.startswith("tls:") for each in settings.servers)):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
        if settings.cert:
            context.load_cert_chain(settings.cert, settings.key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the fleet's certificates: {error}") from error
    return context
