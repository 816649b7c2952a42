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
"""Seconds that the VMM then waits: one look at it for each would cost more than it saves."""


class LoopUse:
    """Who had work in the loop last, for all connections of a worker.

    Attributes:
        latest: it.
        changes: how often it was another one than before.
    """

    __slots__ = ("changes", "latest")

    def __init__(self) -> None:
        self.latest: object = None
        self.changes = 0


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

    def spend(self, started: float, now: float) -> float:
        """Requests were answered from `started` to `now`; return how many seconds the next ones have to wait."""
        earned = (now - self._since) * SHARE
        self._since = now
        self._allowed = min(BURST, self._allowed + earned) - (now - started)
        if self._allowed > 0:
            return 0
        self._allowed = 0
        # From this connection to another and back are two changes.
        others, self._changes = self._use.changes - self._changes >= 2, self._use.changes
        return PAUSE if others else 0
