"""What one client of a monitor has asked for, and what of it runs when.

In-band requests run one after the other, out-of-band ones past them, none while the client does not take our answers.
"""

from __future__ import annotations

import logging
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
"""In-band requests that wait while out-of-band ones can pass them (QEMU's QMP_REQ_QUEUE_LEN_MAX); as many of those
may be unanswered."""


class Backend(Protocol):
    """Who runs what the clients of one monitor ask for."""

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Call back when clients can be greeted."""

    def greeting(self) -> Mapping[str, object]:
        """What QMP clients are greeted with."""

    def run(self, client: Client, request: Request, answer: Callable[[object], None]) -> None:
        """Run a command; `answer` is called once, now or later, with what it returns or a QmpError."""

    def run_line(self, client: Client, line: str, answer: Callable[[str], None]) -> None:
        """Run a line of HMP; `answer` is called once, now or later, with what it prints."""

    def candidates(self, text: str) -> tuple[Sequence[str], int]:
        """What the last word of a line could become, and how much of that is typed."""

    def client_left(self) -> None:
        """The client is gone: forget what was its own."""


class Line(Protocol):
    """Who carries the conversation's bytes."""

    unsent: bytearray

    def flush(self) -> None:
        """Send what the session has to say, as far as the client takes it; the rest is `unsent`."""

    def read_on(self) -> None:
        """All that was received is done with."""

    def fail(self, reason: str) -> None:
        """Part from the client."""


class Conversation:
    """
    Args:
        session: the client's.
        client: who asks.
    """

    def __init__(self, session: QmpSession | HmpSession, backend: Backend, client: Client, line: Line) -> None:
        self.session = session
        self._backend = backend
        self._client = client
        self._line = line
        self._incoming: Iterator[Received] | Iterator[str] | None = None
        self._queue: deque[Received | str] = deque()
        self._busy = False
        self._oob_running = 0
        self._advancing = False
        self._over = False

    @property
    def can_receive(self) -> bool:
        """Whether all that was received is done with."""
        return self._incoming is None

    def receive(self, data: bytes) -> None:
        """Take what the client sent, when it can be taken."""
        self._incoming = self.session.receive(data)
        self.advance()

    def advance(self) -> None:
        """Run what may run now of what has been received, then have more read."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while not self._over and not self._line.unsent and self._step():
                pass
        except Exception:
            # The keeper must go on, whatever a client has made of us.
            log.exception("internal error in a monitor")
            self._line.fail("internal error")
        finally:
            self._advancing = False
        if not self._over and self.can_receive and not self._line.unsent:
            self._line.read_on()

    def _step(self) -> bool:
        """Do one thing; False: there is nothing that may be done now."""
        if self._queue and not self._busy:
            self._run(self._queue.popleft())
            return True
        session = self.session
        may_wait = isinstance(session, QmpSession) and session.oob and len(self._queue) < MAX_QUEUED
        if self._incoming is None or (self._busy and not may_wait) or self._oob_running >= MAX_QUEUED:
            return False
        received = next(self._incoming, None)
        if received is None:
            self._incoming = None
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
        """The client has left: what it has asked for is forgotten, answers that come later have nobody to go to."""
        self._over = True
        self._incoming = None
        self._queue.clear()
        self._backend.client_left()
