"""One stream of bytes through a link: two programs that talk as over a connection, with its begin, ends and failures.

A port alone says too little for that: it may hold bytes of an earlier connection, a host that leaves and comes back may
go unnoticed, and a guest cannot close a host's socket.  The link (link.py) gives each connection a session of its own.

| message | payload | meaning |
|---|---|---|
| DATA | bytes | of the stream |
| TAKEN | 4 bytes, a number | so many bytes were handed on: as many more may be sent |
| END | - | this side's program sends nothing more |
| FAILED | a text | there is no program; the client prints why |
"""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Callable

from .conversation import Party
from .errors import ProtocolError
from .files.messages import printable

if TYPE_CHECKING:
    from .link import Link
    from .stream import EpollStream

DATA, TAKEN, END, FAILED = 1, 2, 3, 4
CLIENT, SERVER = b"tunnel-client", b"tunnel-server"
COUNT = struct.Struct("<I")
WINDOW = 1 << 20
"""Bytes that may be under way in one direction, unheard of by the other side."""
PIECE = 1 << 16
MAX_REASON = 400


class Tunnel:
    """Moves bytes between a session and two descriptors of a program, both non-blocking.

    Attributes:
        source_ended: the program sends nothing more.
        target_ended: the other side sends nothing more, and all was handed on.
    """

    def __init__(self, link: Link, stream: EpollStream, source: int, target: int) -> None:
        """Take a session that has begun.

        Args:
            link: of that session.
            stream: waits for the descriptors too.
            source: what is read is sent.
            target: gets what comes; another number than `source`.  Both stay the caller's.
        """
        self._link = link
        self._stream = stream
        self._source, self._target = source, target
        self._credit = WINDOW
        self._pending = bytearray()
        self._untold = 0
        self._peer_ended = False
        self.source_ended = self.target_ended = False
        self._watches = {source: False, target: False}

    def message(self, kind: int, payload: bytes) -> None:
        """Take a message of the other side.

        Raises:
            ProtocolError: it sent more than it may.
        """
        if kind == DATA and not self._peer_ended:
            self._pending += payload
            if len(self._pending) + self._untold > WINDOW:
                raise ProtocolError("the other end sent more than it may")
        elif kind == TAKEN and len(payload) == COUNT.size:
            self._credit = min(self._credit + COUNT.unpack(payload)[0], WINDOW)
        elif kind == END:
            self._peer_ended = True
        else:
            raise ProtocolError(f"the other end sent a message of kind {kind} out of order")

    def pump(self) -> bool:
        """Move what can be moved now; return whether anything was."""
        worked = self._read() | self._write()
        self._watch(self._source, select.EPOLLIN, not self.source_ended and self._credit > 0 and self._link.room)
        self._watch(self._target, select.EPOLLOUT, bool(self._pending))
        return worked

    def _read(self) -> bool:
        worked = False
        while not self.source_ended and self._credit > 0 and self._link.room:
            try:
                data = os.read(self._source, min(PIECE, self._credit))
            except BlockingIOError:
                break
            except OSError:
                data = b""
            worked = True
            if data:
                self._credit -= len(data)
                self._link.send(DATA, data)
            else:
                self.source_ended = True
                self._link.send(END)
        return worked

    def _write(self) -> bool:
        worked = False
        while self._pending:
            try:
                done = os.write(self._target, self._pending[:PIECE])
            except BlockingIOError:
                break
            except OSError:
                done = len(self._pending)  # Nobody takes it any more.
            del self._pending[:done]
            self._untold += done
            worked = True
            if self._untold >= WINDOW // 4 or not self._pending:
                self._link.send(TAKEN, COUNT.pack(self._untold))
                self._untold = 0
        if self._peer_ended and not self._pending and not self.target_ended:
            self.target_ended = worked = True
        return worked

    def _watch(self, fd: int, events: int, is_wanted: bool) -> None:
        if is_wanted != self._watches[fd]:
            if is_wanted:
                is_wanted = self._stream.watch(fd, events)
            else:
                self._stream.unwatch(fd)
            self._watches[fd] = is_wanted

    def close(self) -> None:
        """Let go of the descriptors."""
        for fd in self._watches:
            self._watch(fd, 0, False)


