"""How often somebody may do something: a bucket of permits for each, for a bounded number of somebodies."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_KEYS: Final = 4096
"""Of one Rate; the one that was seen least recently makes room."""


class Rate:
    """
    Args:
        burst: how many at once.
        per_second: how many more come later.
        now: a clock in seconds.
    """

    def __init__(self, burst: float, per_second: float, now: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._per_second = per_second
        self._now = now
        self._buckets: dict[str, tuple[float, float]] = {}

    def allows(self, key: str) -> bool:
        """Whether one more of this key is allowed now; it is counted if so."""
        now = self._now()
        left, at = self._buckets.pop(key, (self._burst, now))
        left = min(left + (now - at) * self._per_second, self._burst)
        is_allowed = left >= 1
        self._buckets[key] = (left - 1 if is_allowed else left), now
        if len(self._buckets) > MAX_KEYS:
            del self._buckets[next(iter(self._buckets))]
        return is_allowed
