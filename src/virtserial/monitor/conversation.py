"""The requests of one monitor client, and when each runs.

In-band requests run one after the other; out-of-band requests overtake them.  None runs while the client does not
read our answers.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from virtserial.monitor.hmp_session import HmpSession
from virtserial.monitor.qmp import QmpSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from virtserial.monitor.descriptors import Client
    from virtserial.monitor.qmp import Received, Request

log = logging.getLogger("virtserial.monitor")

MAX_QUEUED = 8
"""Queued in-band requests per client (QEMU's QMP_REQ_QUEUE_LEN_MAX), and unanswered out-of-band ones."""


TURN_SECONDS = 0.01
"""After so long the other users of the keeper's loop have their turn."""


class Backend(Protocol):
    """Runs the requests of one monitor's clients."""

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Call back once the greeting is known."""

    def greeting(self) -> Mapping[str, object]:
        """The greeting for QMP clients."""

    def run(self, client: Client, request: Request, answer: Callable[[object], None]) -> None:
        """Run a command; call `answer` once, now or later, with its result or a QmpError."""

    def run_line(self, client: Client, line: str, answer: Callable[[str], None]) -> None:
        """Run a line of HMP; call `answer` once, now or later, with what it prints."""

    def candidates(self, text: str) -> tuple[Sequence[str], int]:
        """What the last word of a line could become, and how many of its characters are typed."""

    def client_left(self) -> None:
        """The client is gone: reset what belongs to a session."""


class Line(Protocol):
    """Carries the conversation's bytes."""

    unsent: bytearray

    def flush(self) -> None:
        """Send the session's output as far as the client takes it; the rest is `unsent`."""

    def read_on(self) -> None:
        """Everything received was handled: read more."""

    def run_later(self, callback: Callable[[], None]) -> None:
        """Call back in the next turn of the loop."""

    def fail(self, reason: str) -> None:
        """Close the client's connection."""


class Conversation:
    """Queues a client's requests and runs them in turn.

    Args:
        session: the client's protocol state.
        client: its descriptors.
    """

    def __init__(self, session: QmpSession | HmpSession, backend: Backend, client: Client, line: Line) -> None:
        self.session = session
        self._backend = backend
        self._client = client
        self._line = line
        self._incoming: Iterator[Received | str | None] | None = None
        self._queue: deque[Received | str] = deque()
        self._busy = False
        self._oob_running = 0
        self._advancing = False
        self._over = False

    @property
    def can_receive(self) -> bool:
        """Whether everything received was handled."""
        return self._incoming is None

    def receive(self, data: bytes) -> None:
        """Take what the client sent; only while `can_receive`."""
        self._incoming = self.session.receive(data)
        self.advance()

    def advance(self) -> None:
        """Run the received requests that may run now, then ask for more input."""
        if self._advancing:
            return
        self._advancing = True
        deadline = time.monotonic() + TURN_SECONDS
        try:
            while not self._over and not self._line.unsent and self._step():
                if time.monotonic() >= deadline:
                    self._line.run_later(self.advance)
                    return
        except Exception:
            # A client must never end the keeper.
            log.exception("internal error in a monitor")
            self._line.fail("internal error")
        finally:
            self._advancing = False
        if not self._over and self.can_receive and not self._line.unsent:
            self._line.read_on()

    def _step(self) -> bool:
        """Do one step; False if none may be done now."""
        if self._queue and not self._busy:
            self._run(self._queue.popleft())
            return True
        session = self.session
        may_wait = isinstance(session, QmpSession) and session.oob and len(self._queue) < MAX_QUEUED
        if self._incoming is None or (self._busy and not may_wait) or self._oob_running >= MAX_QUEUED:
            return False
        try:
            received = next(self._incoming)
        except StopIteration:
            self._incoming = received = None
        if received is None:
            self._line.flush()
        elif not isinstance(received, str) and received.oob:
            self._run(received)
        else:
            self._queue.append(received)
        return True

    def _run(self, received: Received | str) -> None:
        session = self.session
        if isinstance(received, str):
            assert isinstance(session, HmpSession)
            self._busy = True
            self._backend.run_line(self._client, received, self._printed)
            return
        assert isinstance(session, QmpSession)
        request = session.request(received)
        if request is None:
            self._line.flush()
            return
        self._busy |= not request.oob
        self._oob_running += request.oob
        self._backend.run(self._client, request, lambda result: self._answered(request, result))

    def _printed(self, text: str) -> None:
        if self._over:
            return
        assert isinstance(self.session, HmpSession)
        self._busy = False
        self.session.answer(text)
        self._line.flush()
        self.advance()

    def _answered(self, request: Request, result: object) -> None:
        if self._over:
            return
        assert isinstance(self.session, QmpSession)
        self._busy &= request.oob
        self._oob_running -= request.oob
        self.session.answer(request, result)
        self._line.flush()
        self.advance()

    def end(self) -> None:
        """The client has left: drop its requests and the answers that come later."""
        self._over = True
        self._incoming = None
        self._queue.clear()
        self._backend.client_left()
