"""What comes of the cases by the legacy interface where it is something else, and cases for that interface alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.conformance.device_cases import ALL_BUT_TX
from virtserial.conformance.ring_cases import DEAF, OPEN, STOPPED
from virtserial.conformance.steps import (
    LEGACY,
    RING_STRIDE,
    RINGS,
    RX,
    STATUS,
    TX,
    Case,
    Load,
    Outcome,
    Ring,
    Start,
    Store,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_FEATURES, _ADDRESS, _SIZE, _SELECT, _NOTIFY, _STATUS = (LEGACY + at for at in (4, 8, 12, 14, 16, 18))

LEGACY_OUTCOMES: Final[Mapping[str, tuple[Outcome, str]]] = {
    "c33": (DEAF._replace(seen=(16, 16, 16, 16)), "a queue has the size that the device gives it"),
    "c36": (STOPPED, "rings are looked at when the driver begins, which is at DRIVER_OK here"),
    "c37": (STOPPED, "as c36"),
    "c37b": (Outcome(), "an address in pages is aligned"),
    "c40": (Outcome(seen=(1, 1), heard=b"hello"), "3.1.2: a driver may use the device before DRIVER_OK"),
    "c43": (DEAF._replace(seen=(11,)), "there is no FEATURES_OK to refuse; what was not offered is not taken"),
    "c44": (DEAF._replace(seen=(3,)), "legacy drivers write any status"),
}
"""By the number of the case: what comes of it, and why."""

LEGACY_CASES: Final = (
    Case(
        "l01 ring address at run time",
        "2.7.2: what a live ring was checked against cannot change",
        (OPEN, Store(_SELECT, TX, 2), Store(_ADDRESS, 0x200, 4), Load(_ADDRESS, 4)),
        Outcome(seen=(RINGS + TX * RING_STRIDE >> 12,)),
    ),
    Case(
        "l02 a queue that does not exist",
        "4.1.5.1.3: its size is 0",
        (
            OPEN,
            Store(_SELECT, 500, 2),
            Load(_SIZE, 2),
            Store(_ADDRESS, 0x100, 4),
            Load(_ADDRESS, 4),
            *(Store(_NOTIFY, number, 2) for number in (10, 500, 0xFFFF)),
        ),
        Outcome(seen=(0, 0)),
    ),
    Case(
        "l03 odd widths and places",
        "4.1.4.8",
        (
            OPEN,
            *(Store(LEGACY + at, 0xFF, width) for at in (8, 9, 14, 15, 16, 18, 19) for width in (3, 8)),
            *(Store(LEGACY + at, 0, 1) for at in (0, 4, 8, 12, 14, 16)),
            Store(_NOTIFY, TX, 4),
            Load(LEGACY + 17, 2),
            Load(LEGACY + 60, 4),
            Load(LEGACY + 63, 1),
        ),
        Outcome(seen=(7 << 8, 0, 0)),
    ),
    Case(
        "l04 a queue taken away while it is used",
        "4.1.5.1.3",
        (OPEN, Store(_SELECT, RX, 2), Store(_ADDRESS, 0, 4), Ring(RX), Load(_ADDRESS, 4)),
        Outcome(seen=(0,)),
    ),
    Case(
        "l05 features after the first use",
        "2.2.3",
        (OPEN, Store(_FEATURES, 0, 4), Load(_FEATURES, 4)),
        Outcome(seen=(1 << 28 | 2,)),
    ),
    Case(
        "l06 rings at the last page there is",
        "2.7.2",
        (
            Start("queues", queues=ALL_BUT_TX),
            Store(_SELECT, TX, 2),
            Store(_ADDRESS, 0xFFFFFFFF, 4),
            Store(STATUS, 15, 1),
        ),
        STOPPED,
    ),
    Case(
        "l07 a doorbell before the driver says that it is there",
        "3.1.2",
        (Store(STATUS, 0, 1), Store(_NOTIFY, TX, 2), Load(_STATUS, 1)),
        DEAF._replace(seen=(0,)),
    ),
    Case(
        "l08 every status there is",
        "2.1.2",
        (OPEN, *(Store(_STATUS, value, 1) for value in range(1, 256)), Store(_STATUS, 7, 1), Load(_STATUS, 1)),
        Outcome(seen=(7,)),
    ),
)


def legacy_outcome(case: Case) -> Outcome:
    """What must come of a case by the legacy interface."""
    outcome = LEGACY_OUTCOMES.get(case.name.split()[0])
    return case.expected if outcome is None else outcome[0]
