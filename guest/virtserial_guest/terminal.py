"""A terminal on a port: sends keys raw and shows what comes; or runs a program at the port's end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
import tty
from typing import TYPE_CHECKING, Callable, Iterator

from .errors import NoPartner, PeerAway
from .recording import INPUT, OUTPUT
from .stream import READ_SIZE, Buffer, PortStream, advance

if TYPE_CHECKING:
    from .recording import Recorder

ESCAPE = 0x1D
"""Ctrl-], as in telnet and virsh."""
HELP = "q: leave   r: tell the other end's shell the size of this terminal   s: send the escape key   ?: this"
TYPED_AHEAD = 1 << 16


class EscapeKeys:
    """Finds the escape key and its command among typed bytes."""

    def __init__(self, escape: int = ESCAPE) -> None:
        self._escape = escape
        self._after_escape = False

    def take(self, typed: bytes) -> tuple[bytes, list[str]]:
        """Return the bytes to send, and the commands (q, r, ?) among them."""
        send, commands = bytearray(), []
        for byte in typed:
            if self._after_escape:
                self._after_escape = False
                key = chr(byte).lower()
                if key == "s" or byte == self._escape:
                    send.append(self._escape)
                else:
                    commands.append(key if key in "qr.?" else "?")
            elif byte == self._escape:
                self._after_escape = True
            else:
                send.append(byte)
        return bytes(send), ["q" if each == "." else each for each in commands]


def parse_escape(text: str) -> int:
    """The key of `^X` (Ctrl-X) or a single character.

    Raises:
        ValueError: `text` is neither.
    """
    if len(text) == 2 and text[0] == "^" and 0x3F <= ord(text[1].upper()) <= 0x5F:
        return ord(text[1].upper()) ^ 0x40
    if len(text) == 1 and ord(text) < 0x80:
        return ord(text)
    raise ValueError(f"{text!r} is no key: write ^] for Ctrl-], or one character")


class Console:
    """Joins a terminal and a port until the user leaves."""

    def __init__(
        self,
        stream: PortStream,
        keyboard: int,
        screen: int,
        escape: int = ESCAPE,
        recorder: Recorder | None = None,
        only_watch: bool = False,
    ) -> None:
        """Take a port, and the descriptors of keyboard and screen.

        Args:
            recorder: records what comes, what is typed, and the terminal's size.
            only_watch: what is typed goes nowhere, but for the escape key.
        """
        self._recorder = recorder
        self._only_watch = only_watch
        self._next_news = 0.0
        self._stream = stream
        self._keyboard, self._screen = keyboard, screen
        self._keys = EscapeKeys(escape)
        self._to_port: list[Buffer] = []
        self._waiting = 0
        self._present: bool | None = None
        self._met = False
        self._keyboard_open = True

    def run(self) -> None:
        """Serve until the escape key and q, or until the end of input that is not a terminal.

        Raises:
            PortRemoved: the port is gone.
            NoPartner: that input ended, and nobody had been at the other end.
        """
        poll = select.poll()
        poll.register(self._stream.fileno(), select.POLLIN)
        with _raw(self._keyboard), _size_changes(self._tell_size):
            while True:
                worked = self._from_port()
                if self._to_port:
                    taken = self._stream.send(self._to_port)
                    self._to_port, self._waiting = advance(self._to_port, taken)
                    worked = worked or taken > 0
                if not self._keyboard_open and (not self._to_port or not self._stream.connected):
                    return
                if worked:
                    continue
                if self._keyboard_open and self._waiting < TYPED_AHEAD:
                    poll.register(self._keyboard, select.POLLIN)
                else:
                    with contextlib.suppress(KeyError):
                        poll.unregister(self._keyboard)
                self._look_for_news()
                ready = dict(poll.poll(self._span()))
                if self._keyboard in ready and not self._typed():
                    return
                self._stream.wait(0)

    def _from_port(self) -> bool:
        present = self._stream.connected
        data = self._stream.take(READ_SIZE) if present else b""
        if present and data == b"":
            present = False
        if present != self._present:
            if self._present is not None or not present:
                self._event("connected" if present else "the other end is away; waiting for it")
            self._present = present
            if present:
                self._met = True
                self._tell_size()
        if not present:
            self._stream.probe()
        if data:
            _write_all(self._screen, data)
            if self._recorder is not None:
                self._recorder.record(OUTPUT, data)
        return bool(data)

    def _span(self) -> float | None:
        """Milliseconds to wait for whatever comes; None for ever."""
        attempt = self._stream.next_attempt()
        spans = [] if attempt is None else [attempt * 1000 + 1]
        if self._stream.news_interval is not None:
            spans.append(self._stream.news_interval * 1000)
        return min(spans) if spans else None

    def _look_for_news(self) -> None:
        """Tell what the stream has heard of its port by another way than its bytes."""
        if self._stream.news_interval is not None and time.monotonic() >= self._next_news:
            self._next_news = time.monotonic() + self._stream.news_interval
            for text in self._stream.news():
                self._event(text)

    def _typed(self) -> bool:
        """Handle typed bytes; False to leave."""
        try:
            typed = os.read(self._keyboard, 4096)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            typed = b""
        if not typed:
            if not self._met:
                raise NoPartner("nobody was at the other end before the input ended")
            self._keyboard_open = False
            return bool(self._to_port)
        data, commands = self._keys.take(typed) if os.isatty(self._keyboard) else (typed, [])
        if data and self._present and not self._only_watch:
            self._to_port.append(data)
            self._waiting += len(data)
            if self._recorder is not None:
                self._recorder.record(INPUT, data)
        for command in commands:
            if command == "q":
                return False
            if command == "r":
                rows, columns = terminal_size(self._keyboard)
                self._to_port.append(b"stty rows %d cols %d\n" % (rows, columns))
            else:
                self._say(HELP)
        return True

    def _tell_size(self) -> None:
        """Tell the port the terminal's size, where there is a way; else there is the command r."""
        if not os.isatty(self._keyboard):
            return
        rows, columns = terminal_size(self._keyboard)
        if not self._only_watch:
            self._stream.set_terminal_size(rows, columns)
        if self._recorder is not None:
            self._recorder.resize(rows, columns)

    def _event(self, text: str) -> None:
        self._say(text)
        if self._recorder is not None:
            self._recorder.mark(text)

    def _say(self, text: str) -> None:
        if os.isatty(self._keyboard):
            _write_all(self._screen, f"\r\n[virtserial: {text}]\r\n".encode())


