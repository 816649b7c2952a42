"""Whether the VMs here are well: their keepers answer, and their workers answer them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from virtserial.client.survey import look
from virtserial.metrics.figures import figures_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.client.registry import Vm
    from virtserial.metrics.figures import VmFigures

PATIENCE: Final = 3.0
"""Seconds for a worker to answer; its keeper replaces one that keeps a VMM waiting for as long."""
STEP: Final = 0.05


class Health(NamedTuple):
    """A VM, and what is wrong with it in a few words; "" for nothing."""

    vm: VmFigures
    problem: str


def examine(vms: Sequence[Vm]) -> list[Health]:
    """Look at VMs until they are well, for at most PATIENCE and the time that keepers take to answer."""
    deadline = time.monotonic() + PATIENCE
    # The first look asks the workers for a sign of life, the next ones see whether it has come.
    first = dict(zip(vms, _look(vms), strict=True))
    found = dict(first)
    is_first = True
    while True:
        ill = [vm for vm in vms if _problem(found[vm], first[vm])]
        if time.monotonic() > deadline:
            ill = [vm for vm in ill if is_first and not found[vm].error]
        if not ill:
            return [Health(found[vm], _problem(found[vm], first[vm])) for vm in vms]
        time.sleep(STEP)
        found.update(zip(ill, _look(ill), strict=True))
        is_first = False


def _look(vms: Sequence[Vm]) -> list[VmFigures]:
    return [figures_of(seen) for seen in look(vms, ping=True)]


def _problem(vm: VmFigures, first: VmFigures) -> str:
    """What is wrong with a VM, which was as `first` at the first look."""
    if vm.error:
        return vm.error
    if not vm.worker:
        return f"no worker; {vm.restarts} have died"
    if vm.changing:
        return "its worker is being replaced"
    if vm.latency is not None and vm.latency.answers <= (first.latency.answers if first.latency is not None else -1):
        return f"its worker has not answered for {vm.latency.unanswered:.1f} s"
    return ""
