"""Keeps one worker running: starts it, notices that it has died or hangs, puts another in its place, now or on request.

A worker that dies leaves notes of what it was killed over; one that stops on request leaves what it had not yet
handed on.  Its successor gets both.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from typing import TYPE_CHECKING, cast

from virtserial.daemon.keeper.successor import START_TIMEOUT, Successor
from virtserial.daemon.keeper.worker_process import SEND_TIMEOUT, WorkerProcess
from virtserial.errors import ConfigError, StateError
from virtserial.host_end.preparation import import_host_ends
from virtserial.loop import EPOLLIN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from virtserial.channel.channel import Channel, Message
    from virtserial.loop import EventLoop, Timer

log = logging.getLogger("virtserial.keeper")

RESTART_DELAYS = (0.0, 0.05, 0.2, 0.5, 1.0)
"""Seconds before a worker that died young is started again: the n-th time in a row.  QEMU waits 5 s for an answer."""
YOUNG = 2.0
READ_AHEAD_DELAY = 0.2
STOP_TIMEOUT = 3.0
"""Seconds for a worker to stop for its successor; then it is killed, which loses nothing either."""


class Supervisor:
    """
    Args:
        loop: the keeper's.
        parent: what a forked worker inherits.
        configure: tells a new worker everything, by `send`, up to "go".
        handle: takes what a worker says; the descriptors that it leaves in the list are closed.

    Attributes:
        worker: the process, None while there is none.
        restarts: workers that died and were replaced.
        upgrades: workers that were replaced on request.
        refusal: why the last request for new code came to nothing, or None.
        doubtful: bytes that were moved twice, or not at all, because a worker was killed over them.
        inheritance: messages for the next worker, which its predecessors left.
    """

    def __init__(
        self,
        loop: EventLoop,
        parent: object,
        configure: Callable[[], None],
        handle: Callable[[Message, list[int]], None],
    ) -> None:
        self.worker: WorkerProcess | None = None
        self.restarts = 0
        self.upgrades = 0
        self.refusal: str | None = None
        self.doubtful = 0
        self.inheritance: list[Message] = []
        self._loop = loop
        self._parent = parent
        self._configure = configure
        self._handle = handle
        self._successor: Successor | None = None
        self._stopping = False
        self._going = False
        self._outdated = False
        self._started = 0.0
        self._young_deaths = 0
        self._pings = self._pongs = 0
        self._restart_timer: Timer | None = None
        self._hang_timer: Timer | None = None
        self._unread = 0
        self._change_timer: Timer | None = None
        self._retired: Callable[[], None] | None = None
        self._requests = 0
        self._answer: Message | None = None
        self._closing = False
        self._sandbox_told = False

    # Life

    def start(self) -> None:
        """Start a worker, or let the one that waits for its turn begin.

        Raises:
            OSError: no process can be started.
        """
        self._cancel(self._change_timer)
        self._cancel(self._hang_timer)
        self._hang_timer = None
        self._stopping = self._going = self._outdated = False
        successor, self._successor = self._successor, None
        worker = self.worker = successor.take() if successor is not None else WorkerProcess.fork(self._parent)
        self._started = time.monotonic()
        self._loop.watch(worker.channel.fileno(), EPOLLIN, self._worker_spoke)
        self._loop.watch(worker.pidfd, EPOLLIN, self._worker_exited)
        self._pings = self._pongs = 0
        self._ping(START_TIMEOUT)
        self._configure()

    def close(self) -> None:
        """End the worker for good: a word first, then by force."""
        self._closing = True
        for timer in (self._restart_timer, self._change_timer, self._hang_timer):
            self._cancel(timer)
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
        worker.bury()

    def _unwatch(self, worker: WorkerProcess) -> None:
        self._loop.unwatch(worker.channel.fileno())
        self._loop.unwatch(worker.pidfd)

    @staticmethod
    def _cancel(timer: Timer | None) -> None:
        if timer is not None:
            timer.cancel()

    def _worker_exited(self, _: int) -> None:
        worker, self.worker = self.worker, None
        assert worker is not None
        self._unwatch(worker)
        self._drain(worker.channel)
        status, notes = worker.bury()
        if self._closing:
            return
        self.inheritance += [{"type": "interrupted", **note._asdict()} for note in notes]
        code = os.waitstatus_to_exitcode(status)
        if self._retired is not None:
            retired, self._retired = self._retired, None
            self._cancel(self._change_timer)
            self.upgrades += not status
            self.restarts += bool(status)
            retired()
            return
        if self._stopping and code == 0:
            self.upgrades += 1
            log.info("worker %d has stopped; a new one takes over", worker.pid)
            self.start_or_try_again()
            return
        self.restarts += 1
        young = time.monotonic() - self._started < YOUNG
        self._young_deaths = self._young_deaths + 1 if young else 0
        delay = RESTART_DELAYS[min(self._young_deaths, len(RESTART_DELAYS) - 1)]
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        log.error("worker %d %s; a new one takes over", worker.pid, cause)
        if self._successor is not None and not self._successor.is_ready:
            self._refuse("the old one died before it was ready")
        self._restart_timer = self._loop.call_later(delay, self.start_or_try_again)

    def start_or_try_again(self) -> None:
        """Start a worker, as soon as one can be started."""
        try:
            self.start()
        except OSError as error:
            log.error("no worker can be started: %s", error.strerror)
            self._restart_timer = self._loop.call_later(RESTART_DELAYS[-1], self.start_or_try_again)

    # Another in its place

    @property
    def changing(self) -> bool:
        """Whether an upgrade is under way."""
        return self._successor is not None or self._stopping or not self._going

    def hand_over(self) -> dict[str, object]:
        """Return what another process has to know to go on (`resume`); there is no worker now."""
        return {
            "inheritance": self.inheritance,
            "restarts": self.restarts,
            "upgrades": self.upgrades,
            "doubtful": self.doubtful,
        }

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Go on where another process has left off; `start` then starts a worker."""
        self.inheritance = list(saved["inheritance"])
        self.restarts, self.upgrades, self.doubtful = saved["restarts"], saved["upgrades"], saved["doubtful"]

    def upgrade(self) -> None:
        """Put a worker of the code that is installed now in the place of the one that runs; returns at once.

        The new one reads its code first, while the old one serves.  If it cannot, the old one goes on.

        Raises:
            ConfigError: one is under way already, or no process can be started.
        """
        if self.changing:
            raise ConfigError("the worker is being replaced already")
        self.refusal = None
        try:
            self._successor = Successor(self._loop, self._successor_ready, self._refuse)
        except OSError as error:
            raise ConfigError(f"no worker can be started: {error.strerror}") from error

    def replace(self) -> None:
        """Put another worker of the same code in the place of the one that runs: there is more to be told ahead."""
        self._outdated = True
        if self.worker is not None and not self.changing:
            self._stop_worker()

    def retire(self, then: Callable[[], None]) -> None:
        """End the worker as for a successor, and call back when it has, instead of starting one.

        What it leaves is in `inheritance`.  `start` goes on.
        """
        self._dismiss_successor()
        self._cancel(self._restart_timer)
        if self.worker is None:
            then()
            return
        self._retired = then
        self._stop_worker()

    def _successor_ready(self) -> None:
        if self.worker is not None:
            self._stop_worker()

    def _stop_worker(self) -> None:
        self._stopping = True
        self._cancel(self._change_timer)
        self.send({"type": "stop"})
        self._change_timer = self._loop.call_later(STOP_TIMEOUT, self._kill_worker)

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

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send to the worker.  One that is gone or hung is replaced, and its successor told everything anew."""
        if self.worker is None:
            return
        try:
            self.worker.channel.send(message, fds)
        except BlockingIOError:
            self._kill_hung_worker()
        except OSError:
            return  # its end is on its way to us
        if self._hang_timer is None:
            self._ping(SEND_TIMEOUT)

    def ping(self) -> None:
        """Find out whether the worker hangs."""
        if self._hang_timer is None:
            self._ping(SEND_TIMEOUT)

    def _ping(self, timeout: float) -> None:
        self._pings += 1
        self._hang_timer = self._loop.call_later(timeout, self._look_whether_it_hangs)
        self.send({"type": "ping", "number": self._pings})
        self._unread = self.worker.channel.unread() if self.worker is not None else 0

    def _look_whether_it_hangs(self) -> None:
        self._hang_timer = None
        if self.worker is None or self._pongs == self._pings:
            return
        before, self._unread = self._unread, self.worker.channel.unread()
        if self._unread < before:
            # It reads: there is much to read where there are many devices.
            self._hang_timer = self._loop.call_later(SEND_TIMEOUT, self._look_whether_it_hangs)
        else:
            self._kill_hung_worker()

    def _kill_hung_worker(self) -> None:
        assert self.worker is not None
        log.error("worker %d has not read its channel for %d s: it is replaced", self.worker.pid, SEND_TIMEOUT)
        self.worker.kill()

    def ask(self, message: Message, fds: Sequence[int] = ()) -> Message:
        """Send a request and wait for its answer; what else the worker says meanwhile is handled.

        Raises:
            ConfigError: it has ended, or does not answer.
        """
        worker = self.worker
        poll = select.poll()
        if worker is not None:
            poll.register(worker.channel, select.POLLIN)
        self._requests += 1
        self._answer = None
        self.send({**message, "request": self._requests}, fds)
        deadline = time.monotonic() + SEND_TIMEOUT
        while worker is not None and worker is self.worker:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not poll.poll(remaining * 1000):
                raise ConfigError(f"the worker has not answered for {SEND_TIMEOUT} s")
            if not self._drain(worker.channel):
                break
            if self._answer is not None and self._answer["request"] == self._requests:
                return self._answer
        raise ConfigError("the worker has just ended; another one will take over")

    # What it says

    def hear(self) -> None:
        """Handle what the worker has said by now."""
        self._worker_spoke(EPOLLIN)

    def _worker_spoke(self, _: int) -> None:
        if self.worker is not None and not self._drain(self.worker.channel):
            # End of file without an exit: it has closed its end, so it is useless.
            self._loop.unwatch(self.worker.channel.fileno())
            self.worker.kill()

    def _drain(self, channel: Channel) -> bool:
        """Handle everything that has arrived; False at end of file."""
        while True:
            try:
                received = channel.receive()
            except EOFError:
                return False
            except StateError as error:
                log.error("worker: %s", error)
                continue
            if received is None:
                return True
            message, fds = received
            try:
                self._hear(message, fds)
            except (KeyError, IndexError, TypeError, ValueError, StateError) as error:
                log.error("worker: message %s makes no sense: %r", message.get("type"), error)
            finally:
                for fd in fds:
                    os.close(fd)

    def _hear(self, message: Message, fds: list[int]) -> None:
        kind = message["type"]
        if kind == "pong":
            self._pongs = cast(int, message["number"])
            if self._pongs == self._pings:
                self._cancel(self._hang_timer)
                self._hang_timer = None
        elif kind == "going":
            # What its predecessors left is done.
            self._going = True
            self.inheritance.clear()
            self.doubtful = cast(int, message["doubtful"])
            self._loop.call_later(READ_AHEAD_DELAY, self._read_ahead)
            if self._outdated:
                self._stop_worker()
        elif kind == "backlog":
            self.inheritance.append(message)
        elif kind == "confined":
            self._tell_sandbox(cast("list[str]", message["lacking"]))
        elif kind == "answer":
            self._answer = message
        elif kind != "ready":
            self._handle(message, fds)

    @staticmethod
    def _read_ahead() -> None:
        """Import here what a worker imports, so that the next one, a copy of this process, is there at once."""
        try:
            import virtserial.daemon.worker.sandbox
            import virtserial.daemon.worker.worker  # noqa: F401

            import_host_ends()
        except Exception as error:
            # Another version is just being installed; the worker that runs has read what it needs.
            log.warning("a part of this program cannot be read: %r", error)

    def _tell_sandbox(self, lacking: list[str]) -> None:
        if not self._sandbox_told:
            self._sandbox_told = True
            for what in lacking:
                log.warning("sandbox: this system lacks %s; the worker runs without", what)
