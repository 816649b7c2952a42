"""What is measured between the two ends of one port, and what one run of it gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from cpu_time import CpuTime

COLLECT_BLOCK = 262144
FEED_BLOCK = 65536


@dataclass(frozen=True)
class Unit:
    """How figures of one kind are written.

    Attributes:
        amount: what a run moves; amounts are divided by amount_scale for it.
        rate: amount per second.
        cost: CPU time per amount; CPU seconds per single byte or trip are multiplied by cost_scale for it.
    """

    amount: str
    amount_scale: float
    rate: str
    cost: str
    cost_scale: float


BYTES = Unit("MB", 1e6, "MB/s", "s/GB", 1e9)
TRIPS = Unit("trips", 1, "trips/s", "us/trip", 1e6)


@dataclass(frozen=True)
class Measure:
    """One test: the commands of the peers (peer.c) at both ends of the port.

    Attributes:
        name: for --only and as the key in JSON.
        title: for tables; short is for the picture.
        guest, guest_block: the guest's command and the size of its writes, reads or messages.
        host, host_block: the host's.
        unit: BYTES or TRIPS.
    """

    name: str
    title: str
    short: str
    guest: Literal["send", "take", "echo"]
    guest_block: int
    host: Literal["collect", "feed", "ping"]
    host_block: int
    unit: Unit

    @property
    def verifying(self) -> str:
        """The guest's command for a run in which both ends check every byte."""
        return "verify" if self.guest == "take" else self.guest

    @property
    def first_amount(self) -> int:
        """Small enough for any device, for the first look at its speed."""
        return 8_000_000 if self.unit is BYTES else 300


def _sends(kib: int) -> Measure:
    title = f"guest to host, {kib} KiB writes"
    return Measure(
        f"g2h_{kib}k", title, f"to host, {kib}K", "send", kib * 1024, "collect", COLLECT_BLOCK, BYTES
    )


def _takes(kib: int) -> Measure:
    title = f"host to guest, {kib} KiB reads"
    return Measure(f"h2g_{kib}k", title, f"to guest, {kib}K", "take", kib * 1024, "feed", FEED_BLOCK, BYTES)


def _pings(size: int, title: str, short: str) -> Measure:
    return Measure(f"ping_{size}", f"round trips of {title}", short, "echo", size, "ping", size, TRIPS)


MEASURES = (
    *(_sends(4), _sends(32), _sends(64), _takes(4), _takes(64)),
    *(_pings(1, "1 byte", "1 byte"), _pings(64, "64 bytes", "64 bytes")),
)


@dataclass(frozen=True)
class Run:
    """One run of a measure on one device.

    Attributes:
        round: runs of one round belong together: they were measured within seconds.
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

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Run:
        """The inverse of as_json."""
        given = {name: fields[name] for name in ("measure", "contestant", "round", "amount", "seconds")}
        return cls(**given, cpu=CpuTime(**fields["cpu"]), trip_us=tuple(fields["trip_us"]))
