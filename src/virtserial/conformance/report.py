"""Results as a table for people, as TAP, and as JUnit's XML."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from virtserial.conformance.check import SPECIFICATION, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from virtserial.conformance.check import Result


def write_row(result: Result) -> None:
    """Print a line of the table."""
    check = result.check
    print(f"{result.verdict.value:8} {check.name:5} {check.title}  [{check.section}]")
    if result.detail:
        print(f"{'':14} {_one_line(result.detail)}")
    sys.stdout.flush()


def summary(results: Sequence[Result]) -> str:
    """How many of each."""
    counts = {verdict: sum(result.verdict is verdict for result in results) for verdict in Verdict}
    return ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)


def tap(results: Sequence[Result], *, strict: bool) -> str:
    """The results in the Test Anything Protocol, version 13."""
    lines = ["TAP version 13", f"1..{len(results)}"]
    for number, (check, verdict, detail, _) in enumerate(results, 1):
        word = "not ok" if is_failure(verdict, strict=strict) else "ok"
        skipped = f" # SKIP {_one_line(detail)}" if verdict is Verdict.SKIPPED else ""
        lines.append(f"{word} {number} - {check.name} {check.title} [{check.section}]{skipped}")
        if detail and not skipped:
            lines.append(f"# {verdict.value}: {_one_line(detail)}")
    return "\n".join(lines) + "\n"


def write_junit(path: Path, target: str, results: Sequence[Result], *, strict: bool) -> None:
    """Write the results as JUnit's XML.

    Raises:
        OSError: the file cannot be written.
    """
    failures = sum(is_failure(result.verdict, strict=strict) for result in results)
    skipped = sum(result.verdict is Verdict.SKIPPED for result in results)
    seconds = f"{sum(result.seconds for result in results):.3f}"
    counts = {"tests": str(len(results)), "failures": str(failures), "skipped": str(skipped), "time": seconds}
    suite = ET.Element("testsuite", {"name": f"virtserial conformance {target}", "errors": "0", **counts})
    for check, verdict, detail, took in results:
        words = {"classname": f"{SPECIFICATION}, {check.section}", "name": f"{check.name} {check.title}"}
        case = ET.SubElement(suite, "testcase", {**words, "time": f"{took:.3f}"})
        if is_failure(verdict, strict=strict):
            ET.SubElement(case, "failure", {"message": _printable(detail)})
        elif verdict is Verdict.SKIPPED:
            ET.SubElement(case, "skipped", {"message": _printable(detail)})
        elif detail:
            ET.SubElement(case, "system-out").text = _printable(f"{verdict.value}: {detail}")
    ET.indent(suite)
    ET.ElementTree(suite).write(path, "utf-8", xml_declaration=True)


def is_failure(verdict: Verdict, *, strict: bool) -> bool:
    """Whether a verdict makes the exit status 1."""
    return verdict is Verdict.FAILED or (strict and verdict is Verdict.DIFFERS)


def _one_line(text: str) -> str:
    return " / ".join(text.split("\n"))


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)
