"""The client's side of QMP: negotiation, commands, answers and events; no I/O.

`client/qmp.py` carries it over a blocking socket, `qemu_connection.py` over the keeper's event loop.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from virtserial.errors import PeerError
from virtserial.monitor.qmp import GENERIC_ERROR, QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger("virtserial.monitor")

OOB: Final = "oob"
MAX_LINE: Final = 16 << 20
"""Bytes of one message from a monitor."""


class MonitorGoneError(QmpError):
    """The monitor closed the connection before it answered."""

    def __init__(self) -> None:
        super().__init__("the monitor has closed the connection")


class Ask(NamedTuple):
    """A command for a monitor.

    Attributes:
        oob: run it out of band, if the monitor offers that.
        fd: a descriptor to pass along; it stays the asker's, and open until the answer.
    """

    command: str
    arguments: Mapping[str, object]
    oob: bool = False
    fd: int | None = None


class QmpClientSession:
    """One connection to a monitor.  It negotiates by itself, and sends what was asked before once that is done.

    Answers may come in any order: ids of ours tell whose each is.

    Args:
        event: takes each event as the monitor sent it.
        ready: called when the negotiation is done.

    Attributes:
        greeting: the monitor's, or None before it has come.
        to_send: messages and the descriptors to pass with them, oldest first; the carrier takes them from here.
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
        self._answers: dict[object, Callable[[object], None]] = {}
        self._asked = 0

    def ask(self, ask: Ask, answer: Callable[[object], None]) -> None:
        """Send a command; `answer` is called once with what it returns, or with a QmpError."""
        if self._ended:
            answer(MonitorGoneError())
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
        """Take what the monitor sent.

        Raises:
            PeerError: that is not QMP.
        """
        self._partial += data
        *lines, rest = self._partial.split(b"\n")
        if len(rest) > MAX_LINE:
            raise PeerError(f"more than {MAX_LINE} bytes without a newline")
        self._partial = rest
        for line in lines:
            if not line.strip():
                continue
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                message = None
            if not isinstance(message, dict):
                raise PeerError(f"not QMP: {bytes(line[:60])!r}")
            self._take(message)

    def _take(self, message: dict[str, object]) -> None:
        if "event" in message:
            self._event(message)
        elif "QMP" in message:
            self.greeting = message
            offered = message["QMP"].get("capabilities", ()) if isinstance(message["QMP"], dict) else ()
            self._has_oob = OOB in offered
            self._send(Ask("qmp_capabilities", {"enable": [OOB]} if self._has_oob else {}), self._negotiation_answered)
        else:
            # QEMU cannot give the id of a request that it could not parse: that is most likely the oldest one.
            answer = self._answers.pop(message.get("id", next(iter(self._answers), None)), None)
            if answer is None:
                log.warning("the monitor answers a request that was not sent: %.200s", message)
            else:
                answer(_result(message))

    def _negotiation_answered(self, result: object) -> None:
        if isinstance(result, QmpError):
            if not isinstance(result, MonitorGoneError):
                log.error("negotiation with the monitor failed: %s", result)
            return
        self._negotiated = True
        early, self._early = self._early, []
        for ask, answer in early:
            self._send(ask, answer)
        self._ready()

    def end(self) -> None:
        """The connection is closed: every open request is answered with MonitorGoneError."""
        self._ended = True
        waiting = [*self._answers.values(), *(answer for _, answer in self._early)]
        self._answers.clear()
        self._early.clear()
        for answer in waiting:
            answer(MonitorGoneError())


def _result(message: Mapping[str, object]) -> object:
    """What an answer returns, or the QmpError in it."""
    error = message.get("error")
    if isinstance(error, dict):
        return QmpError(str(error.get("desc", "")), str(error.get("class", GENERIC_ERROR)))
    return message.get("return")
