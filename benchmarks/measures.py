"""What is measured between the two ends of one port, and what one run of it gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from cpu_time import CpuTime

Unit = Literal["MB/s", "trips/s"]
HOST_BLOCK = 65536


@dataclass(frozen=True)
class Measure:
    """One test: the commands of the peers (peer.c) at both ends of the port.

    Attributes:
        name: for --only and as the key in JSON.
        title: for tables.
        guest, guest_block: the guest's command and the size of its writes, reads or messages.
        host, host_block: the host's.
        unit: "MB/s": the amount is bytes; "trips/s": round trips.
    """

    name: str
    title: str
    guest: str
    guest_block: int
    host: str
    host_block: int
    unit: Unit

    @property
    def first_amount(self) -> int:
        """Small enough for any device, for the first look at its speed."""
        return 8_000_000 if self.unit == "MB/s" else 300


def _throughput(name: str, title: str, guest: str, size: int, host: str) -> Measure:
    return Measure(name, title, guest, size, host, 262144 if host == "collect" else HOST_BLOCK, "MB/s")


MEASURES = (
    _throughput("g2h_4k", "guest to host, 4 KiB writes", "send", 4096, "collect"),
    _throughput("g2h_32k", "guest to host, 32 KiB writes", "send", 32768, "collect"),
    _throughput("g2h_64k", "guest to host, 64 KiB writes", "send", 65536, "collect"),
    _throughput("h2g_4k", "host to guest, 4 KiB reads", "take", 4096, "feed"),
    _throughput("h2g_64k", "host to guest, 64 KiB reads", "take", 65536, "feed"),
    Measure("ping_1", "round trips of 1 byte", "echo", 1, "ping", 1, "trips/s"),
    Measure("ping_64", "round trips of 64 bytes", "echo", 64, "ping", 64, "trips/s"),
)


@dataclass(frozen=True)
class Run:
    """One run of a measure on one device.

    Attributes:
        amount: bytes or round trips.
        seconds: by the host's clock.
        cpu: CPU time it took.
        trip_us: median, 99th percentile and longest of the round trips, in microseconds; empty for throughput.
    """

    measure: str
    contestant: str
    round: int
    amount: int
    seconds: float
    cpu: CpuTime
    trip_us: tuple[float, ...] = ()

    @property
    def rate(self) -> float:
        """Amount per second."""
        return self.amount / self.seconds

    def as_json(self) -> dict[str, Any]:
        """For the results file."""
        return {**asdict(self), "rate": self.rate}
