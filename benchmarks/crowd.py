"""Many ports of a device at once, both ways: how much they move together, and how evenly."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from arena import GUEST_PEER, HostPeer
from contestants import Contestant, attach
from cpu_time import CpuMeter, CpuTime
from peer_program import peer_program
from ratios import Ratio, Summary, paired_ratio, summarize
from virtserial.rig import Guest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PORTS = 30
BLOCK = 32768
GUEST_START_TIMEOUT = 120


@dataclass(frozen=True)
class CrowdRun:
    """All ports of a device at work for a while.

    Attributes:
        round: runs of one round belong together.
        seconds: how long.
        moved: bytes of each port, both ways together, as the host counts them.
        cpu: CPU time it took.
    """

    contestant: str
    round: int
    seconds: float
    moved: tuple[int, ...]
    cpu: CpuTime

    @property
    def ports(self) -> int:
        """How many ports."""
        return len(self.moved)

    @property
    def rate(self) -> float:
        """MB/s of all ports together."""
        return sum(self.moved) / self.seconds / 1e6

    @property
    def evenness(self) -> float:
        """The slowest port's share of the fastest one's."""
        return min(self.moved) / max(self.moved)

    @property
    def cost(self) -> float:
        """Device CPU, seconds per GB."""
        return self.cpu.device * 1e9 / sum(self.moved)

    def as_json(self) -> dict[str, Any]:
        """For the results file."""
        return {**asdict(self), "rate": self.rate, "evenness": self.evenness}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> CrowdRun:
        """The inverse of as_json."""
        return cls(
            fields["contestant"], fields["round"], fields["seconds"], tuple(fields["moved"]), CpuTime(**fields["cpu"])
        )


class Crowd:
    """A VM with a controller of many ports per contestant."""

    def __init__(self, contestants: Sequence[Contestant], *, ports: int = PORTS, smp: int = 1) -> None:
        self._contestants = tuple(contestants)
        self._ports, self._smp = ports, smp
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="virtserial-bench-")))
            attached = [
                stack.enter_context(attach(contestant, f"bus{number}", self._sockets(number), self._folder))
                for number, contestant in enumerate(self._contestants)
            ]
            arguments = [word for each in attached for word in each.arguments]
            files = {GUEST_PEER: peer_program().read_bytes()}
            self._guest = stack.enter_context(Guest(arguments, files=files, smp=self._smp, memory_mib=384))
            vcpus = [vcpu["thread-id"] for vcpu in self._guest.qmp("query-cpus-fast")]
            self._meters = [CpuMeter(self._guest.pid, vcpus, each.processes) for each in attached]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _sockets(self, number: int) -> dict[str, str]:
        return {f"crowd.{number}.{port}": str(self._folder / f"{number}.{port}") for port in range(self._ports)}

    def run(self, number: int, round_number: int, seconds: float) -> CrowdRun:
        """Lets all ports of a contestant work.

        Raises:
            GuestError: a byte was wrong, or an end does not answer.
        """
        meter = self._meters[number]
        with ExitStack() as stack:
            hosts, guests = [], []
            for name, path in self._sockets(number).items():
                host = HostPeer(Path(path))
                stack.callback(host.close)
                hosts.append(host)
                guests.append(self._guest.start(f"exec {GUEST_PEER} /dev/virtio-ports/{name}"))
            for guest in guests:
                guest.expect(b"open\n", GUEST_START_TIMEOUT)
                guest.send(f"shout {BLOCK} 0\n".encode())
                guest.expect(b"ready\n", GUEST_START_TIMEOUT)
            before = meter.read()
            for host in hosts:
                host.tell("duplex", BLOCK, int(seconds * 1000))
            answers = [host.answer() for host in hosts]
            cpu = meter.read() - before
        for guest in guests:
            guest.expect(b"ok", GUEST_START_TIMEOUT)
            guest.signal(9)
            guest.wait(GUEST_START_TIMEOUT)
        moved = tuple(int(received + sent) for _, received, sent in answers)
        longest = max(answer[0] for answer in answers)
        return CrowdRun(self._contestants[number].name, round_number, longest, moved, cpu)

    def rounds(self, count: int, seconds: float) -> Iterator[CrowdRun]:
        """Rounds of all contestants, each beginning with another."""
        order = range(len(self._contestants))
        for turn in range(count):
            for place in order:
                yield self.run((place + turn) % len(order), turn, seconds)


@dataclass(frozen=True)
class CrowdSummary:
    """What a contestant's runs come to, beside the first contestant's."""

    rate: Summary
    evenness: Summary
    cost: Summary
    rate_ratio: Ratio
    cost_ratio: Ratio


def summarize_crowd(runs: Sequence[CrowdRun]) -> dict[str, CrowdSummary]:
    """Summaries by contestant, the reference first."""
    by_name: dict[str, list[CrowdRun]] = {}
    for run in sorted(runs, key=lambda run: run.round):
        by_name.setdefault(run.contestant, []).append(run)
    reference = next(iter(by_name.values()), [])
    return {
        name: CrowdSummary(
            summarize([run.rate for run in mine]),
            summarize([run.evenness for run in mine]),
            summarize([run.cost for run in mine]),
            paired_ratio([run.rate for run in mine], [run.rate for run in reference]),
            paired_ratio([run.cost for run in mine], [run.cost for run in reference]),
        )
        for name, mine in by_name.items()
    }
