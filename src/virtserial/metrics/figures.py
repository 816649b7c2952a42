"""The figures of one VM, checked and bounded: another user's keeper may tell anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from virtserial.client.names import ports_of
from virtserial.errors import PeerError
from virtserial.guest.files.messages import printable
from virtserial.metrics.processes import process_figures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from virtserial.client.names import VmPort
    from virtserial.client.registry import Vm
    from virtserial.client.survey import Seen
    from virtserial.metrics.processes import ProcessFigures

MAX_CONTROLLERS: Final = 32
"""Of a VM."""
MAX_VM_PORTS: Final = 1022
"""Of a VM: those of two controllers of the largest kind."""
MAX_TEXT: Final = 128
"""Characters of a name."""
MAX_BUCKETS: Final = 32


class Latency(NamedTuple):
    """How long a worker took to answer its keeper: a histogram.

    Attributes:
        buckets: (bound in seconds, answers up to that), the last one without a bound: infinity.
        seconds: the sum of all.
        unanswered: seconds for which a question has had no answer until now.
    """

    buckets: list[tuple[float, int]]
    seconds: float
    unanswered: float

    @property
    def answers(self) -> int:
        """How many."""
        return self.buckets[-1][1]


class ControllerFigures(NamedTuple):
    """A controller.

    Attributes:
        has_vmm: whether a VMM is connected.
        ports: how many are plugged.
    """

    name: str
    has_vmm: bool
    ports: int
    max_ports: int


class PortFigures(NamedTuple):
    """A port; counters are since it was plugged in, None where its keeper is too old to count that.

    Attributes:
        clients: None if only they know.
        bytes: to the host, to the guest.
        messages: chains of descriptors that the device has used, to the host and to the guest.
        throttled: seconds for which the guest had to wait for the host's end.
    """

    controller: str
    number: int
    name: str
    guest_open: bool
    clients: int | None
    bytes: tuple[int, int]
    discarded: int
    dropped: int
    doubtful: int
    messages: tuple[int, int] | None
    throttled: float | None


class VmFigures(NamedTuple):
    """A VM.

    Attributes:
        pid: its keeper's.
        error: why nothing else is known; "" if its keeper has answered.
        seconds: how long that took.
        worker: whether there is one.
        changing: whether one is being replaced.
        restarts: workers that died.
        upgrades, renewals: workers and keepers that were replaced on request.
        latency: None if its keeper does not measure it.
        left_out: controllers and ports beyond the limits.
    """

    name: str
    user: str
    pid: int
    error: str
    seconds: float
    worker: bool = False
    changing: bool = False
    restarts: int = 0
    upgrades: int = 0
    renewals: int = 0
    latency: Latency | None = None
    processes: Sequence[ProcessFigures] = ()
    controllers: Sequence[ControllerFigures] = ()
    ports: Sequence[PortFigures] = ()
    left_out: int = 0


def figures_of(seen: Seen) -> VmFigures:
    """Return the figures of a VM; one whose keeper tells what makes no sense has an error instead."""
    vm = seen.vm
    name, user = _text(vm.name), _text(vm.user)
    if not seen.error:
        try:
            return _figures(seen, name, user)
        except PeerError as error:
            return VmFigures(name, user, vm.pid, printable(str(error)), seen.seconds)
    return VmFigures(name, user, vm.pid, printable(seen.error), seen.seconds)


def _figures(seen: Seen, name: str, user: str) -> VmFigures:
    vm, told = seen.vm, seen.inventory
    worker = _count(vm, told, "worker-pid")
    ports = ports_of(vm, {**told, "ports": told["ports"][:MAX_VM_PORTS]})
    plugged = [port.controller for port in ports]
    controllers = {
        (title := _text(each.get("name"))): ControllerFigures(
            title, each.get("vmm") is True, plugged.count(str(each.get("name"))), _count(vm, each, "max-ports")
        )
        for each in told["controllers"][:MAX_CONTROLLERS]
    }
    known = {
        (port.controller, port.number): _port(vm, port, each)
        for port, each in zip(ports, told["ports"], strict=False)
    }
    return VmFigures(
        name, user, vm.pid, "", seen.seconds,
        worker=worker > 0,
        changing=told.get("changing") is True,
        restarts=_count(vm, told, "restarts"),
        upgrades=_count(vm, told, "upgrades"),
        renewals=_count(vm, told, "keeper-restarts"),
        latency=_latency(vm, told.get("worker-latency")),
        processes=process_figures(vm.pid, worker),
        controllers=tuple(controllers.values()),
        ports=tuple(known.values()),
        left_out=len(told["ports"]) - len(known) + len(told["controllers"]) - len(controllers),
    )  # fmt: skip


def _port(vm: Vm, port: VmPort, told: Mapping[str, Any]) -> PortFigures:
    counters = ("to-host", "to-guest", "discarded", "dropped", "doubtful")
    to_host, to_guest, discarded, dropped, doubtful = (_count(vm, told, each) for each in counters)
    messages = throttled = None
    if "messages-to-host" in told:
        messages = (_count(vm, told, "messages-to-host"), _count(vm, told, "messages-to-guest"))
    if "throttled-ns" in told:
        throttled = _count(vm, told, "throttled-ns") / 1e9
    return PortFigures(
        _text(port.controller), _count(vm, told, "number"), _text(port.own_name), port.guest_open,
        None if port.clients is None else _count(vm, told, "clients"),
        (to_host, to_guest), discarded, dropped, doubtful, messages, throttled,
    )  # fmt: skip


def _latency(vm: Vm, told: object) -> Latency | None:
    if told is None:
        return None
    match told:
        case {"bounds": list(bounds), "counts": list(counts), "seconds": int() | float() as seconds,
              "unanswered": int() | float() as unanswered}:  # fmt: skip
            numbers = [*bounds, seconds, unanswered]
            if (
                len(counts) == len(bounds) + 1 <= MAX_BUCKETS
                and all(isinstance(each, int | float) and 0 <= each < 1e9 for each in numbers)
                and bounds == sorted(set(bounds))
                and all(isinstance(each, int) and 0 <= each < 1 << 64 for each in counts)
            ):
                sums = [sum(counts[: place + 1]) for place in range(len(counts))]
                limits = [*map(float, bounds), float("inf")]
                return Latency(list(zip(limits, sums, strict=True)), float(seconds), float(unanswered))
    raise PeerError(f"VM '{vm.name}': the latency of its worker makes no sense")


def _count(vm: Vm, told: Mapping[str, Any], what: str) -> int:
    value = told.get(what)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise PeerError(f"VM '{vm.name}': {str(value)[:40]} for {what} makes no sense")
    return value


def _text(value: object) -> str:
    return printable(str(value)[:MAX_TEXT])
