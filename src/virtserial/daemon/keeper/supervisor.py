"""Keeps one worker running: starts it, notices that it has died, hangs or lies, puts another in its place.

A worker that dies leaves notes of what it was killed over (its ledger); one that stops on request says what it had not
yet handed on (Backlog).  Its successor gets both, with the rest of its briefing (briefing.py).

| state | what is there | ends by | next |
|---|---|---|---|
| NONE | no process: the last one has just ended | `start`, at once or after RESTART_DELAYS | STARTING |
| STARTING | a process that is being briefed | Started | SERVING, or STOPPING if `replace` was called meanwhile |
| SERVING | a process that moves bytes | its successor is Ready (`upgrade`); `replace`; `retire` | STOPPING |
| STOPPING | a process that was told to Stop | its end, within STOP_TIMEOUT | NONE, after `retire` RETIRED |
| RETIRED | no process: another program may take this one's place | `start` | STARTING |
| CLOSED | no process, and none to come | - | - |

In every state with a process, its unasked end leads to NONE.  What makes the keeper end it:

| fault | noticed by |
|---|---|
| does not read its channel for SEND_TIMEOUT | `send`: the channel is full; hang_watch.py |
| says what cannot be true (reports.py) | `_receive`: one line is logged, nothing more is read from it |
| has closed its end | end of file; mostly it has just died |

A successor of new code (successor.py) reads that code while the old worker serves; if it cannot, the old one stays.
"""

from __future__ import annotations

import enum
import logging
import os
import select
import signal
import time
from typing import TYPE_CHECKING

from virtserial.channel.messages import Answer, Backlog, Confined, Interrupted, Pong, Ready, Started, Stop
from virtserial.daemon.keeper.document import WorkersLeft
from virtserial.daemon.keeper.hang_watch import HangWatch
from virtserial.daemon.keeper.successor import Successor
from virtserial.daemon.keeper.worker_process import SEND_TIMEOUT, WorkerProcess
from virtserial.errors import ConfigError, StateError
from virtserial.loop import EPOLLIN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.channel.messages import FromKeeper, FromWorker, Left, Report
    from virtserial.channel.requests import Request
    from virtserial.daemon.keeper.blame import Blame
    from virtserial.daemon.keeper.worker_process import WorkerCode
    from virtserial.loop import EventLoop, Timer

log = logging.getLogger("virtserial.keeper")

RESTART_DELAYS = (0.0, 0.05, 0.1, 0.2, 0.3)
"""Seconds before a worker that died young is started again: the n-th time in a row.  All guests wait so long, however
often it dies."""
RETRY_DELAY = 1.0
"""Seconds until the next try, if no process can be started."""
YOUNG = 2.0
READ_AHEAD_DELAY = 0.2
STOP_TIMEOUT = 3.0
"""Seconds for a worker to stop for its successor; then it is killed, which loses nothing either."""
MESSAGES_AT_ONCE = 1000
"""Of a worker, before others have a turn."""
MAX_BACKLOG = 64 << 20
"""Bytes of console output that a worker may leave: far more than 511 consoles' buffers."""


State = enum.Enum("State", "NONE STARTING SERVING STOPPING RETIRED CLOSED")
"""Of the worker; see the table above."""


