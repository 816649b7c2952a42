"""The event loop of keeper and worker: epoll, timers with microsecond resolution, and turns.

asyncio is not used here for two measured reasons: importing it costs 48 ms of a 150 ms start-up, and its per-event
cost (a Handle, a context and a deque entry) is paid on every doorbell.  Library users who want asyncio get it on
their own side of a port (virtserial.chardev.handler).
"""

from __future__ import annotations

import contextlib
import heapq
import select
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

EPOLLIN = select.EPOLLIN
EPOLLOUT = select.EPOLLOUT
EPOLLET = select.EPOLLET
EPOLLRDHUP = select.EPOLLRDHUP
EPOLLHUP = select.EPOLLHUP
EPOLLERR = select.EPOLLERR


EVENTS_AT_ONCE = 64
"""Descriptors one look tells of: poll() makes room for as many, and for 1,023 if it is not told."""
MILLISECOND = 0.001


def sharpen_timers() -> None:
    """Let this thread's waits end within a microsecond of their time, where the kernel adds 50 by default."""
    with contextlib.suppress(OSError), open("/proc/self/timerslack_ns", "w") as slack:
        slack.write("1000")


class Timer:
    """A call that is due at a time; `cancel` forgets it.

    One that is set for less than a millisecond is exact.  Another may be that late: to be exact costs a system call
    each time the loop waits for the last part of a millisecond.
    """

    __slots__ = ("callback", "due", "exact")

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.exact = due - time.monotonic() < MILLISECOND
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due


class EventLoop:
    """Single-threaded: watches descriptors, runs timers, gives each task a turn between looks at the descriptors."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._turns: list[Callable[[], None]] = []
        self._running = False

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events)` when `fd` has one of `events` (EPOLL* bits; add EPOLLET for edges).

        Raises:
            PermissionError: `fd` is a regular file: always ready, so epoll refuses it.
        """
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def rewatch(self, fd: int, events: int) -> None:
        """Change the events of a watched descriptor; with EPOLLET a pending condition is reported again."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stop watching; call it before the descriptor is closed.  A descriptor that is not watched is ignored."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def now(self) -> float:
        """The loop's clock: time.monotonic(), in seconds."""
        return time.monotonic()

    def call_at(self, due: float, callback: Callable[[], None]) -> Timer:
        """Call back once when time.monotonic() has reached `due` (seconds)."""
        timer = Timer(due, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call back once after `delay` seconds."""
        return self.call_at(time.monotonic() + delay, callback)

    def add_turn(self, callback: Callable[[], None]) -> None:
        """Call back once, soon: after the descriptors that are ready now have been looked at.

        A task with more work than one turn's budget adds itself again, so tasks take turns.
        """
        self._turns.append(callback)

    def stop(self) -> None:
        """Let `run` return when the current callback has."""
        self._running = False

    def close(self) -> None:
        """Release the epoll descriptor; the loop must not be used any more."""
        self._epoll.close()
        self._callbacks.clear()
        self._timers.clear()
        self._turns.clear()

    def run(self) -> None:
        """Serve until `stop`."""
        self._running = True
        while self._running:
            self.run_once()

    def run_once(self, timeout: float | None = None) -> None:
        """Look at the descriptors once (waiting at most `timeout` seconds, None: until something happens), then
        run what is due."""
        wait = self._time_to_wait(timeout)
        if 0 < wait < MILLISECOND:
            # epoll_wait counts whole milliseconds; an epoll descriptor is itself one that select can wait for.
            select.select([self._epoll], [], [], wait)
            wait = 0
        callbacks = self._callbacks
        for fd, events in self._epoll.poll(wait, EVENTS_AT_ONCE):
            callback = callbacks.get(fd)
            if callback is not None:
                callback(events)
        if self._timers:
            self._run_timers()
        if self._turns:
            turns, self._turns = self._turns, []
            for turn in turns:
                turn()

    def _time_to_wait(self, timeout: float | None) -> float:
        if self._turns:
            return 0
        timers = self._timers
        while timers and timers[0].callback is None:
            heapq.heappop(timers)
        if not timers:
            return -1 if timeout is None else timeout
        wait = max(0.0, timers[0].due - time.monotonic())
        if 0 < wait < MILLISECOND and len(timers) == 1 and not timers[0].exact:
            wait = MILLISECOND
        return wait if timeout is None else min(wait, timeout)

    def _run_timers(self) -> None:
        now = time.monotonic()
        timers = self._timers
        while timers and (timers[0].callback is None or timers[0].due <= now):
            callback = heapq.heappop(timers).callback
            if callback is not None:
                callback()
