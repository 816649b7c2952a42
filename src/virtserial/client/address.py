"""Addresses of host ends: a chardev's socket or terminal, as QEMU and its monitor write them."""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple

from virtserial.errors import ConfigError


class UnixAddress(NamedTuple):
    """The path of a listening UNIX socket; an abstract one begins with a NUL."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


class TcpAddress(NamedTuple):
    """A listening TCP socket."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


class TerminalAddress(NamedTuple):
    """A pseudo-terminal's path, or a link to it."""

    path: str

    def __str__(self) -> str:
        return f"pty:{self.path}"


Address = UnixAddress | TcpAddress | TerminalAddress


def parse_address(text: str) -> Address:
    """Parse `unix:PATH`, `tcp:HOST:PORT`, `pty:PATH`, or the path of an existing socket or terminal.

    Also accepts the filename of query-chardev, with `disconnected:` before and options behind.

    Raises:
        ConfigError: it is none of these, or a path without a kind does not exist.
    """
    kind, colon, rest = text.removeprefix("disconnected:").partition(":")
    if kind in ("unix", "pty") and colon and not rest:
        raise ConfigError(f"{text}: the path is missing", f"write {kind}:PATH")
    if kind == "unix" and colon:
        return UnixAddress(_without_options(rest))
    if kind == "tcp" and colon:
        host, _, port = _without_options(rest).rpartition(":")
        if not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ConfigError(f"{text}: {port!r} is not a TCP port", "write tcp:HOST:PORT; PORT is 1 to 65535")
        return TcpAddress(host.strip("[]") or "localhost", int(port))
    if kind == "pty" and colon:
        return TerminalAddress(rest)
    try:
        mode = os.stat(text).st_mode
    except OSError as error:
        hint = "`virtserial ports` lists ports by name; unix:PATH waits for a socket that does not exist yet"
        raise ConfigError(f"{text}: {error.strerror}", hint) from error
    if stat.S_ISSOCK(mode):
        return UnixAddress(text)
    if stat.S_ISCHR(mode):
        return TerminalAddress(text)
    raise ConfigError(f"{text}: neither a socket nor a terminal", "`virtserial ports` lists ports by name")


def _without_options(text: str) -> str:
    """Strip the options of `PATH,server=on <-> ...`."""
    return re.split(r",server(?:=on)?\b| <-> ", text, maxsplit=1)[0]
