"""When a busy transmitq interrupts its driver, and when the device asks the driver for a doorbell again.

A driver needs the interrupt of a transmitq to free buffers, but waits for it only when its ring is full; and a doorbell
costs the guest an exit from the virtual machine.  So in a stream of writes interrupts are held back for a moment, and
instead of asking for a doorbell the device looks again a moment later, when there is more than one chain to move.
Nobody waits longer than these moments, and a single message is never held up: it is served at once, and after a pause
signalled at once.  In a dialogue of single messages an interrupt for each is of no use to a driver that does not wait
for it, and wakes the VMM and the guest once more; so there they are held longer, unless the driver is seen to wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.console.seams import Scheduler, Timer
    from virtserial.virtio.queue import Virtqueue

SIGNAL_QUIET: Final = 0.0003
"""Seconds without new chains after which a held interrupt is sent: then the driver may be waiting for it."""
SIGNAL_LIMIT: Final = 0.003
"""Seconds after which it is sent in any case."""

DIALOGUE_QUIET: Final = 0.004
"""The same as SIGNAL_QUIET for a lone message soon after another: what comes next is an answer to an answer.  An
interrupt for each would cost as much as the message (Linux does not wait for it)."""
DIALOGUE_LIMIT: Final = 0.012
DIALOGUE_PAUSE: Final = 0.005
"""Seconds without an interrupt after which even a lone message is signalled at once."""
WAITED: Final = 0.001
"""A driver that comes with its next message so soon after such a late interrupt may have waited for it..."""
WAITED_TIMES: Final = 3
"""...one that does so several times in a row has, as Windows' does..."""
DISTRUST: Final = 16.0
"""...and is interrupted for each message for so many seconds."""


class Pace:
    """When one queue's driver was interrupted, and what is held back for it.

    Attributes:
        signalled: when it was last interrupted.
        due: when the held interrupt is sent if nothing more comes; 0: none is held.
        limit: when it is sent in any case.
        quiet: how long it waits for more.
        lone: the last chain was alone.
        late: when one was sent that had been held long; 0: the last was not.
        waits: how often in a row the driver seems to have waited for a late one.
        trusted_from: until then none is held long.
    """

    __slots__ = ("due", "late", "limit", "lone", "quiet", "signalled", "trusted_from", "waits")

    def __init__(self) -> None:
        self.signalled = self.due = self.limit = self.quiet = self.late = self.trusted_from = 0.0
        self.waits = 0
        self.lone = False

    def came_after_late(self, now: float) -> None:
        """The driver's next message after a late interrupt."""
        self.waits = self.waits + 1 if now - self.late < WAITED else 0
        self.late = 0.0
        if self.waits >= WAITED_TIMES:
            self.waits = 0
            self.trusted_from = now + DISTRUST


class Moderation:
    """The held interrupts and the looks to come of one device: one timer for all of them.

    Args:
        scheduler: clock and timers.
        signal: interrupts for a queue if its driver wants it.
    """

    def __init__(self, scheduler: Scheduler, signal: Callable[[Virtqueue], None]) -> None:
        self._scheduler = scheduler
        self._signal = signal
        self._paces: dict[Virtqueue, Pace] = {}
        self._looks: dict[Callable[[], None], float] = {}
        self._timer: Timer | None = None

    def clear(self) -> None:
        """Forget everything: the device was reset."""
        self._paces.clear()
        self._looks.clear()

    def chains_returned(self, queue: Virtqueue, lone: bool = False, quiet: float = SIGNAL_QUIET) -> None:
        """Interrupt for returned chains now, if there was none for a while, or most of the ring or the driver waits;
        else soon.

        Args:
            lone: it was a single message with none behind it: the driver may wait, which is learnt.
            quiet: seconds without new chains after which a held interrupt is sent: DIALOGUE_QUIET in a dialogue.
        """
        pace = self._paces.get(queue)
        if pace is None:
            pace = self._paces[queue] = Pace()
        if queue.ring.signal_is_urgent():
            self._signal_now(queue, pace)
            return
        now, dialogue = self._scheduler.now(), quiet == DIALOGUE_QUIET
        pace.lone = lone
        if pace.due:
            # More came without an interrupt: nobody waits for one yet.
            if not dialogue:
                pace.quiet, pace.limit = quiet, min(pace.limit, now + SIGNAL_LIMIT)
            due = now + pace.quiet
            if due > pace.limit:
                due = pace.limit
            pace.due = due
            pace.waits = 0
            if self._timer is None or due < self._timer.due:
                self._wake_at(due)
            return
        if pace.late:
            pace.came_after_late(now)
        if (lone and now < pace.trusted_from) or now - pace.signalled >= (DIALOGUE_PAUSE if dialogue else SIGNAL_QUIET):
            self._signal_now(queue, pace)
            return
        pace.quiet = quiet
        pace.due, pace.limit = now + quiet, now + (DIALOGUE_LIMIT if dialogue else SIGNAL_LIMIT)
        self._wake_at(pace.due)

    def _signal_now(self, queue: Virtqueue, pace: Pace) -> None:
        pace.signalled, pace.due = self._scheduler.now(), 0.0
        self._signal(queue)

    def look_again(self, look: Callable[[], None], delay: float) -> None:
        """Call `look` after `delay` seconds, unless it will be called anyway."""
        if look not in self._looks:
            due = self._looks[look] = self._scheduler.now() + delay
            self._wake_at(due)

    def _wake_at(self, due: float) -> None:
        timer = self._timer
        if timer is None or due < timer.due:
            if timer is not None:
                timer.cancel()
            self._timer = self._scheduler.call_at(due, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = self._scheduler.now()
        for look in [look for look, due in self._looks.items() if due <= now]:
            del self._looks[look]
            look()
        for queue, pace in list(self._paces.items()):
            # A signal before it may have failed the device, which forgets all.
            if 0 < pace.due <= now and self._paces:
                late = pace.lone and pace.due < pace.limit
                self._signal_now(queue, pace)
                pace.late = pace.signalled if late else 0.0
        dues = [*self._looks.values(), *(pace.due for pace in self._paces.values() if pace.due)]
        if dues:
            self._wake_at(min(dues))