class Supervisor:
    """
    Args:
        code: what a worker runs.
        parent: what a forked worker must not finalize.
        brief: tells a new worker everything, up to Start.
        handle: takes what a worker reports; the descriptors that it leaves in the list are closed.
        blame: is told how workers end.

    Attributes:
        worker: the process, None while there is none.
        restarts: workers that died and were replaced.
        upgrades: workers that were replaced on request.
        refusal: why the last request for new code came to nothing, or None.
        doubtful: bytes that were moved twice, or not at all, because a worker was killed over them.
        left: what workers have left to the next.
        read_ahead: what reads code that this process may need later, called soon after a worker serves: a start does
            not wait for it, and an upgrade may remove the files.
        hang_watch: `ping` finds out whether the worker hangs.
    """

    def __init__(
        self,
        loop: EventLoop,
        code: WorkerCode,
        parent: object,
        brief: Callable[[WorkerProcess], None],
        handle: Callable[[Report, list[int]], None],
        blame: Blame,
    ) -> None:
        self.worker: WorkerProcess | None = None
        self.restarts = 0
        self.upgrades = 0
        self.refusal: str | None = None
        self.doubtful = 0
        self.left: list[Left] = []
        self.read_ahead: list[Callable[[], object]] = [code.read_ahead]
        self._loop = loop
        self._code = code
        self._parent = parent
        self._brief = brief
        self._handle = handle
        self._blame = blame
        self._state = State.NONE
        self._successor: Successor | None = None
        self._outdated = False
        self._retired: Callable[[], None] | None = None
        self._started = 0.0
        self._young_deaths = 0
        self.hang_watch = HangWatch(loop, self.send, self._end_hung_worker)
        self._restart_timer: Timer | None = None
        self._stop_timer: Timer | None = None
        self._requests = 0
        self._answer: Answer | None = None
        self._backlog = 0
        self._sandbox_told = False

    # Life

    def start(self) -> None:
        """Start a worker, or let the successor that waits for its turn begin.

        Raises:
            OSError: no process can be started.
        """
        self._cancel_timers()
        successor, self._successor = self._successor, None
        worker = successor.take() if successor is not None else WorkerProcess.fork(self._parent, self._code)
        self.worker, self._state = worker, State.STARTING
        self._outdated = False
        self._started = time.monotonic()
        self._loop.watch(worker.channel.fileno(), EPOLLIN, self._worker_spoke)
        self._loop.watch(worker.pidfd, EPOLLIN, self._worker_exited)
        self._backlog = 0
        self.hang_watch.begin(worker)
        self._brief(worker)

    def start_or_try_again(self) -> None:
        """Start a worker, as soon as one can be started."""
        try:
            self.start()
        except OSError as error:
            log.error("no worker can be started: %s", error.strerror)
            self._restart_timer = self._loop.call_later(RETRY_DELAY, self.start_or_try_again)

    def close(self) -> None:
        """End the worker for good: a word first, then by force."""
        self._state = State.CLOSED
        self._cancel_timers()
        self._dismiss_successor()
        worker, self.worker = self.worker, None
        if worker is None:
            return
        self._unwatch(worker)
        worker.channel.close()
        poll = select.poll()
        poll.register(worker.pidfd, select.POLLIN)
        if not poll.poll(1000):
            worker.kill()
            poll.poll()
        worker.reap()

    def _unwatch(self, worker: WorkerProcess) -> None:
        self._loop.unwatch(worker.channel.fileno())
        self._loop.unwatch(worker.pidfd)

    def _cancel_timers(self) -> None:
        self.hang_watch.end()
        for timer in (self._restart_timer, self._stop_timer):
            if timer is not None:
                timer.cancel()
        self._restart_timer = self._stop_timer = None

    def _worker_exited(self, _: int) -> None:
        worker, self.worker = self.worker, None
        assert worker is not None
        self.hang_watch.end()
        self._unwatch(worker)
        while self._receive(worker):
            pass
        remains = worker.reap()
        state, self._state = self._state, State.NONE
        self.left += [Interrupted(*note) for note in remains.notes]
        code = os.waitstatus_to_exitcode(remains.status)
        if self._retired is not None:
            self._state = State.RETIRED
            retired, self._retired = self._retired, None
            self._cancel_timers()
            self.upgrades += not code
            self.restarts += bool(code)
            retired()
        elif state is State.STOPPING and code == 0:
            self.upgrades += 1
            log.info("worker %d has stopped; a new one takes over", worker.pid)
            self.start_or_try_again()
        else:
            self._blame.ended(remains, code, by_keeper=worker.fault is not None)
            self._start_after_death(worker, code)

    def _start_after_death(self, worker: WorkerProcess, code: int) -> None:
        self.restarts += 1
        young = time.monotonic() - self._started < YOUNG
        self._young_deaths = self._young_deaths + 1 if young else 0
        delay = RESTART_DELAYS[min(self._young_deaths, len(RESTART_DELAYS) - 1)]
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        log.error("worker %d %s; a new one takes over", worker.pid, worker.fault or cause)
        if self._successor is not None and not self._successor.is_ready:
            self._refuse("the old one died before it was ready")
        self._restart_timer = self._loop.call_later(delay, self.start_or_try_again)

    # Another in its place

    @property
    def changing(self) -> bool:
        """Whether one worker is taking another's place, or none serves."""
        return self._successor is not None or self._state is not State.SERVING

    def hand_over(self) -> WorkersLeft:
        """Return what another process needs to take over (`take_over`); there is no worker now."""
        return WorkersLeft(tuple(self.left), self.restarts, self.upgrades, self.doubtful)

    def take_over(self, left: WorkersLeft) -> None:
        """Take over what another process has left; `start` then starts a worker."""
        self.left = list(left.left)
        self.restarts, self.upgrades, self.doubtful = left.restarts, left.upgrades, left.doubtful

    def upgrade(self) -> None:
        """Put a worker of the code that is installed now in the place of the one that runs; returns at once.

        The new one reads its code first, while the old one serves.  If it cannot, the old one stays.

        Raises:
            ConfigError: one is under way already, or no process can be started.
        """
        if self.changing:
            raise ConfigError("the worker is being replaced already")
        self.refusal = None
        try:
            self._successor = Successor(self._loop, self._code, self._stop_worker, self._refuse)
        except OSError as error:
            raise ConfigError(f"no worker can be started: {error.strerror}") from error

    def replace(self) -> None:
        """Put another worker of the same code in the place of the one that runs: there is more to be told ahead."""
        self._outdated = True
        if not self.changing:
            self._stop_worker()

    def retire(self, then: Callable[[], None]) -> None:
        """End the worker as for a successor, and call back when it has, instead of starting one.

        What it leaves is in `left`.  `start` starts the next.
        """
        self._dismiss_successor()
        if self._restart_timer is not None:
            self._restart_timer.cancel()
        if self.worker is None:
            self._state = State.RETIRED
            then()
            return
        self._retired = then
        self._stop_worker()

    def _stop_worker(self) -> None:
        if self.worker is None:
            return
        self._state = State.STOPPING
        if self._stop_timer is not None:
            self._stop_timer.cancel()
        self.send(Stop())
        self._stop_timer = self._loop.call_later(STOP_TIMEOUT, self._kill_worker)

    def _kill_worker(self) -> None:
        if self.worker is not None:
            self.worker.kill()

    def _refuse(self, why: str) -> None:
        self.refusal = f"the new worker was not taken: {why}"
        log.error("%s", self.refusal)
        self._dismiss_successor()

    def _dismiss_successor(self) -> None:
        successor, self._successor = self._successor, None
        if successor is not None:
            successor.dismiss()

    # What it is told

    def send(self, message: FromKeeper, fds: Sequence[int] = ()) -> None:
        """Send to the worker.  One that has ended or hangs is replaced, and its successor told everything anew."""
        if self.worker is None:
            return
        try:
            self.worker.send(message, fds)
        except BlockingIOError:
            self._end_hung_worker()
        except OSError:
            return  # its end is on its way to us
        self.hang_watch.ping()

    def _end_hung_worker(self) -> None:
        if self.worker is not None:
            self._end(self.worker, f"has not read its channel for {SEND_TIMEOUT} s")

    def _end(self, worker: WorkerProcess, fault: str | None = None) -> None:
        """End a worker that is of no use any more; its exit is logged with the fault."""
        worker.fault = worker.fault or fault
        if worker is self.worker:
            self._loop.unwatch(worker.channel.fileno())
            worker.kill()

    def next_request(self) -> int:
        """Return the number of the next request, for `ask`."""
        self._requests += 1
        return self._requests

    def ask(self, request: Request, fds: Sequence[int] = ()) -> Answer:
        """Send a request and wait for its answer; what else the worker says meanwhile is handled.

        Raises:
            ConfigError: it has ended, or does not answer.
        """
        worker = self.worker
        poll = select.poll()
        if worker is not None:
            poll.register(worker.channel, select.POLLIN)
        self._answer = None
        self.send(request, fds)
        deadline = time.monotonic() + SEND_TIMEOUT
        while worker is not None and worker is self.worker:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not poll.poll(remaining * 1000):
                raise ConfigError(f"the worker has not answered for {SEND_TIMEOUT} s")
            self._receive(worker)
            if self._answer is not None and self._answer.request == request.request:
                return self._answer
            if worker.silent:
                break
        raise ConfigError("the worker has just ended; another one will take over")

    # What it says

    def receive(self) -> None:
        """Handle what the worker has said by now: it tells of a change before what follows from it."""
        self._worker_spoke(EPOLLIN)

    def _worker_spoke(self, _: int) -> None:
        for _each in range(MESSAGES_AT_ONCE):
            if self.worker is None or not self._receive(self.worker):
                return

    def _receive(self, worker: WorkerProcess) -> bool:
        """Handle the next message; False if there is none, or will be none."""
        if worker.silent:
            return False
        fds: list[int] = []
        try:
            received = worker.receive()
            if received is None:
                return False
            message, fds = received
            self._act_on(worker, message, fds)
        except EOFError:
            worker.silent = True
            self._end(worker)
            return False
        except StateError as error:
            worker.silent = True
            self._end(worker, f"said what cannot be ({error})")
            return False
        except Exception:
            log.exception("internal error over what worker %d said", worker.pid)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _act_on(self, worker: WorkerProcess, message: FromWorker, fds: list[int]) -> None:
        match message:
            case Pong(number):
                self.hang_watch.pong(number)
            case Started(doubtful):
                self._serves(worker, doubtful)
            case Backlog():
                self._take_backlog(message)
            case Confined(lacking):
                self._tell_sandbox(lacking)
            case Answer():
                self._answer = message
            case Ready():
                pass  # A successor was ready before it got its turn.
            case _:
                self._handle(message, fds)

    def _serves(self, worker: WorkerProcess, doubtful: int) -> None:
        """What its predecessors left is done."""
        if worker.has_started:
            raise StateError("Started a second time")
        worker.has_started = True
        if self._state is State.STARTING:
            self._state = State.SERVING
        self._blame.serves()
        self.left.clear()
        self.doubtful = doubtful
        self._loop.call_later(READ_AHEAD_DELAY, self._read_ahead)
        if self._outdated:
            self._stop_worker()

    def _take_backlog(self, message: Backlog) -> None:
        self._backlog += len(message.data)
        if self._state is not State.STOPPING or self._backlog > MAX_BACKLOG:
            raise StateError(f"a backlog of {self._backlog} bytes, of a worker that is {self._state.name}")
        self.left.append(message)

    def _read_ahead(self) -> None:
        try:
            for read in self.read_ahead:
                read()
            log.debug("the code that this process may need later has been read")
        except Exception as error:
            # Another version is just being installed; the worker that runs has read what it needs.
            log.warning("a part of this program cannot be read: %r", error)

    def _tell_sandbox(self, lacking: Sequence[str]) -> None:
        if not self._sandbox_told:
            self._sandbox_told = True
            for what in lacking:
                log.warning("sandbox: this system lacks %s; the worker runs without", what)
