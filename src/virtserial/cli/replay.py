"""`virtserial replay`: a recording on this terminal, into a port, or as a port that stands in for its guest."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import termios
import time
from typing import TYPE_CHECKING

from virtserial.cli.end import HELP_OF_PORT, open_end
from virtserial.errors import ConfigError, PeerError
from virtserial.guest import programs
from virtserial.guest.recording import INPUT, OUTPUT, Recording
from virtserial.guest.words import Parser, seconds

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

PROGRAM = "virtserial replay"
READ_SIZE = 1 << 16
ANSWER_TIME = 0.2
"""Seconds that a terminal may take to answer the last question of a recording."""


def run(words: list[str]) -> int:
    """Run the command; return its exit status."""
    parser = Parser(
        PROGRAM,
        description="Play a recording at its pace: what the guest said on this terminal; what was said to the guest "
        "into PORT; or, with --listen, what the guest said to a client that says what was said then.",
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", help="of record, console --record or asciinema")
    parser.add_argument("port", metavar="PORT", nargs="?", help=HELP_OF_PORT)
    parser.add_argument("--monitor", metavar="QMP", help="a QMP socket that knows the address of PORT, a name or id")
    parser.add_argument("--listen", metavar="PATH", help="stand in for the guest at a UNIX socket, for one client")
    parser.add_argument("--speed", type=float, default=1.0, metavar="N", help="N times as fast; 0: without any pauses")
    parser.add_argument("--idle", type=seconds, metavar="SECONDS", help="the longest pause")
    parser.add_argument(
        "--timeout", type=seconds, default=10.0, metavar="SECONDS", help="for the other side to connect, and to take "
        "or say what the recording has next (default: 10)",
    )  # fmt: skip
    options = parser.parse_args(words)
    if options.speed < 0 or (options.port and options.listen):
        parser.error("--speed is negative" if options.speed < 0 else "either PORT or --listen")
    return programs.run(PROGRAM, lambda: _replay(options))


def _replay(options: argparse.Namespace) -> int:
    recording = Recording(options.file)
    with contextlib.closing(recording):
        if options.listen:
            _stand_in(recording, options)
        elif options.port:
            _play_into(recording, options)
        else:
            with _answers_dropped():
                _show(recording, Pace(options.speed, options.idle))
    return 0


def _show(recording: Recording, pace: Pace) -> None:
    for event in recording:
        if event.kind == OUTPUT:
            pace.wait_for(event.at)
            sys.stdout.buffer.write(event.data)
            sys.stdout.buffer.flush()


@contextlib.contextmanager
def _answers_dropped() -> Iterator[None]:
    """A recorded program may ask the terminal where its cursor is: the shell must not take the answer for a command."""
    terminal = sys.stdin.fileno()
    if not (os.isatty(terminal) and sys.stdout.isatty()):
        yield
        return
    before = termios.tcgetattr(terminal)
    quiet = termios.tcgetattr(terminal)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(terminal, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        time.sleep(ANSWER_TIME)
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)


class Pace:
    """Waits for the times of a recording.

    Args:
        speed: how much faster than it was; 0: no waiting at all.
        idle: seconds of the longest pause; None: as long as it was.
    """

    def __init__(self, speed: float, idle: float | None) -> None:
        self._speed, self._idle = speed, idle
        self._at = 0.0

    def wait_for(self, at: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """Wait until that time of the recording has come."""
        pause = max(at - self._at, 0.0)
        self._at = at
        if self._idle is not None:
            pause = min(pause, self._idle)
        if self._speed and pause:
            sleep(pause / self._speed)


def _play_into(recording: Recording, options: argparse.Namespace) -> None:
    pace = Pace(options.speed, options.idle)
    with open_end(options) as stream:
        if not stream.wait_connected(options.timeout):
            raise PeerError(f"{options.port}: nobody answered in {options.timeout:g} s")
        for event in recording:
            if event.kind == INPUT:
                pace.wait_for(event.at)
                stream.write(event.data, options.timeout)


def _stand_in(recording: Recording, options: argparse.Namespace) -> None:
    """Say what the guest said; before it goes on, the client has said what was said to the guest then."""
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(options.listen)
        except OSError as error:
            raise ConfigError(f"{options.listen}: {error.strerror}") from error
        try:
            listener.listen(1)
            listener.settimeout(options.timeout)
            try:
                client, _ = listener.accept()
            except TimeoutError:
                raise PeerError(f"{options.listen}: nobody came in {options.timeout:g} s") from None
        finally:
            os.unlink(options.listen)
    with client:
        client.settimeout(options.timeout)
        pace = Pace(options.speed, options.idle)
        try:
            for event in recording:
                if event.kind == OUTPUT:
                    pace.wait_for(event.at)
                    client.sendall(event.data)
                elif event.kind == INPUT:
                    _hear(client, event.data)
                    pace.wait_for(event.at, lambda _: None)
        except TimeoutError:
            raise PeerError(f"the client said and took nothing more in {options.timeout:g} s") from None
        _linger(client, options.timeout)


def _hear(client: socket.socket, wanted: bytes) -> None:
    heard = b""
    while len(heard) < len(wanted):
        data = client.recv(len(wanted) - len(heard))
        if not data:
            raise PeerError(f"the client left before it said {wanted[len(heard):][:60]!r}")
        heard += data
        if not wanted.startswith(heard):
            raise PeerError(f"the client said {heard[:60]!r}, where the recording has {wanted[:60]!r}")


def _linger(client: socket.socket, seconds: float) -> None:
    """Let the client read all before the connection ends."""
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        while select.select([client], [], [], seconds)[0] and client.recv(READ_SIZE):
            pass
