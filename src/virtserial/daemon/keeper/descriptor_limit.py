"""Whether this process may have as many descriptors as its ports need, whatever VMMs take of them."""

from __future__ import annotations

import logging
import resource
from typing import Final

from virtserial.daemon.keeper.back_ends import KEPT_BACK
from virtserial.foreign import LEFT_FOR_OTHERS

log = logging.getLogger("virtserial.keeper")

PER_HOST: Final = 2
"""Descriptors for a client of a listening socket in a worker: its own, and one more of the listener's."""


def descriptors_for(ports: int) -> int:
    """How many descriptors a process may need so that VMMs which use their part leave one host's at each port."""
    return LEFT_FOR_OTHERS * (PER_HOST * ports + KEPT_BACK)


def warn_of_low_limit(ports: int) -> None:
    """Log a warning if VMMs that use their part of the descriptors leave too few for a host at each port.

    Args:
        ports: how many there are.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = descriptors_for(ports)
    if not 0 <= limit < needed:
        return
    log.warning(
        "this process may have %d descriptors, but %d ports need %d: VMMs may take so many that hosts are sent away; "
        "set LimitNOFILE=%d in the unit, or run 'ulimit -n %d' before",
        limit, ports, needed, needed, needed,
    )  # fmt: skip
