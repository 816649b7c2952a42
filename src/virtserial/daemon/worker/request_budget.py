"""How much of the loop one VMM's requests may take while other devices have work.

A doorbell leads to work that has budgets of its own; only crowds of doorbells count here.  Everything else that a VMM
asks for, a register above all, is answered at once, and a driver that resets its device again and again asks without
end.  So each connection has a token bucket of time, and one that has emptied it pauses: then the other devices have the
loop and, because that VMM waits, the processor too.  Nobody pauses while nobody else has work.
"""

from __future__ import annotations

from typing import Final

SHARE: Final = 0.3
"""Of the time that passes, what a VMM's requests may take: 6,000 reads of a guest's interrupt status each second."""
BURST: Final = 0.1
"""Seconds that they may take at once: a driver sets up 60 queues in a third of that."""
PAUSE: Final = 0.005
"""Seconds that the VMM then waits at least: one look at it for each would cost more than it saves..."""
LONGEST_PAUSE: Final = 0.02
"""...and at most, however much it has taken."""
TURNS_ALONE: Final = 32
"""Turns in a row after which a device has the loop for itself, and may take longer ones."""


class LoopUse:
    """Which device had work in the loop last, for all devices of a worker.

    Attributes:
        latest: it.
        changes: how often it was another one than before.
        turns: how many it has had in a row.
    """

    __slots__ = ("changes", "latest", "turns")

    def __init__(self) -> None:
        self.latest: object = None
        self.changes = self.turns = 0

    def changed(self, device: object) -> None:
        """Another device than the latest has work."""
        self.latest = device
        self.changes += 1
        self.turns = 0

    def turn_of(self, device: object) -> None:
        """A device has a turn."""
        if self.latest is device:
            self.turns += 1
        else:
            self.changed(device)

    @property
    def is_shared(self) -> bool:
        """Whether more than one device has had work lately: long turns would keep somebody waiting."""
        return self.turns < TURNS_ALONE


class RequestBudget:
    """One connection's bucket.

    Args:
        use: who else has work.
        now: seconds.
    """

    __slots__ = ("_allowed", "_changes", "_since", "_use")

    def __init__(self, use: LoopUse, now: float) -> None:
        self._use = use
        self._changes = use.changes
        self._allowed = BURST
        self._since = now

    def spend(self, started: float, now: float, weight: int = 1) -> float:
        """Requests were answered from `started` to `now`; return how many seconds the next ones have to wait.

        Args:
            weight: how many times that time counts.
        """
        earned = (now - self._since) * SHARE
        self._since = now
        self._allowed = min(BURST, self._allowed + earned) - weight * (now - started)
        if self._allowed > 0:
            return 0
        debt, self._allowed = -self._allowed, 0
        # From this device to another and back are two changes.
        others, self._changes = self._use.changes - self._changes >= 2, self._use.changes
        return min(max(PAUSE, debt / SHARE), LONGEST_PAUSE) if others else 0
