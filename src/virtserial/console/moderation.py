"""When a busy transmitq interrupts its driver, and when the device asks the driver for a doorbell again.

A driver needs the interrupt of a transmitq to free buffers, but waits for it only when its ring is full; and a doorbell
costs the guest an exit from the virtual machine.  So in a stream of writes interrupts are held back for a moment, and
instead of asking for a doorbell the device looks again a moment later, when there is more than one chain to move.
Nobody waits longer than these moments, and a single message is never held up: what comes first after a pause is served,
and signalled, at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.console.device import Scheduler
    from virtserial.loop import Timer
    from virtserial.virtio.virtqueue import Virtqueue

SIGNAL_QUIET: Final = 0.0003
"""Seconds without new chains after which a held interrupt is sent: then the driver may be waiting for it."""
SIGNAL_LIMIT: Final = 0.003
"""Seconds after which it is sent in any case."""
LOOK_AGAIN: Final = 0.0002
"""Seconds until the device looks at a ring again for whose doorbell it has not asked."""


class Moderation:
    """The held interrupts and the looks to come of one device: one timer for all of them.

    Args:
        scheduler: clock and timers.
        signal: interrupts for a queue if its driver wants it.
    """

    def __init__(self, scheduler: Scheduler, signal: Callable[[Virtqueue], None]) -> None:
        self._scheduler = scheduler
        self._signal = signal
        self._held: dict[Virtqueue, tuple[float, float]] = {}
        self._looks: dict[Callable[[], None], float] = {}
        self._timer: Timer | None = None

    def clear(self) -> None:
        """Forget everything: the device was reset."""
        self._held.clear()
        self._looks.clear()

    def chains_returned(self, queue: Virtqueue) -> None:
        """Interrupt for returned chains now, if there was none for a while or most of the ring waits; else soon."""
        held = self._held.get(queue)
        if queue.unsignalled >= queue.size * 3 >> 2:
            self._held.pop(queue, None)
            self._signal_now(queue)
            return
        now = self._scheduler.now()
        if held:
            # More came without an interrupt: nobody waits for one yet.
            self._held[queue] = (min(now + SIGNAL_QUIET, held[1]), held[1])
        elif now >= queue.signal_time + SIGNAL_QUIET:
            self._signal_now(queue)
        else:
            self._held[queue] = (now + SIGNAL_QUIET, now + SIGNAL_LIMIT)
            self._wake_at(now + SIGNAL_QUIET)

    def _signal_now(self, queue: Virtqueue) -> None:
        queue.signal_time = self._scheduler.now()
        self._signal(queue)

    def look_again(self, look: Callable[[], None]) -> None:
        """Call `look` a moment later."""
        if look not in self._looks:
            due = self._looks[look] = self._scheduler.now() + LOOK_AGAIN
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
        for queue in [queue for queue, (due, _) in self._held.items() if due <= now]:
            if self._held.pop(queue, None):  # A signal before it may have failed the device.
                self._signal_now(queue)
        dues = [*self._looks.values(), *(due for due, _ in self._held.values())]
        if dues:
            self._wake_at(min(dues))