def serve_program(stream: PortStream, command: list[str]) -> None:
    """Run a program on a pseudo-terminal at the port's end, once for every connection, until the port is gone.

    Raises:
        PortRemoved: the port is gone.
    """
    while True:
        stream.wait_connected()
        child, master = pty.fork()
        if child == 0:
            try:
                os.execvp(command[0], command)
            finally:
                os._exit(127)
        try:
            _join(stream, master)
        finally:
            os.close(master)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGHUP)
            os.waitpid(child, 0)
        if stream.connected:
            with contextlib.suppress(PeerAway):
                stream.write(b"\r\n[the program has ended; another begins]\r\n", 10)


def _join(stream: PortStream, master: int) -> None:
    """Move bytes between a port and a pseudo-terminal until either end closes."""
    os.set_blocking(master, False)
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLIN)
    pending = b""
    while True:
        if not pending:
            data = stream.take(4096)
            if data == b"":
                return
            pending = data or b""
        with contextlib.suppress(BlockingIOError):
            count = os.write(master, pending) if pending else 0
            pending = pending[count:]
            if count:
                continue
        poll.register(master, select.POLLIN | (select.POLLOUT if pending else 0))
        ready = dict(poll.poll())
        stream.wait(0)
        if ready.get(master, 0) & ~select.POLLOUT:
            try:
                stream.write(os.read(master, 65536))
            except (OSError, PeerAway):
                return


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)  # what was typed while the program started stays
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _size_changes(tell: Callable[[], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGWINCH, lambda *_: tell())
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def terminal_size(fd: int) -> tuple[int, int]:
    """Rows and columns of a terminal."""
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    return rows or 24, columns or 80
