"""Whose CPU time a measurement took: the device's processes, QEMU's threads beside the vCPUs, the vCPUs."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class CpuTime:
    """Seconds of CPU time.

    Attributes:
        processes: the device's own processes (none for QEMU's own device).
        vmm: QEMU's threads beside the vCPUs: main loop, its vfio-user client, and so on.
        vcpus: QEMU's vCPU threads: the guest, and whatever QEMU does within a guest's access.
    """

    processes: float
    vmm: float
    vcpus: float

    def __sub__(self, earlier: CpuTime) -> CpuTime:
        return CpuTime(self.processes - earlier.processes, self.vmm - earlier.vmm, self.vcpus - earlier.vcpus)

    @property
    def device(self) -> float:
        """All that serves the device: its processes and QEMU's threads but the vCPUs."""
        return self.processes + self.vmm


class CpuMeter:
    """Reads the clocks of one QEMU and of the processes of one device."""

    def __init__(self, qemu: int, vcpus: Iterable[int], processes: Iterable[int]) -> None:
        """Takes QEMU's pid, the thread ids of its vCPUs, and pids whose descendants count with them."""
        self._qemu, self._vcpus, self._processes = qemu, frozenset(vcpus), tuple(processes)

    def read(self) -> CpuTime:
        """CPU time so far; only differences of two readings mean something."""
        threads = thread_seconds(self._qemu)
        vcpus = sum(seconds for thread, seconds in threads.items() if thread in self._vcpus)
        return CpuTime(
            processes=family_seconds(self._processes),
            vmm=sum(threads.values()) - vcpus,
            vcpus=vcpus,
        )


def family_seconds(processes: Iterable[int]) -> float:
    """CPU time of processes with all their living descendants."""
    family = {pid for process in processes for pid in (process, *descendants(process))}
    return sum(sum(thread_seconds(pid).values()) for pid in family)


def machine_seconds() -> tuple[float, float]:
    """CPU time of everything on this machine, and the time its hypervisor gave to others while it wanted to run."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, stolen = (
        int(field) / os.sysconf("SC_CLK_TCK") for field in fields[:8]
    )
    return user + nice + system + irq + softirq, stolen


def thread_seconds(pid: int) -> dict[int, float]:
    """CPU time of each thread of a process, from schedstat (nanoseconds), where stat counts only ticks of 10 ms."""
    seconds = {}
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                seconds[int(task.name)] = int((task / "schedstat").read_text().split()[0]) * 1e-9
    return seconds


def descendants(pid: int) -> list[int]:
    """The living children of a process, and theirs."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found
