"""The part of a saved state that host ends add: the newest output of ports that keep some for clients who come late.

It is the only thing of the hosts' that is saved, for nobody but the device has it.  All backlogs of a device together
have at most MAX_BACKLOGS bytes in a state: short ones whole, of the others the newest bytes, as many of each.  The
device that loads them keeps as many as its own chardev wants, and none where that has had output already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.state.fields import encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from virtserial.console.device import ConsoleDevice
    from virtserial.console.port import Port
    from virtserial.console.slot import PortSlot
    from virtserial.state.fields import Fields

MAX_BACKLOGS: Final = 256 << 10
"""A quarter of what QEMU takes for a whole machine; twice in base64 it is less than half."""
_MEMBER: Final = "host_backlog"


def saved_backlogs(slots: Iterable[PortSlot], most: int) -> dict[int, dict[str, object]]:
    """Return the members that ports with a backlog add to theirs, by number.

    Args:
        most: bytes of all together.
    """
    hosts = {slot.number: slot.port.host for slot in slots if slot.port is not None}
    sizes = {number: host.backlog_size for number, host in hosts.items() if host is not None and host.backlog_size}
    taken = dict(zip(sizes, _shares(list(sizes.values()), most), strict=True))
    return {
        number: {_MEMBER: encode(host.read_backlog(taken[number]))}
        for number, host in hosts.items()
        if host is not None and taken.get(number)
    }


def loaded_backlogs(states: Iterable[Fields], console: ConsoleDevice) -> list[tuple[Port, bytes]]:
    """Return what ports get, when all else is loaded; states of older programs have nothing.

    Raises:
        ConfigError: one is no data, or too much.
    """
    read = [
        (console.slots[state.number("number", console.max_ports - 1)].port, state.data(_MEMBER, MAX_BACKLOGS, b""))
        for state in states
    ]
    return [(port, backlog) for port, backlog in read if port is not None]


def _shares(sizes: Sequence[int], most: int) -> list[int]:
    shares = [0] * len(sizes)
    waiting = len(sizes)
    for index in sorted(range(len(sizes)), key=sizes.__getitem__):
        shares[index] = min(sizes[index], most // waiting)
        most -= shares[index]
        waiting -= 1
    return shares
