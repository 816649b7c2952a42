"""What the kernel says of a keeper and its worker: memory and processor time."""

from __future__ import annotations

import os
import resource
from typing import NamedTuple

PAGE = resource.getpagesize()
TICKS = os.sysconf("SC_CLK_TCK")


class ProcessFigures(NamedTuple):
    """
    Attributes:
        role: "keeper" or "worker".
        resident: bytes of memory, those that it shares with the other one included.
        cpu: seconds of processor time.
    """

    role: str
    resident: int
    cpu: float


def process_figures(keeper: int, worker: int) -> list[ProcessFigures]:
    """Return what can be known of both.

    Args:
        keeper: a process that the kernel has confirmed (client/registry.py).
        worker: the keeper's word: it counts only if it is the keeper's child.  0 for none.
    """
    figures = []
    for role, pid, parent in (("keeper", keeper, None), ("worker", worker, keeper)):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # Behind the program's name, which may have any bytes in it: proc(5), from field 3 on.
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue  # It has just ended, or /proc is mounted with hidepid.
        if parent is None or int(fields[1]) == parent:
            cpu = (int(fields[11]) + int(fields[12])) / TICKS
            figures.append(ProcessFigures(role, int(fields[21]) * PAGE, cpu))
    return figures
