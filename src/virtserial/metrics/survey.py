"""The figures of all VMs at one moment, within a time and within limits, whatever their keepers do."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from virtserial.client.registry import running_vms
from virtserial.client.survey import look
from virtserial.metrics.figures import VmFigures, figures_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.client.registry import Vm

MAX_VMS: Final = 1000
MAX_PORTS: Final = 5000
"""Of all VMs together, unless the operator says another limit."""
GIVE_UP: Final = 4.0
"""Seconds for all keepers together; each has 3."""
FRESH: Final = 1.0
"""Seconds for which a survey is good: many who ask at once cost one."""


class Snapshot(NamedTuple):
    """All figures.

    Attributes:
        vms: no two with the same name and user.
        left_out: how many VMs, controllers and ports are beyond the limits.
        seconds: how long it took to ask.
    """

    vms: list[VmFigures]
    left_out: Counter[str]
    seconds: float


class Survey:
    """Asks all keepers, at most once in FRESH seconds.

    Args:
        max_ports: of all VMs together.
        choose: whom to ask.
    """

    def __init__(self, max_ports: int = MAX_PORTS, choose: Callable[[], Sequence[Vm]] = running_vms) -> None:
        self._max_ports = max_ports
        self._choose = choose
        self._lock = threading.Lock()
        self._last: Snapshot | None = None
        self._taken = 0.0

    def take(self) -> Snapshot:
        """Return figures that are at most FRESH seconds old."""
        with self._lock:
            if self._last is None or time.monotonic() - self._taken > FRESH:
                self._last = self._ask()
                self._taken = time.monotonic()
            return self._last

    def _ask(self) -> Snapshot:
        begun = time.monotonic()
        # Other users' VMs come last: whatever they fill up, the caller's own are there.
        vms = sorted(self._choose(), key=lambda vm: (vm.owner != os.geteuid(), vm))
        seen = look(vms[:MAX_VMS], GIVE_UP, ping=True)
        left_out = Counter(vms=max(len(vms) - MAX_VMS, 0), ports=0)
        figures: dict[tuple[str, str], VmFigures] = {}
        room = self._max_ports
        for each in map(figures_of, seen):
            name = each.name if (each.name, each.user) not in figures else f"{each.name}#{each.pid}"
            shown, cut = each.ports[:room], each.ports[room:]
            room -= len(shown)
            left_out["ports"] += len(cut) + each.left_out
            figures[name, each.user] = each._replace(name=name, ports=shown)
        return Snapshot(list(figures.values()), left_out, time.monotonic() - begun)
