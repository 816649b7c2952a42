"""Where the host's end of a port is: a chardev's socket or terminal, written as QEMU and its monitor write it."""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple

from virtserial.errors import ConfigError


class UnixAddress(NamedTuple):
    """A listening UNIX socket's path; one of the abstract namespace begins with a NUL."""

    path: str


class TcpAddress(NamedTuple):
    """A listening TCP socket."""

    host: str
    port: int


class TerminalAddress(NamedTuple):
    """A pseudo-terminal's path, or a link to it."""

    path: str


Address = UnixAddress | TcpAddress | TerminalAddress


def parse_address(text: str) -> Address:
    """Understand `unix:PATH`, `tcp:HOST:PORT`, `pty:PATH`, or the path of a socket or terminal.

    Also what query-chardev calls a chardev's filename: `disconnected:` before and options behind are passed over.

    Raises:
        ConfigError: it is none of that, or the path is not there (a path whose kind is not told must be).
    """
    kind, colon, rest = text.removeprefix("disconnected:").partition(":")
    if kind == "unix" and colon:
        return UnixAddress(_without_options(rest))
    if kind == "tcp" and colon:
        host, _, port = _without_options(rest).rpartition(":")
        if not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise ConfigError(f"{text}: {port!r} is no TCP port")
        return TcpAddress(host.strip("[]") or "localhost", int(port))
    if kind == "pty" and colon:
        return TerminalAddress(rest)
    try:
        mode = os.stat(text).st_mode
    except OSError as error:
        raise ConfigError(f"{text}: {error.strerror}; write unix:PATH for a socket that is not there yet") from error
    if stat.S_ISSOCK(mode):
        return UnixAddress(text)
    if stat.S_ISCHR(mode):
        return TerminalAddress(text)
    raise ConfigError(f"{text}: is neither a socket nor a terminal")


def _without_options(text: str) -> str:
    """`PATH,server=on <-> ...` as monitors write it."""
    return re.split(r",server(?:=on)?\b| <-> ", text, maxsplit=1)[0]
