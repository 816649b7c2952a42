"""Who a request is from, and whether a browser sends it of its own accord.

| mode | who somebody is |
|---|---|
| nothing is said | the user of this machine who runs the console, and root: the kernel tells who is at the other end |
| --users | the token at the log-in, then a cookie; a program sends `Authorization: Bearer TOKEN` |
| --user-header | what the reverse proxy says, and nobody but the proxy may say it |

A page of another site can make a browser send requests here.  So each request must name this host (else a name of
theirs could lead here), and each one that changes something, and each WebSocket, must come from a page of ours.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
import secrets
import time
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from virtserial.errors import ConfigError
from virtserial.web.local_peer import uid_of_peer
from virtserial.web.people import People, Role, User

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from aiohttp import web

SESSION_SECONDS: Final = 12 * 3600
MAX_SESSIONS: Final = 1024
MAX_SESSIONS_OF_USER: Final = 32
LOOPBACK_NAMES: Final = frozenset(("localhost", "127.0.0.1", "::1"))
FORWARDED: Final = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")
HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")


class Policy(NamedTuple):
    """What the operator has said of who may come.

    Attributes:
        people: the users; None: only the user who runs this, and root, on this machine.
        user_header: a header by which a proxy names the user; "" for none.
        proxies: who the proxy is: addresses, networks, or users of this machine.
        origins: the console's public addresses, https://NAME[:PORT].
    """

    people: People | None = None
    user_header: str = ""
    proxies: Sequence[str] = ()
    origins: Sequence[str] = ()


class _Session(NamedTuple):
    user: str
    token: str
    expires: float


class Access:
    """
    Args:
        policy: what the operator has said.

    Raises:
        ConfigError: that makes no sense.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.is_secure = any(origin.startswith("https://") for origin in policy.origins)
        self.cookie = "__Host-virtserial" if self.is_secure else "virtserial"
        self._origins = {_checked_origin(origin) for origin in policy.origins}
        self._hosts = {urlsplit(origin).netloc for origin in self._origins}
        self._networks, self._uids = _proxies(policy.proxies)
        self._sessions: dict[str, _Session] = {}
        self._peers: WeakKeyDictionary[asyncio.BaseTransport, int] = WeakKeyDictionary()

    # Requests

    def names_us(self, request: web.Request) -> bool:
        """Whether the request's Host is a name of ours."""
        host = request.headers.get("Host", "")
        if not HOST.fullmatch(host):
            return False
        return host.lower() in self._hosts or (not self._origins and urlsplit(f"//{host}").hostname in LOOPBACK_NAMES)

    def is_from_our_page(self, request: web.Request) -> bool:
        """Whether a page of ours sends it, or a program with a token: no browser sends that by itself."""
        origin = request.headers.get("Origin")
        if origin is None:
            return self._bearer(request) is not None
        if self._origins:
            return origin in self._origins
        return origin == f"{request.scheme}://{request.headers.get('Host', '')}"

    def user_of(self, request: web.Request) -> User | None:
        """Who sends it; None: somebody who has to log in, or may not come at all."""
        people = self.policy.people
        if people is None:
            return self._local_user(request)
        if self.policy.user_header:
            names = request.headers.getall(self.policy.user_header, [])
            if len(names) != 1 or not names[0] or not self._is_proxy(request):
                return None
            return people.named(names[0][:128])
        token = self._bearer(request)
        if token is not None:
            return people.of_token(token)
        return self._user_of_session(people, request.cookies.get(self.cookie, ""))

    def sender(self, request: web.Request) -> str:
        """Whose requests are counted with this one: an address, or behind a proxy a user."""
        if self.policy.user_header and self._is_proxy(request):
            return f"user {request.headers.get(self.policy.user_header, '')[:128]}"
        return request.remote or "local"

    def current(self, request: web.Request, user: User) -> User | None:
        """Whoever made a request that still goes on, by the rights of now; None after the end of the session."""
        return user if self.policy.people is None else self.user_of(request)

    @staticmethod
    def _bearer(request: web.Request) -> str | None:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        return token if kind.lower() == "bearer" and token else None

    # Sessions

    @property
    def has_log_in(self) -> bool:
        """Whether somebody can log in with a token."""
        return self.policy.people is not None and not self.policy.user_header

    def log_in(self, token: str) -> str | None:
        """Return the session of whoever has this token, for the cookie; None for nobody."""
        user = self.policy.people.of_token(token) if self.has_log_in and self.policy.people is not None else None
        if user is None:
            return None
        now = time.monotonic()
        self._sessions = {name: each for name, each in self._sessions.items() if each.expires > now}
        own = [name for name, each in self._sessions.items() if each.user == user.name]
        for name in own[: max(len(own) - MAX_SESSIONS_OF_USER + 1, 0)]:
            del self._sessions[name]
        if len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session = secrets.token_urlsafe(32)
        self._sessions[session] = _Session(user.name, user.token, now + SESSION_SECONDS)
        return session

    def log_out(self, request: web.Request) -> None:
        """End the request's session."""
        self._sessions.pop(request.cookies.get(self.cookie, ""), None)

    def _user_of_session(self, people: People, name: str) -> User | None:
        session = self._sessions.get(name)
        if session is None or session.expires < time.monotonic():
            return None
        user = people.named(session.user)
        # A new token ends the sessions of the old one.
        return user if user is not None and user.token == session.token else None

    # Who is at the other end

    def _local_user(self, request: web.Request) -> User | None:
        if any(name in request.headers for name in FORWARDED):
            return None  # A proxy of this machine is nobody: whom it speaks for is not known.
        uid = self._uid_of(request)
        if uid is None or uid not in (0, os.geteuid()):
            return None
        return User(_name_of(uid), Role.PLUG)

    def _is_proxy(self, request: web.Request) -> bool:
        uid = self._uid_of(request)
        if uid is not None:
            return uid in self._uids
        peer = request.transport.get_extra_info("peername") if request.transport else None
        if not isinstance(peer, tuple):
            return False
        address = ipaddress.ip_address(peer[0].partition("%")[0])
        return any(address in network for network in self._networks)

    def _uid_of(self, request: web.Request) -> int | None:
        transport = request.transport
        if transport is None:
            return None
        if transport not in self._peers:
            connection = transport.get_extra_info("socket")
            uid = uid_of_peer(connection) if connection is not None else None
            if uid is None:
                return None
            self._peers[transport] = uid
        return self._peers[transport]


def _checked_origin(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not HOST.fullmatch(parts.netloc) or text != text.lower():
        raise ConfigError(f"--origin {text}: it is http://NAME or https://NAME, perhaps with :PORT, in small letters")
    if parts.path or parts.query or parts.fragment:
        raise ConfigError(f"--origin {text}: nothing stands behind the name and the port, no slash either")
    return text


def _proxies(texts: Sequence[str]) -> tuple[list[ipaddress.IPv4Network | ipaddress.IPv6Network], set[int]]:
    networks, uids = [], set()
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError:
            try:
                uids.add(pwd.getpwnam(text).pw_uid)
            except KeyError:
                raise ConfigError(f"--proxy {text}: neither an address, nor a user of this machine") from None
    return networks, uids


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
