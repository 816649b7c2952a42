"""`virtserial pipe`: standard input and output joined to a port, for scripts and for ssh's ProxyCommand."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from typing import TYPE_CHECKING

from virtserial.cli.end import add_address, open_end
from virtserial.errors import PeerError
from virtserial.guest import programs
from virtserial.guest.files.report import PATIENCE
from virtserial.guest.stream import Buffer, EpollStream, advance
from virtserial.guest.words import Parser, seconds

if TYPE_CHECKING:
    import argparse

PROGRAM = "virtserial pipe"
READ_SIZE = 1 << 16
LINGER = 0.5
"""Seconds of silence after the other side has taken the end of our input; then nothing more is expected."""

WAITING = "waiting until the other side takes the rest; Ctrl-C gives up"
LOST = "the port has closed before the other side took all that was sent"


def run(words: list[str]) -> int:
    """Run the command; return its exit status."""
    parser = Parser(
        PROGRAM,
        description="Join standard input and output to a port, until the port's other side closes, or until our input "
        "has ended, the other side has taken it all, and half a second passes in silence.",
    )  # fmt: skip
    add_address(parser)
    parser.add_argument(
        "--timeout", type=seconds, default=10.0, metavar="SECONDS", help="for a connection to be made (default: 10)"
    )
    parser.add_argument(
        "--session", action="store_true",
        help="a connection of its own to `virtserial_guest sshd` (ssh's ProxyCommand; PORT may be VM or VM.vm)",
    )  # fmt: skip
    options = parser.parse_args(words)
    if options.session:
        from virtserial.cli.ssh_session import join

        return programs.run(PROGRAM, lambda: join(options.port, options.timeout))
    return programs.run(PROGRAM, lambda: _pipe(options))


def _pipe(options: argparse.Namespace) -> int:
    with open_end(options) as stream:
        if not stream.wait_connected(options.timeout):
            raise PeerError(f"{options.port}: nobody answered in {options.timeout:g} s")
        Pipe(stream, sys.stdin.fileno(), sys.stdout.fileno()).run()
    return 0


class Pipe:
    """Moves bytes both ways.

    Args:
        stream: a port that is connected.
        source: is sent.
        target: gets what comes.
    """

    def __init__(self, stream: EpollStream, source: int, target: int) -> None:
        self._stream = stream
        self._source, self._target = source, target
        self._to_port: list[Buffer] = []
        self._source_open = True

    def run(self) -> None:
        """Serve until the port's other side closes, or has taken all our input and says nothing more.

        Raises:
            OSError: the target takes nothing more.
            PeerError: the other side closed before it took all that was sent.
        """
        poll = select.poll()
        poll.register(self._stream.fileno(), select.POLLIN)
        quiet_since = ended_at = time.monotonic()
        has_told = False
        while True:
            data = self._stream.take(1 << 18)
            if data == b"":
                if self._to_port or not self._stream.all_taken():
                    raise PeerError(LOST)
                return
            if data:
                _write_all(self._target, data)
                quiet_since = time.monotonic()
                continue
            if self._to_port:
                taken = self._stream.send(self._to_port)
                self._to_port, _ = advance(self._to_port, taken)
                if taken:
                    continue
            if self._source_open and not self._to_port:
                poll.register(self._source, select.POLLIN)
            else:
                with contextlib.suppress(KeyError):
                    poll.unregister(self._source)
            if not self._source_open:
                now = time.monotonic()
                if self._to_port or not self._stream.all_taken():
                    quiet_since = now
                    if not has_told and now - ended_at > PATIENCE:
                        print(WAITING, file=sys.stderr, flush=True)
                        has_told = True
                elif now - quiet_since > LINGER:
                    return
            ready = dict(poll.poll(None if self._source_open else LINGER * 1000))
            if self._source in ready:
                typed = os.read(self._source, READ_SIZE)
                self._source_open = bool(typed)
                quiet_since = ended_at = time.monotonic()
                if typed:
                    self._to_port = [typed]
            self._stream.wait(0)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
