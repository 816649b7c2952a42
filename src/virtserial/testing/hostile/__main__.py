"""Print what became of every case, on every device that can be had here.

    python3 -m virtserial.testing.hostile [--differences] [CASE ...]

The exit status is 1 if a device did what its case does not expect.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from virtserial.conformance.cases import CASES
from virtserial.conformance.driver import HostileDriver, HostileError
from virtserial.conformance.legacy_cases import legacy_outcome
from virtserial.conformance.qemu_machine import QemuMachine
from virtserial.rig.cache import RigUnavailable
from virtserial.testing.hostile.in_memory import InMemoryMachine
from virtserial.testing.hostile.over_legacy import LegacyMachine
from virtserial.testing.hostile.over_vfio_user import VfioUserMachine
from virtserial.testing.hostile.over_vhost_user import VhostUserMachine
from virtserial.testing.hostile.table import differences

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.conformance.driver import Machine
    from virtserial.conformance.steps import Case

MACHINES: dict[str, Callable[[], Machine]] = {
    "memory": InMemoryMachine,
    "legacy": LegacyMachine,
    "vfio-user": VfioUserMachine,
    "vhost-user": VhostUserMachine,
    "qemu": QemuMachine,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases; see the module's text."""
    parser = argparse.ArgumentParser(prog="python3 -m virtserial.testing.hostile", description="Hostile drivers.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="a part of a case's name; all without one")
    parser.add_argument("--on", choices=MACHINES, action="append", help="the device (all)")
    parser.add_argument("--differences", action="store_true", help="print what QEMU's device does otherwise, and why")
    words = parser.parse_args(arguments)
    if words.differences:
        print(differences())
        return 0
    cases = [case for case in CASES if not words.cases or any(part in case.name for part in words.cases)]
    wrong = 0
    print("Expected; what a device does otherwise stands below its case.\n")
    columns = {name: _run(name, cases) for name in words.on or MACHINES}
    for number, case in enumerate(cases):
        print(f"{case.name:42} {case.expected}")
        for name, column in columns.items():
            if column is None:
                continue
            seen = column[number]
            if seen == str(case.expected):
                continue
            known = seen == str(case.qemu if name == "qemu" else legacy_outcome(case) if name == "legacy" else None)
            wrong += not known
            print(f"{'':42} {'' if known else '!! '}{name}: {seen}")
    for name, column in columns.items():
        print(f"\n{name}: " + ("not to be had here" if column is None else f"{len(column)} cases"), end="")
    print(f"\n{wrong} outcomes are not as expected" if wrong else "\nall as expected")
    return 1 if wrong else 0


def _run(name: str, cases: Sequence[Case]) -> list[str] | None:
    """Play cases on one machine; a text for each, None if there is no such machine here."""
    try:
        machine = MACHINES[name]()
    except RigUnavailable as reason:
        print(f"{name}: {reason}", file=sys.stderr)
        return None
    try:
        driver = HostileDriver(machine)
        column = []
        for case in cases:
            try:
                column.append(str(driver.play(case)))
            except HostileError as error:
                column.append(f"FAILED: {error}")
                machine.close()
                machine = MACHINES[name]()
                driver = HostileDriver(machine)
        return column
    finally:
        machine.close()


if __name__ == "__main__":
    sys.exit(main())
