"""What a port has moved, read from the state memory that the worker counts in: nobody is asked, nothing waits."""

from __future__ import annotations

import os
import struct
import time

from virtserial.named_tuple import NamedTuple

_COUNTERS = struct.Struct("<7Q")
_PROGRESS = struct.Struct("<2Q")


class Counters(NamedTuple):
    """Bytes since the port was plugged in, and more.

    Attributes:
        transmitted: from the guest to the host end.
        received: from the host end to the guest.
        discarded: of the guest, for a host end that was not there or took them no more.
        dropped: of the host or a console, that nobody could be given.
        doubtful: moved twice or not at all, because a worker was killed over them.
        throttled: nanoseconds for which the guest had to wait for the host end, until now.
        sent, filled: chains of the transmitq and of the receiveq that were used since these were reset.
    """

    transmitted: int
    received: int
    discarded: int
    dropped: int
    doubtful: int
    throttled: int
    sent: int
    filled: int


def read_counters(state: int, max_ports: int, number: int) -> Counters:
    """Read a port's counters.

    Args:
        state: the descriptor of its controller's state memory.
        max_ports: the controller's.
        number: the port's.
    """
    from virtserial.console.device import ConsoleDevice
    from virtserial.console.records import PortRecord
    from virtserial.console.wire import receiveq_index, transmitq_index

    place = ConsoleDevice.state_size(max_ports) - (max_ports - number) * PortRecord.SIZE
    told = os.pread(state, _COUNTERS.size, place + PortRecord.transmitted.index)
    transmitted, received, discarded, dropped, doubtful, throttled, since = _COUNTERS.unpack(told)
    if since:
        throttled += max(time.monotonic_ns() - since, 0)
    sent, filled = (_read_chains(state, index(number)) for index in (transmitq_index, receiveq_index))
    return Counters(transmitted, received, discarded, dropped, doubtful, throttled, sent, filled)


def _read_chains(state: int, queue: int) -> int:
    """How many chains of a queue the device has used."""
    from virtserial.memory.state import HEADER_SIZE
    from virtserial.virtio.device import DeviceRecord
    from virtserial.virtio.ring.record import QueueRecord

    place = HEADER_SIZE + DeviceRecord.SIZE + queue * QueueRecord.SIZE
    told = os.pread(state, _PROGRESS.size, place + QueueRecord.progress.index)
    progress, chains = (int(each) for each in _PROGRESS.unpack(told))
    is_packed = os.pread(state, 1, place + QueueRecord.packed.index) != b"\0"
    return chains if is_packed else chains + (progress & 0xFFFF)
