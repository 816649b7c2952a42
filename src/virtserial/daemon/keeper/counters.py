"""What a port has moved, read from the state memory that the worker counts in: nobody is asked, nothing waits."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

_COUNTERS = struct.Struct("<5Q")


class Counters(NamedTuple):
    """Bytes since the port was plugged in.

    Attributes:
        transmitted: from the guest to the host end.
        received: from the host end to the guest.
        discarded: of the guest, for a host end that was not there or took them no more.
        dropped: of the host or a console, that nobody could be given.
        doubtful: moved twice or not at all, because a worker was killed over them.
    """

    transmitted: int
    received: int
    discarded: int
    dropped: int
    doubtful: int


def read_counters(state: int, max_ports: int, number: int) -> Counters:
    """Read a port's counters.

    Args:
        state: the descriptor of its controller's state memory.
        max_ports: the controller's.
        number: the port's.
    """
    from virtserial.console.device import ConsoleDevice
    from virtserial.console.records import PortRecord

    place = ConsoleDevice.state_size(max_ports) - (max_ports - number) * PortRecord.SIZE
    return Counters(*_COUNTERS.unpack(os.pread(state, _COUNTERS.size, place + PortRecord.transmitted.index)))
