"""What comes of the cases with packed rings where it is something else, and cases for packed rings alone (2.8)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from virtserial.conformance.cases import CASES
from virtserial.conformance.ring_cases import DEAF, OPEN, RING_CASES, STOPPED, STOPPED_AT_SETUP
from virtserial.conformance.steps import (
    BUFFER,
    INDIRECT,
    NEXT,
    QUEUE_SELECT,
    QUEUE_SIZE,
    RING_SIZE,
    RING_STRIDE,
    RINGS,
    RX,
    TX,
    WRITE,
    Case,
    Load,
    Outcome,
    Put,
    Ring,
    Start,
    Store,
    Used,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

AVAIL, USED = 0x80, 0x8000

NOT_PACKED: Final[Mapping[str, str]] = {
    "c02": "there is no available index",
    "c02b": "there is no available index",
    "c03": "a buffer id is the driver's own business",
    "c18": "the descriptors of an indirect table follow each other",
    "c18b": "the descriptors of an indirect table follow each other",
    "c38": "the device's events lie over a descriptor that the driver has not written yet",
}
"""By the number of the case: why a driver of packed rings cannot do that."""

PACKED_OUTCOMES: Final[Mapping[str, tuple[Outcome, str]]] = {
    "c16": (STOPPED, "2.8.19: no indirect descriptor in a list"),
    "c32": (Outcome(seen=(2,), heard=b"hello" * 2), "2.8.1: two descriptors of one buffer are two chains"),
    "c33": (DEAF._replace(seen=(64, 3, 3, 3)), "2.8: any size but 0 is one for a packed queue"),
    "c48": (Outcome(), "2.8.1: the descriptor is one of the next lap, at which the device does not look yet"),
}
"""By the number of the case: what comes of it, and why."""


def _slot(queue: int, number: int, address: int, length: int, flags: int, identifier: int = 0) -> Put:
    return Put(RINGS + queue * RING_STRIDE + 16 * number, struct.pack("<QIHH", address, length, identifier, flags))


def _lap(queue: int, flags: int) -> tuple[Put | Ring, ...]:
    return (*(_slot(queue, number, BUFFER, 64, flags) for number in range(RING_SIZE)), Ring(queue))


PACKED_CASES: Final = (
    Case(
        "p01 a list whose end is not available",
        "2.8.6",
        (OPEN, _slot(TX, 0, BUFFER, 4, AVAIL | NEXT), Ring(TX)),
        STOPPED,
    ),
    Case(
        "p02 a list without an end",
        "2.8.5: no longer than the queue (CVE-2026-16457)",
        (OPEN, *_lap(TX, AVAIL | NEXT)),
        STOPPED,
    ),
    Case(
        "p03 descriptors used by the driver itself",
        "2.8.1: they are not available",
        (OPEN, *_lap(RX, AVAIL | USED | WRITE)),
        Outcome(),
    ),
    Case(
        "p04 descriptors of the next lap",
        "2.8.1: not available before the device comes there",
        (OPEN, *_lap(RX, USED | WRITE)),
        Outcome(),
    ),
    Case(
        "p05 an indirect table in a list",
        "2.8.19",
        (
            OPEN,
            Put(BUFFER, b"0123456789abcdef"),
            _slot(TX, 1, BUFFER, 16, AVAIL | INDIRECT),
            _slot(TX, 0, BUFFER, 4, AVAIL | NEXT),
            Ring(TX),
        ),
        STOPPED,
    ),
    Case(
        "p06 queue sizes",
        "4.1.4.3.2: any up to the largest",
        (
            Start("features"),
            Store(QUEUE_SELECT, TX, 2),
            *(step for size in (7, 65, 0, 128, 129) for step in (Store(QUEUE_SIZE, size, 2), Load(QUEUE_SIZE, 2))),
        ),
        DEAF._replace(seen=(7, 65, 65, 128, 128)),
    ),
    Case(
        "p07 the same buffer in every descriptor, without end",
        "2.8.1: a lap is a lap",
        (
            OPEN,
            # The device may be reading a lap: who takes descriptors back meanwhile is stopped, as in p01.
            *(2 * (*_lap(RX, AVAIL | WRITE), Used(RX), *_lap(RX, USED | WRITE), Used(RX))),
        ),
        Outcome(seen=(0, 0, 0, 0)),
    ),
)
"""Written into the ring descriptor by descriptor."""


def _of_packed(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    return tuple(case for case in cases if case.name.split()[0] not in NOT_PACKED)


PACKED_RING_CASES: Final = _of_packed(RING_CASES) + PACKED_CASES
"""Every case of rings that a driver of packed rings can play."""
PACKED: Final = _of_packed(CASES) + PACKED_CASES
"""Every case that it can play."""


PACKED_QEMU: Final[Mapping[str, Outcome]] = {
    "c15": Outcome(seen=(1,), heard=b"hellhell"),
    "c37": DEAF,
    "p05": DEAF._replace(heard=b"01230123456789abcdef"),
    "p06": STOPPED_AT_SETUP._replace(seen=(7, 65, 65, 128, 128)),
}
"""By the number of the case: what comes of it on QEMU's device, if that is neither as here nor as with split rings."""


def packed_outcome(case: Case) -> Outcome:
    """What must come of a case with packed rings."""
    return PACKED_OUTCOMES.get(case.name.split()[0], (case.expected, ""))[0]
