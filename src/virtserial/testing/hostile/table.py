"""The list of what QEMU's device does otherwise, for docs/deviations.md."""

from __future__ import annotations

from virtserial.conformance.cases import CASES


def differences() -> str:
    """A Markdown table of the cases in which QEMU's device does something else."""
    lines = ["| case | QEMU 11.1 | virtserial | why |", "|---|---|---|---|"]
    lines += [
        f"| {case.name} | {case.qemu} | {case.expected} | {case.reason} |" for case in CASES if case.qemu is not None
    ]
    return "\n".join(lines)
