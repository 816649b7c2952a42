"""The hostile cases as checks: a driver that breaks a rule must neither end a device, nor harm it for good.

Where the driver breaks a rule, the specification demands little of the device: it may go on or stop.  Whoever does
otherwise than the safest (what the case expects) differs; whoever dies or does not heal by a reset fails.  Some cases
are about what a device MUST do, and there it fails if it does otherwise.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from virtserial.conformance.cases import CASES
from virtserial.conformance.check import Check, Difference, NotHere, Violation
from virtserial.conformance.contract import announced_ports
from virtserial.conformance.packed_cases import PACKED, PACKED_OUTCOMES, packed_outcome
from virtserial.conformance.steps import INDIRECT, QUEUES, Describe, Start
from virtserial.console.wire import VIRTIO_CONSOLE_F_EMERG_WRITE
from virtserial.virtio.features import VIRTIO_F_INDIRECT_DESC

if TYPE_CHECKING:
    from virtserial.conformance.check import Bench, Geometry
    from virtserial.conformance.steps import Case, Outcome

DEMANDED: Final = {
    "c01": "5.3.6: a message arrives, its used element says that nothing was written",
    "c16": "2.7.5.3.2: the device MUST handle direct descriptors that end in an indirect one",
    "c23": "2.7.8.2: the device MUST write at least as many bytes as len says",
    "c24": "2.7.8.2: the device MUST write at least as many bytes as len says",
    "c24b": "2.7.4.1: the device MUST NOT make assumptions about the arrangement of descriptors",
    "c29": "5.3.6.2: a message that is lost for want of a buffer never comes",
    "c40": "2.1.2: the device MUST NOT consume buffers before DRIVER_OK",
    "c43": "2.2.2: the device MUST fail to set FEATURES_OK",
    "c45": "5.3.4: an emergency write works in any state",
    "c47": "2.4.1: a device that was reset MUST NOT use its queues",
}
"""By the number of the case: what the specification demands of the device."""
_NEED_HOST: Final = ("c10", "c38", "c42", "c48")
"""Cases in which only a connected host makes the device look at a queue, or shows that it does not."""
_SIZES: Final = ("c33", "c34", "p06")
"""Cases that need a queue of 128 entries."""
BUFFERS: Final = 8
"""Those of c29, one for each port that the device adds."""


def hostile_checks(*, packed: bool) -> list[Check[Bench]]:
    """The cases for split rings, or for packed ones."""
    checks = []
    for case in PACKED if packed else CASES:
        number, _, title = case.name.partition(" ")
        demanded = not (packed and number in PACKED_OUTCOMES) and number in DEMANDED
        section = DEMANDED[number] if demanded else case.rule or "3.1.1"
        if packed and number in PACKED_OUTCOMES:
            section = PACKED_OUTCOMES[number][1]
        expected = packed_outcome(case) if packed else case.expected
        checks.append(Check(number, title, section, partial(_play, case, number, expected, demanded)))
    return checks


def _play(case: Case, number: str, expected: Outcome, demanded: bool, bench: Bench) -> None:
    lacking = _lacking(case, number, bench.geometry)
    if lacking:
        raise NotHere(lacking)
    if number in _NEED_HOST and 1 not in bench.machine.hosts:
        raise NotHere("the host's end of port 1 is not known: --host 1=ADDRESS")
    if number == "c45" and 1 in bench.machine.hosts and 0 not in bench.machine.hosts:
        raise NotHere("the host's end of the console 0 is not known: --host 0=ADDRESS")
    if number == "c46":
        expected = expected._replace(seen=(bench.geometry.max_nr_ports,))
    if number == "c29":
        expected = expected._replace(seen=(min(len(announced_ports(bench)), BUFFERS),))
    outcome = bench.driver().play(case)
    if outcome.heard is None:
        expected = expected._replace(heard=None)
    if str(outcome) != str(expected):
        text = f"{outcome}; expected: {expected}"
        raise Violation(text) if demanded else Difference(text)


def _lacking(case: Case, number: str, geometry: Geometry) -> str:
    """What of a device a case cannot do without, "" if all is there."""
    if geometry.queues < QUEUES:
        return f"needs {QUEUES} queues, there are {geometry.queues}"
    if number in _SIZES and geometry.data_queue_size != 128:
        return f"needs queues of 128 entries, these have {geometry.data_queue_size}"
    if number == "c45" and not geometry.features & VIRTIO_CONSOLE_F_EMERG_WRITE:
        return "the device does not offer VIRTIO_CONSOLE_F_EMERG_WRITE"
    indirect = any(isinstance(step, Describe) and step.flags & INDIRECT for step in case.steps)
    if indirect and number != "c17" and not geometry.features & VIRTIO_F_INDIRECT_DESC:
        return "the device does not offer VIRTIO_F_INDIRECT_DESC"
    for step in case.steps:
        wanted = step.features or 0 if isinstance(step, Start) else 0
        if (missing := wanted & ~geometry.features) and number != "c43":
            return f"the device does not offer the features {missing:#x}"
    return ""
