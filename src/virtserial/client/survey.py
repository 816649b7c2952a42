"""What every VM that runs here serves, asked of all keepers at the same time."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from virtserial.errors import VirtserialError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.client.registry import Vm

GIVE_UP = 5.0
"""Seconds for all answers: each keeper has its 3."""


class Seen(NamedTuple):
    """A VM, with what it serves; or why that is not known.

    Attributes:
        inventory: see monitor/inventory.py.
        error: one line; "" if it has answered.
        seconds: how long that took.
    """

    vm: Vm
    inventory: dict[str, Any]
    error: str = ""
    seconds: float = 0.0


def look(vms: Sequence[Vm], give_up: float = GIVE_UP, *, ping: bool = False) -> list[Seen]:
    """Ask every VM, all at the same time: one that hangs holds up no other.

    Args:
        give_up: seconds for all.
        ping: let each keeper ask its worker for a sign of life; the next look has the result.
    """
    begun = time.monotonic()
    seen = {vm: Seen(vm, {}, f"VM '{vm.name}' (process {vm.pid}): no answer in {give_up:g} s") for vm in vms}

    def ask(vm: Vm) -> None:
        asked = time.monotonic()
        try:
            answer, error = vm.inventory(ping=ping), ""
        except VirtserialError as failure:
            answer, error = {}, str(failure)
        seen[vm] = Seen(vm, answer, error, time.monotonic() - asked)

    threads = [threading.Thread(target=ask, args=(vm,), daemon=True) for vm in vms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(begun + give_up - time.monotonic(), 0))
    return [seen[vm] for vm in vms]
