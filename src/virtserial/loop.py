"""The event loop of keeper and worker: epoll, timers with microsecond resolution, and turns.

Not asyncio, for two measured reasons: its import takes 48 ms of a 150 ms start-up, and every doorbell would pay for a
Handle, a context and a deque entry.  Handler coroutines use asyncio in a process of their own (handler.py).
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

MAX_EVENTS = 64
"""maxevents per epoll_wait; epoll.poll() allocates room for 1,023 events if it is not told."""
MILLISECOND = 0.001
_NOTHING = (-1, 0)
"""In the place of a descriptor's events that are nobody's any more."""


def sharpen_timers() -> None:
    """Make this thread's waits end within 1 us of their time; the kernel's default is 50 us."""
    with contextlib.suppress(OSError), open("/proc/self/timerslack_ns", "w") as slack:
        slack.write("1000")


class Timer:
    """A callback that is due at a time; `cancel` drops it.

    A timer that is set less than a millisecond ahead is exact.  Others may run up to a millisecond late, because each
    exact wait costs one more system call.
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


class _ExactWait:
    """Waits less than a millisecond for an epoll descriptor: ppoll, which the standard library does not have.

    epoll_wait counts whole milliseconds, and select refuses descriptors above 1,023.  Measured per wait beside
    select: 1 us more; a timerfd costs the same, needs a descriptor of its own, and has to be disarmed.
    """

    def __init__(self, fd: int) -> None:
        import ctypes  # 3 ms of start-up, which a keeper without short timers saves

        class PollFd(ctypes.Structure):
            _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))

        class TimeSpec(ctypes.Structure):
            _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))

        self._time = TimeSpec()
        self._pollfd = PollFd(fd, select.POLLIN)
        self._ppoll = ctypes.CDLL(None).ppoll
        self._arguments = (ctypes.byref(self._pollfd), 1, ctypes.byref(self._time), None)

    def wait(self, seconds: float) -> None:
        """Return when the descriptor is ready, after `seconds` (less than 1), or at a signal."""
        self._time.tv_nsec = int(seconds * 1e9)
        self._ppoll(*self._arguments)


class EventLoop:
    """Single-threaded: watches descriptors, runs timers, and gives each task a turn between two looks.

    Attributes:
        input_waits, at_leisure: see console.seams.Look.
        is_shared: see console.seams.Scheduler.  (A worker has several devices, and knows.)
        now: the loop's clock, time.monotonic: seconds.
    """

    input_waits = False
    at_leisure = False
    is_shared = False

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._exact: _ExactWait | None = None
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._ready: list[tuple[int, int]] = []
        self._timers: list[Timer] = []
        self._turns: dict[Callable[[], None], None] = {}
        self._running = False
        self.now: Callable[[], float] = time.monotonic

    @property
    def look(self) -> EventLoop:
        """See console.seams.Scheduler."""
        return self

    def fileno(self) -> int:
        """A descriptor that is readable while a watched one has events; timers and turns do not show there."""
        return self._epoll.fileno()

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events)` when `fd` has one of `events` (EPOLL* bits; add EPOLLET for edges).

        Raises:
            PermissionError: `fd` is a regular file, which epoll refuses because it is always ready.
        """
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def rewatch(self, fd: int, events: int) -> None:
        """Change the events of a watched descriptor; with EPOLLET, epoll reports a pending condition again."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`; call it before you close `fd`.  Does nothing if `fd` is not watched."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            # What was ready there is not for the next descriptor with this number, which may be watched at once.
            ready = self._ready
            for place, (number, _) in enumerate(ready):
                if number == fd:
                    ready[place] = _NOTHING

    def call_at(self, due: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once when time.monotonic() has reached `due` (seconds)."""
        timer = Timer(due, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once after `delay` seconds."""
        return self.call_at(time.monotonic() + delay, callback)

    def add_turn(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, after the next look at the descriptors, however often it is added until then.

        A task with more work than one turn's budget adds itself again, so that tasks take turns.
        """
        self._turns[callback] = None

    def stop(self) -> None:
        """Make `run` return after the current callback."""
        self._running = False

    def close(self) -> None:
        """Close the epoll descriptor; do not use the loop afterwards."""
        self._epoll.close()
        self._callbacks.clear()
        self._timers.clear()
        self._turns.clear()

    def run(self) -> None:
        """Serve until `stop`."""
        self._running = True
        run_once = self.run_once
        while self._running:
            run_once()

    def run_once(self, timeout: float | None = None) -> None:
        """Wait for descriptors at most `timeout` seconds (None: until something happens), call back for those that
        are ready, then run the timers that are due and the turns."""
        wait: float = -1
        if self._turns:
            wait = 0
        elif self._timers or timeout is not None:
            wait = self._time_to_wait(timeout)
        callbacks = self._callbacks
        self._ready = ready = self._epoll.poll(wait, MAX_EVENTS)
        self.at_leisure = not (self._turns or ready[1:] or self.input_waits)
        for fd, events in ready:
            if fd in callbacks:
                callbacks[fd](events)
        self.at_leisure = False
        # A long wait that ended early has left the timers their time; the next look finds out if the callbacks took it.
        if self._timers and (wait < MILLISECOND or not ready):
            self._run_timers()
        if self._turns:
            turns, self._turns = self._turns, {}
            for turn in turns:
                turn()

    def _time_to_wait(self, timeout: float | None) -> float:
        """Seconds to the first timer, at most `timeout`; -1: there is none.  Less than a millisecond is waited here."""
        timers = self._timers
        if timers and timeout is None and timers[0].callback is not None:
            wait = timers[0].due - self.now()
            if wait >= MILLISECOND:
                return wait
        while timers and timers[0].callback is None:
            heapq.heappop(timers)
        if timers:
            wait = timers[0].due - self.now()
            if 0 < wait < MILLISECOND and len(timers) == 1 and not timers[0].exact:
                wait = MILLISECOND
            wait = max(wait if timeout is None else min(wait, timeout), 0)
        else:
            wait = -1 if timeout is None else timeout
        if 0 < wait < MILLISECOND:
            if self._exact is None:
                self._exact = _ExactWait(self._epoll.fileno())
            self._exact.wait(wait)
            return 0
        return wait

    def _run_timers(self) -> None:
        now = time.monotonic()
        timers = self._timers
        while timers and (timers[0].callback is None or timers[0].due <= now):
            callback = heapq.heappop(timers).callback
            if callback is not None:
                callback()