class TunnelClient(Party):
    """The host's side: standard input and output, for one session.

    Attributes:
        failure: why it ended before its time; "" if it did not.
        heard: whether the guest's program has said anything.
    """

    purpose, partner = CLIENT, SERVER

    def __init__(self, link: Link, stream: EpollStream, source: int, target: int) -> None:
        """A client that waits for its session."""
        self._link, self._stream = link, stream
        self._fds = source, target
        for fd in self._fds:
            os.set_blocking(fd, False)
        self._tunnel: Tunnel | None = None
        self.failure = ""
        self.heard = self.finished = False

    def established(self) -> None:
        """The session started."""
        self._tunnel = Tunnel(self._link, self._stream, *self._fds)

    def lost(self) -> None:
        """The session ended."""
        self.failure = self.failure or "the connection to the guest is lost"
        self.finished = True

    def message(self, kind: int, payload: bytes) -> None:
        """See Party.message."""
        if kind == FAILED:
            self.failure = printable(payload[:MAX_REASON].decode("utf-8", "replace"))
            self.finished = True
        elif self._tunnel is not None:
            self.heard = self.heard or kind == DATA
            self._tunnel.message(kind, payload)

    def pump(self) -> bool:
        """See Party.pump."""
        worked = self._tunnel is not None and self._tunnel.pump()
        if self._tunnel is not None and self._tunnel.target_ended:
            self.finished = True
        return worked

    def close(self) -> None:
        """Let go of the descriptors."""
        if self._tunnel is not None:
            self._tunnel.close()


class Program:
    """A running program with one socket for its input and output; it ends when that closes."""

    def __init__(self, end: socket.socket, errors: int) -> None:
        """Own its descriptors.

        Args:
            end: our end of its socket.
            errors: what it says on standard error, non-blocking.
        """
        self.end, self.errors = end, errors


def _first_byte(end: socket.socket) -> bytes | None:
    """What a program says first: b"" if it has ended without a word, None while it says nothing."""
    try:
        return end.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    except OSError:
        # A program that leaves bytes of ours unread resets the connection at its end.
        return b""


class TunnelServer(Party):
    """The guest's side: a program for each session."""

    purpose, partner = SERVER, CLIENT

    def __init__(
        self, link: Link, stream: EpollStream, start: Callable[[], Program], say: Callable[[str], None]
    ) -> None:
        """A server that waits for sessions.

        Args:
            start: starts the program of a session.  Raises OSError: it cannot be started.
            say: takes what programs say on standard error, and what went wrong.
        """
        self._link, self._stream = link, stream
        self._start, self._say = start, say
        self._program: Program | None = None
        self._tunnel: Tunnel | None = None
        self._target = -1
        self._said = b""
        self._has_spoken = False
        self.finished = False

    def established(self) -> None:
        """A session started: so does its program."""
        self._end()
        try:
            self._program = program = self._start()
        except OSError as error:
            self._fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
            return
        program.end.setblocking(False)
        self._target = os.dup(program.end.fileno())
        self._said, self._has_spoken = b"", False
        self._stream.watch(program.errors)
        self._tunnel = Tunnel(self._link, self._stream, program.end.fileno(), self._target)

    def lost(self) -> None:
        """The session ended: its program finds its input closed."""
        self._end()

    def message(self, kind: int, payload: bytes) -> None:
        """See Party.message."""
        if self._tunnel is not None:
            self._tunnel.message(kind, payload)

    def pump(self) -> bool:
        """See Party.pump."""
        program, tunnel = self._program, self._tunnel
        if program is None or tunnel is None:
            return False
        worked = self._hear(program.errors)
        if not self._has_spoken and (first := _first_byte(program.end)) is not None:
            self._has_spoken = bool(first)
            if not first:
                self._hear(program.errors, to_the_end=True)
                self._fail(self._last_words())
                return True
        worked |= tunnel.pump()
        if tunnel.target_ended:
            program.end.shutdown(socket.SHUT_WR)
        if tunnel.source_ended:
            self._end()
        return worked

    def _hear(self, errors: int, to_the_end: bool = False) -> bool:
        if to_the_end:
            os.set_blocking(errors, True)
        heard = b""
        try:
            while True:
                data = os.read(errors, 4096)
                heard += data
                if not data:
                    if errors >= 0 and not to_the_end:
                        self._stream.unwatch(errors)
                    break
        except (BlockingIOError, FileNotFoundError):
            pass
        self._said = (self._said + heard)[-4096:]
        for line in heard.decode("utf-8", "replace").splitlines():
            self._say(line)
        return bool(heard)

    def _last_words(self) -> str:
        lines = self._said.decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "the program has ended at once")

    def _fail(self, reason: str) -> None:
        self._say(reason)
        self._link.send(FAILED, reason.encode()[:MAX_REASON])
        self._end()

    def _end(self) -> None:
        program, self._program = self._program, None
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            tunnel.close()
        if program is not None:
            program.end.close()
            os.close(self._target)
            os.close(program.errors)

    def close(self) -> None:
        """End the program's connection."""
        self._end()
