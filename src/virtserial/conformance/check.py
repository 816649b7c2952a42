"""What is checked, on what, and what came of it."""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from virtserial.conformance.driver import USUAL_FEATURES, HostileDriver, Machine
from virtserial.conformance.packed_driver import PackedHostileDriver
from virtserial.conformance.steps import (
    DEVICE_CONFIG,
    DEVICE_FEATURE,
    DEVICE_FEATURE_SELECT,
    NUM_QUEUES,
    QUEUE_SELECT,
    QUEUE_SIZE,
    QUEUES,
    STATUS,
    TX,
)
from virtserial.errors import PeerError, VirtserialError
from virtserial.virtio.features import VIRTIO_F_RING_PACKED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from virtserial.conformance.host_ends import HostEnds

SPECIFICATION = "virtio 1.3"


class Violation(VirtserialError):
    """The device did not do what the specification demands; the text says what it did."""


class Difference(VirtserialError):
    """The driver broke a rule, and the device did something else than the safest; the specification allows it."""


class NotHere(VirtserialError):
    """The check needs what this device does not have; the text says what."""


class Verdict(enum.Enum):
    """What came of a check."""

    PASSED = "ok"
    DIFFERS = "differs"
    FAILED = "FAILED"
    SKIPPED = "skipped"


class TargetMachine(Machine, Protocol):
    """A device that somebody else may have built."""

    hosts: HostEnds


class Target(NamedTuple):
    """A device to check.

    Attributes:
        name: as the user wrote it.
        open: begins anew with it.
        open_many: begins with one that has `many` ports; None: this is the one there is.
        many: how many ports that has; None: as many as it announces.
    """

    name: str
    open: Callable[[], TargetMachine]
    open_many: Callable[[], TargetMachine] | None = None
    many: int | None = None


class Geometry(NamedTuple):
    """What a device says of itself after a reset.

    Attributes:
        features: those that it offers.
        max_nr_ports: of the configuration.
        queues: their number.
        data_queue_size: the largest size of port 1's transmitq.
    """

    features: int
    max_nr_ports: int
    queues: int
    data_queue_size: int

    @classmethod
    def of(cls, machine: Machine) -> Geometry:
        """Ask a device."""
        machine.store(STATUS, 0, 1)
        features = 0
        for half in (0, 1):
            machine.store(DEVICE_FEATURE_SELECT, half, 4)
            features |= machine.load(DEVICE_FEATURE, 4) << 32 * half
        machine.store(QUEUE_SELECT, TX, 2)
        size = machine.load(QUEUE_SIZE, 2)
        return cls(features, machine.load(DEVICE_CONFIG + 4, 4), machine.load(NUM_QUEUES, 2), size)


class Bench:
    """A target at work; a machine that has failed is replaced by a new one.

    Args:
        packed: the driver uses packed rings.
        legacy: the target's driver uses the legacy interface.

    Raises:
        PeerError: the device cannot be reached, or offers no packed rings.
    """

    def __init__(self, target: Target, *, packed: bool = False, legacy: bool = False) -> None:
        self.target = target
        self.packed = packed
        self.legacy = legacy
        self.machine = target.open()
        try:
            self.geometry = Geometry.of(self.machine)
            if packed and not self.geometry.features & VIRTIO_F_RING_PACKED:
                raise PeerError(f"{target.name}: the device offers no packed rings; ours does with packed=on")
        except BaseException:
            self.machine.close()
            raise

    def driver(self, machine: Machine | None = None) -> HostileDriver:
        """A new driver of the machine, or of another."""
        machine = machine or self.machine
        features = USUAL_FEATURES & self.geometry.features
        if self.packed:
            return PackedHostileDriver(machine, features)
        if not self.legacy:
            return HostileDriver(machine, features)
        sizes = []
        for queue in range(min(QUEUES, self.geometry.queues)):
            machine.store(QUEUE_SELECT, queue, 2)
            sizes.append(machine.load(QUEUE_SIZE, 2))
        return HostileDriver(machine, features, sizes)

    def renew(self) -> None:
        """Begin anew."""
        self.machine.close()
        self.machine = self.target.open()

    def close(self) -> None:
        """End it."""
        self.machine.close()


class Closable(Protocol):
    """What checks run on."""

    def renew(self) -> None:
        """Begin anew after a failure."""
        ...

    def close(self) -> None:
        """End it."""
        ...


B = TypeVar("B", bound=Closable)


class Check(NamedTuple, Generic[B]):
    """
    Attributes:
        name: a short one, without blanks.
        title: what is tried.
        section: where the specification tells of it.
        run: raises Violation, Difference or NotHere; HostileError and PeerError count as violations.
    """

    name: str
    title: str
    section: str
    run: Callable[[B], None]


class Result(NamedTuple):
    """What came of a check, in how many seconds."""

    check: Check[Any]
    verdict: Verdict
    detail: str
    seconds: float


def run_checks(checks: Sequence[Check[B]], bench: B) -> Iterator[Result]:
    """Run checks one after the other.

    Raises:
        VirtserialError: after a failure the device cannot be reached any more.
    """
    for check in checks:
        begun = time.monotonic()
        verdict, detail = Verdict.PASSED, ""
        try:
            check.run(bench)
        except NotHere as reason:
            verdict, detail = Verdict.SKIPPED, str(reason)
        except Difference as difference:
            verdict, detail = Verdict.DIFFERS, str(difference)
        except (VirtserialError, OSError) as error:
            verdict, detail = Verdict.FAILED, str(error)
        yield Result(check, verdict, detail, time.monotonic() - begun)
        if verdict is Verdict.FAILED:
            bench.renew()

