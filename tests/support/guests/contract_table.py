"""Runs the guest's contract and prints the table of docs/features.md.

`PYTHONPATH=tests python3 -m support.guests.contract_table [pytest's options]` boots eight guests, for some minutes.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict

import pytest
from support.places import ROOT

SUITE = ROOT / "tests/interop/test_guest_contract.py"
CELLS = {
    "qemu-linux": "QEMU's device, Linux's driver",
    "qemu-legacy": "QEMU's, Linux's by the legacy interface",
    "qemu-packed": "QEMU's, Linux's with packed rings",
    "virtserial-linux": "ours, Linux's driver",
    "virtserial-legacy": "ours, Linux's by the legacy interface",
    "virtserial-packed": "ours, Linux's with packed rings",
    "qemu-cuse": "QEMU's device, ours by CUSE",
    "virtserial-cuse": "ours, ours by CUSE",
}
SUBJECTS = {
    "names, links, rights": ("every_port", "every_named", "names_belong", "a_port_is_readable"),
    "open, second open, console's node": ("second_open", "port_opens_again", "console_cannot"),
    "read: queued, end of file, blocking, EAGAIN, EINTR": (
        "read_is", "read_drains", "nonblocking_read", "blocking_read", "a_signal", "host_data",
    ),
    "write: 32 KiB, blocking, EAGAIN": ("one_write", "writes_of", "nonblocking_write", "blocking_write", "one_thread"),
    "poll and epoll, edges too": ("poll_tells", "a_full_port", "edge_triggered"),
    "close discards, host reconnects": ("closing_the_port", "host_that_reconnects"),
    "hot-add, unplug while open: ENODEV": ("unplug_while_open", "a_read_that_waits"),
    "unbinding the driver": ("unbinding",),
    "SIGIO": ("sigio",),
    "splice": ("splice",),
    "seeking is refused": ("a_port_cannot_seek",),
    "login on a console": ("console_login",),
    "100 MiB each way at once, sha1": ("much_each_way",),
}  # fmt: skip


class Outcomes:
    """Keeps what became of each test (a pytest plugin).

    Attributes:
        of: (subject, cell) -> the outcomes of its tests.
    """

    def __init__(self):
        self.of = defaultdict(list)

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        name, _, parameters = report.nodeid.rpartition("::")[2].partition("[")
        cell = next(cell for cell in CELLS if parameters.startswith(cell))
        if name == "test_driver":
            name = parameters.removeprefix(cell).strip("-]")
        subject = next(
            subject for subject, starts in SUBJECTS.items() if name.removeprefix("test_").startswith(starts)
        )
        self.of[subject, cell].append(report.outcome)

    def entry(self, subject, cell):
        """What the table says: how many tests passed, or of how many."""
        outcomes = self.of[subject, cell]
        passed = outcomes.count("passed")
        return "-" if not outcomes else str(passed) if passed == len(outcomes) else f"{passed} of {len(outcomes)}"


def main(options):
    """Runs and prints; the exit status is pytest's."""
    outcomes = Outcomes()
    os.environ |= {"VIRTSERIAL_REFERENCE": "1", "VIRTSERIAL_SLOW": "1", "VIRTSERIAL_TRANSFER_MIB": "100"}
    status = pytest.main(["-q", str(SUITE), *options], plugins=[outcomes])
    print(f"\n| tests passed | {' | '.join(CELLS.values())} |")
    print("|---|" + "---:|" * len(CELLS))
    for subject in SUBJECTS:
        print(f"| {subject} | {' | '.join(outcomes.entry(subject, cell) for cell in CELLS)} |")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
