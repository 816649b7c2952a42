"""Who may do what: the file of --users.

    [alice]
    role = "plug"                        # watch, type (and watch), plug (and both)
    token = "sha256:..."                 # `virtserial web --new-token` prints one, and this line
    ports = ["alpha/*", "beta/hvc0"]     # all, if there is no such line

With a reverse proxy's header no token is needed, and ["*"] is everybody who is not named.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import re
import secrets
import stat
import tomllib
from fnmatch import fnmatchcase
from typing import NamedTuple

from virtserial.errors import ConfigError

MAX_FILE = 1 << 20
EVERYBODY = "*"
HASH = re.compile(r"sha256:[0-9a-f]{64}")
KEYS = {"role", "token", "ports"}


class Role(enum.IntEnum):
    """What somebody may do; each role has the rights of those below it."""

    WATCH = 1
    TYPE = 2
    PLUG = 3


class User(NamedTuple):
    """Somebody, and their rights.

    Attributes:
        ports: patterns of VM/PORT, with * and ?.
        token: the hash of their token; "" for none.
    """

    name: str
    role: Role
    ports: tuple[str, ...] = ("*",)
    token: str = ""

    def may(self, role: Role, port: str) -> bool:
        """Whether they may do this with a port VM/PORT; with all of a VM for `VM/*`, with everything for `*`."""
        if self.role < role:
            return False
        if not port.endswith("*"):
            return any(fnmatchcase(port, pattern) for pattern in self.ports)
        # What is asked for is a pattern too: `alpha/?` matches the text alpha/* and is not all of alpha.
        return any(pattern.endswith("*") and fnmatchcase(port[:-1], pattern) for pattern in self.ports)


class People:
    """The users of a file, which is read again when it changes.

    Args:
        path: the file.

    Raises:
        ConfigError: it cannot be read, makes no sense, or others can read the hashes in it or write it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None
        self._users: dict[str, User] = {}
        self.reload()

    def reload(self) -> None:
        """Read the file if it has changed.

        Raises:
            ConfigError: as the constructor; nobody is known until it is right again.
        """
        try:
            with open(self._path, "rb") as file:
                status = os.fstat(file.fileno())
                version = status.st_mtime_ns, status.st_ino, status.st_size
                if version == self._version:
                    return
                self._users, self._version = {}, version
                _check_file(self._path, status)
                text = file.read(MAX_FILE).decode()
            tables = tomllib.loads(text)
        except OSError as error:
            self._users, self._version = {}, None
            raise ConfigError(f"{self._path}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{self._path}: {error}") from error
        self._users = {name: _user(self._path, name, table) for name, table in tables.items()}

    def named(self, name: str) -> User | None:
        """The user of a name that a proxy vouches for."""
        if name in self._users and name != EVERYBODY:
            return self._users[name]
        everybody = self._users.get(EVERYBODY)
        return everybody and everybody._replace(name=name)

    def of_token(self, token: str) -> User | None:
        """The user whose token this is."""
        digest = hash_of(token)
        found = [user for user in self._users.values() if hmac.compare_digest(user.token, digest)]
        return found[0] if found else None


def new_token() -> tuple[str, str]:
    """A new token, and its hash for the file."""
    token = secrets.token_urlsafe(32)
    return token, hash_of(token)


def hash_of(token: str) -> str:
    """What the file has of a token: 256 random bits need no slow hash."""
    return "sha256:" + hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _check_file(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
        raise ConfigError(f"{path}: no file of at most {MAX_FILE >> 20} MiB")
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o027:
        raise ConfigError(f"{path}: other users can change it, or read it: `chmod 600` it")


def _user(path: str, name: str, table: object) -> User:
    where = f"{path}: [{name}]"
    if not isinstance(table, dict) or (unknown := sorted(set(table) - KEYS)):
        raise ConfigError(f"{where}: {'no table' if not isinstance(table, dict) else f'{unknown[0]} is unknown'}")
    role, token, ports = table.get("role"), table.get("token", ""), table.get("ports", ["*"])
    if not isinstance(role, str) or role.upper() not in Role.__members__:
        raise ConfigError(f"{where}: role is {role!r}; it must be watch, type or plug")
    if not isinstance(token, str) or (token and not HASH.fullmatch(token)):
        raise ConfigError(f"{where}: token is not sha256:HASH; `virtserial web --new-token` makes one")
    if token and name == EVERYBODY:
        raise ConfigError(f"{where}: everybody has no token")
    if not isinstance(ports, list) or not all(isinstance(pattern, str) for pattern in ports):
        raise ConfigError(f"{where}: ports is not a list of patterns")
    return User(name, Role[role.upper()], tuple(ports), token)
