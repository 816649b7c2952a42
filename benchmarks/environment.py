"""What a table must say about where its figures come from."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arena import Arena

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Environment:
    """Machine, programs and conditions of a benchmark's run.

    Attributes:
        accelerator: TCG or KVM.
        load: the machine's one-minute load average before the first round and after the last.
        revision: the tree's commit, "+" for changes that are not committed.
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
    load: tuple[float, float]

    @property
    def caption(self) -> str:
        """One line for above a table."""
        before, after = self.load
        vcpus = "1 vCPU" if self.vcpus == 1 else f"{self.vcpus} vCPUs"
        return (
            f"{self.accelerator}; QEMU {self.qemu}; guest Linux {self.guest_kernel}, {vcpus}; host Linux"
            f" {self.host_kernel}, {self.processor}, {self.cores} cores, load {before:.1f} before and {after:.1f} after;"
            f" Python {self.python}; {self.date}, revision {self.revision}"
        )

    def as_json(self) -> dict[str, Any]:
        """For the results file."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Environment:
        """The inverse of as_json."""
        before, after = fields["load"]
        return cls(**{**fields, "load": (before, after)})


def look(arena: Arena, load_before: float) -> Environment:
    """The environment of the benchmark that has just run in an arena."""
    version = arena.guest.qmp("query-version")["qemu"]
    return Environment(
        accelerator=arena.accelerator,
        qemu="{major}.{minor}.{micro}".format(**version),
        guest_kernel=arena.guest.check("uname -r"),
        vcpus=len(arena.guest.qmp("query-cpus-fast")),
        host_kernel=platform.release(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        revision=_revision(),
        date=datetime.now(UTC).date().isoformat(),
        load=(load_before, os.getloadavg()[0]),
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return " ".join(value.split())
    return platform.machine()


def _revision() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "--porcelain", "src").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
