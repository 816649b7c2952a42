"""`sshd`: the system's sshd, or dropbear, for each connection of `virtserial ssh` over a port, without a network."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Callable

from .conversation import converse
from .errors import PortRemoved
from .files.messages import printable
from .link import Link
from .tunnel import Program, TunnelServer
from .words import Parser

if TYPE_CHECKING:
    from .stream import EpollStream

PORT = "org.virtserial.ssh.0"
"""The name that `virtserial ssh VM` looks for."""
PLACES = "/usr/sbin:/usr/local/sbin:/sbin:/usr/lib/ssh"
PRIVILEGE_SEPARATION = "/run/sshd"
SERVERS = {"sshd": ["-i", "-e"], "dropbear": ["-i", "-R"]}
"""What serves one connection on its standard input and output; sshd complains on standard error, dropbear to syslog."""

_started: list[subprocess.Popen[bytes]] = []
"""Those that are still to be reaped."""


def sshd(
    program: str,
    words: list[str],
    add_address: Callable[[argparse.ArgumentParser], None],
    open_end: Callable[[argparse.Namespace], EpollStream],
) -> int:
    """Serve until the port is gone."""
    parser = Parser(
        program,
        description="Run sshd for each connection that `virtserial ssh` makes over a port. It reads its own "
        "configuration, keys and accounts; it needs no network and listens nowhere.",
        epilog=f"The port that `virtserial ssh VM` looks for is {PORT}.",
    )  # fmt: skip
    add_address(parser)
    parser.add_argument(
        "--exec", dest="command", nargs=argparse.REMAINDER, metavar="WORD",
        help="what serves a connection on standard input and output (default: sshd -i, else dropbear -i -R)",
    )  # fmt: skip
    options = parser.parse_args(words)
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    link = Link(TunnelServer.purpose)
    with open_end(options) as stream:
        server = TunnelServer(link, stream, lambda: start(options.command or command()), _say)
        try:
            converse(stream, link, server)
        except PortRemoved:
            _say("the port was unplugged")
        finally:
            server.close()
    return 1


def command() -> list[str]:
    """The system's server, and how it is told to serve one connection.

    Raises:
        OSError: there is none.
    """
    for name, arguments in SERVERS.items():
        path = shutil.which(name) or shutil.which(name, path=PLACES)
        if path is not None:
            return [path, *arguments]
    raise FileNotFoundError(2, "there is no sshd and no dropbear in the guest")


def start(words: list[str]) -> Program:
    """Start a program on a socket of its own.

    Raises:
        OSError: it cannot be started.
    """
    if os.path.basename(words[0]) == "sshd" and os.geteuid() == 0:
        # It has this folder only while its own service runs.
        os.makedirs(PRIVILEGE_SEPARATION, mode=0o755, exist_ok=True)
    ours, its = socket.socketpair()
    errors, its_errors = os.pipe()
    try:
        with its:
            process = subprocess.Popen(
                words, stdin=its.fileno(), stdout=its.fileno(), stderr=its_errors, start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        ours.close()
        os.close(errors)
        if error.errno == 2:
            raise FileNotFoundError(2, f"there is no {words[0]} in the guest") from error
        raise
    finally:
        os.close(its_errors)
    os.set_blocking(errors, False)
    _started.append(process)
    return Program(ours, errors)


def _reap() -> None:
    _started[:] = [each for each in _started if each.poll() is None]


def _say(text: str) -> None:
    print(f"virtserial-guest sshd: {printable(text)}", file=sys.stderr, flush=True)
