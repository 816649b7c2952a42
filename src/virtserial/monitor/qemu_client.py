"""A QMP client of the QEMU beside us: its protocol without I/O, and the stream that carries it on the keeper's loop."""

from __future__ import annotations

import array
import json
import logging
import socket
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from virtserial.loop import EPOLLIN, EPOLLOUT
from virtserial.monitor.qmp import GENERIC_ERROR, QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtserial.loop import EventLoop

log = logging.getLogger("virtserial.monitor")

READ_SIZE: Final = 64 << 10
OOB: Final = "oob"


class QemuGoneError(QmpError):
    """QEMU has ended, or closed this connection, before it has answered."""

    def __init__(self) -> None:
        super().__init__("QEMU has ended")


class Ask(NamedTuple):
    """A command for QEMU.

    Attributes:
        oob: run it out of band, if QEMU offers that.
        fd: a descriptor that goes with it; it stays the asker's, and open until the answer.
    """

    command: str
    arguments: Mapping[str, object]
    oob: bool = False
    fd: int | None = None


class QemuSession:
    """One connection to QEMU's monitor, without I/O.

    It negotiates by itself; what is asked before that is sent after it.  Answers come in any order and find their
    askers by ids of our own.

    Args:
        event: takes each event, as QEMU has sent it.
        ready: called when QEMU has greeted and negotiated.

    Attributes:
        greeting: QEMU's, or None before it has come.
        to_send: messages and the descriptors that go with them, oldest first; the stream takes them from here.
    """

    def __init__(self, event: Callable[[dict[str, object]], None], ready: Callable[[], None]) -> None:
        self.greeting: dict[str, object] | None = None
        self.to_send: deque[tuple[bytes, int | None]] = deque()
        self._event = event
        self._ready = ready
        self._partial = bytearray()
        self._negotiated = False
        self._has_oob = False
        self._ended = False
        self._early: list[tuple[Ask, Callable[[object], None]]] = []
        self._answers: dict[int, Callable[[object], None]] = {}
        self._asked = 0

    def ask(self, ask: Ask, answer: Callable[[object], None]) -> None:
        """Ask QEMU; `answer` is called once with what the command returns, or a QmpError."""
        if self._ended:
            answer(QemuGoneError())
        elif self._negotiated:
            self._send(ask, answer)
        else:
            self._early.append((ask, answer))

    def _send(self, ask: Ask, answer: Callable[[object], None]) -> None:
        self._asked += 1
        self._answers[self._asked] = answer
        verb = "exec-oob" if ask.oob and self._has_oob else "execute"
        request: dict[str, object] = {verb: ask.command, "id": self._asked}
        if ask.arguments:
            request["arguments"] = ask.arguments
        self.to_send.append((json.dumps(request).encode() + b"\n", ask.fd))

    def receive(self, data: bytes) -> None:
        """Take what QEMU has sent; call who waits for it."""
        self._partial += data
        *lines, rest = self._partial.split(b"\n")
        self._partial = rest
        for line in lines:
            if line.strip():
                self._take(json.loads(line))

    def _take(self, message: dict[str, object]) -> None:
        if "event" in message:
            self._event(message)
        elif "QMP" in message:
            self.greeting = message
            offered = message["QMP"].get("capabilities", ()) if isinstance(message["QMP"], dict) else ()
            self._has_oob = OOB in offered
            self._send(Ask("qmp_capabilities", {"enable": [OOB]} if self._has_oob else {}), self._negotiation_answered)
        else:
            # A request that QEMU cannot read has no id for it: of those that wait it is most likely the first.
            key = message.get("id", next(iter(self._answers), None))
            answer = self._answers.pop(cast(int, key), None)
            if answer is None:
                log.warning("QEMU has answered what was not asked: %.200s", message)
            else:
                answer(_result(message))

    def _negotiation_answered(self, result: object) -> None:
        if isinstance(result, QmpError):
            if not isinstance(result, QemuGoneError):
                log.error("QEMU's monitor does not negotiate: %s", result)
            return
        self._negotiated = True
        early, self._early = self._early, []
        for ask, answer in early:
            self._send(ask, answer)
        self._ready()

    def end(self) -> None:
        """The connection is over: whoever waits for an answer hears QemuGoneError."""
        self._ended = True
        waiting = [*self._answers.values(), *(answer for _, answer in self._early)]
        self._answers.clear()
        self._early.clear()
        for answer in waiting:
            answer(QemuGoneError())


def _result(message: Mapping[str, object]) -> object:
    """What an answer returns, or the QmpError that it is."""
    error = message.get("error")
    if isinstance(error, dict):
        return QmpError(str(error.get("desc", "")), str(error.get("class", GENERIC_ERROR)))
    return message.get("return")


class QemuConnection:
    """A QemuSession over a stream socket.

    Args:
        stream: its other end is a monitor of QEMU's; owned from here on.
        event: takes each event, as QEMU has sent it.
        ready: called when QEMU answers.
        ended: called when QEMU has closed its end, after everything it had said was taken.
    """

    def __init__(
        self,
        loop: EventLoop,
        stream: socket.socket,
        event: Callable[[dict[str, object]], None],
        ready: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self.session = QemuSession(event, ready)
        self._loop = loop
        self._stream = stream
        self._ended = ended
        self._blocked = False
        self._closed = False
        stream.setblocking(False)
        loop.watch(stream.fileno(), EPOLLIN, self._ready)

    def ask(self, ask: Ask, answer: Callable[[object], None]) -> None:
        """Ask QEMU (QemuSession.ask)."""
        self.session.ask(ask, answer)
        self._flush()

    def _ready(self, events: int) -> None:
        if events & EPOLLOUT:
            self._flush()
        if events & ~EPOLLOUT:
            self._read()

    def read_all(self) -> None:
        """Take everything that QEMU has said so far."""
        while self._read():
            pass

    def _read(self) -> bool:
        """Take one piece; False: there is none."""
        if self._closed:
            return False
        try:
            data = self._stream.recv(READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            self._ended()
            return False
        try:
            self.session.receive(data)
        except ValueError as error:
            log.error("QEMU's monitor has sent no JSON: %s", error)
        self._flush()
        return True

    def _flush(self) -> None:
        waiting = self.session.to_send
        while waiting and not self._closed:
            data, fd = waiting.popleft()
            rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            try:
                sent = self._stream.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                waiting.appendleft((data, fd))
                break
            except OSError:
                break  # Its end is on its way to us.
            if sent < len(data):
                waiting.appendleft((data[sent:], None))
        self._watch_writable(bool(waiting))

    def _watch_writable(self, blocked: bool) -> None:
        if blocked != self._blocked and not self._closed:
            self._blocked = blocked
            self._loop.rewatch(self._stream.fileno(), EPOLLIN | (EPOLLOUT if blocked else 0))

    def close(self) -> None:
        """Close our end; whoever waits for an answer hears QemuGoneError.  Twice is harmless."""
        if not self._closed:
            self._closed = True
            self._loop.unwatch(self._stream.fileno())
            self._stream.close()
            self.session.end()
