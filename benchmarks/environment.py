"""What a table must say about where its figures come from."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpu_time import family_seconds, machine_seconds

if TYPE_CHECKING:
    from arena import Arena

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Conditions:
    """How quiet the machine was.

    Attributes:
        load_before: its one-minute load average before the first round.
        others: cores that were busy with anything but the benchmark, on average over all rounds.
        stolen: cores whose time the hypervisor gave to others, the same way.
    """

    load_before: float
    others: float
    stolen: float

    @property
    def text(self) -> str:
        """For the caption."""
        return (
            f"load {self.load_before:.1f} before, then {self.others:.1f} cores busy with other work"
            f" and {self.stolen:.1f} stolen"
        )


@dataclass(frozen=True)
class Environment:
    """Machine, programs and conditions of a benchmark's run.

    Attributes:
        accelerator: TCG or KVM.
        conditions: what else went on.
        python: version, program and build of the Python that runs ours.
        revision: the tree's commit, "+" for changes that are not committed.
        arena: "quiet", or "busy" where a fixed load took one core.
    """

    accelerator: str
    qemu: str
    guest_kernel: str
    vcpus: int
    host_kernel: str
    processor: str
    cores: int
    python: str
    revision: str
    date: str
    conditions: Conditions
    arena: str = "quiet"

    @property
    def caption(self) -> str:
        """One line for above a table."""
        vcpus = "1 vCPU" if self.vcpus == 1 else f"{self.vcpus} vCPUs"
        return (
            f"{self.accelerator}; QEMU {self.qemu}; guest Linux {self.guest_kernel}, {vcpus};"
            f" host Linux {self.host_kernel}, {self.processor}, {self.cores} cores,"
            f" {'one of them taken by a fixed load, ' if self.arena == 'busy' else ''}{self.conditions.text};"
            f" Python {self.python}; {self.date}, revision {self.revision}"
        )

    def as_json(self) -> dict[str, Any]:
        """For the results file."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Environment:
        """The inverse of as_json."""
        return cls(**{**fields, "conditions": Conditions(**fields["conditions"])})


class Watch:
    """Watches from its making on what else goes on while this process and its descendants measure."""

    def __init__(self) -> None:
        self._load_before = os.getloadavg()[0]
        self._start = self._clocks()

    @staticmethod
    def _clocks() -> tuple[float, float, float, float]:
        return (time.monotonic(), family_seconds([os.getpid()]), *machine_seconds())

    def conditions(self) -> Conditions:
        """What went on until now; the children that were measured must still live."""
        passed, ours, all_work, stolen = (
            now - then for now, then in zip(self._clocks(), self._start, strict=True)
        )
        return Conditions(self._load_before, max(0.0, (all_work - ours) / passed), stolen / passed)


def look(arena: Arena, conditions: Conditions, busy: bool) -> Environment:
    """The environment of the benchmark that has just run in an arena, with a fixed load beside it or without."""
    version = arena.guest.qmp("query-version")["qemu"]
    return Environment(
        accelerator=arena.accelerator,
        qemu="{major}.{minor}.{micro}".format(**version),
        guest_kernel=arena.guest.check("uname -r"),
        vcpus=len(arena.guest.qmp("query-cpus-fast")),
        host_kernel=platform.release().partition("-")[0],
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        python=_build(),
        revision=_revision(),
        date=datetime.now(UTC).date().isoformat(),
        conditions=conditions,
        arena="busy" if busy else "quiet",
    )


def _build() -> str:
    return f"{platform.python_version()} ({sys.executable}, built by {platform.python_compiler()})"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return " ".join(value.split())
    return platform.machine()


def _revision() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True
        ).stdout

    try:
        changed = git("status", "--porcelain", "src").strip()
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
