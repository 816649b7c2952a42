"""`virtserial health`: whether the virtual machines here are well, for scripts and units."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from virtserial.client.registry import find_vm, running_vms
from virtserial.errors import ConfigError
from virtserial.guest.words import Parser, seconds
from virtserial.metrics.health import Health, examine

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "virtserial health"
WELL, ILL, ABSENT = 0, 1, 3
"""Exit statuses; 2 is wrong usage."""
STEP = 0.2
MAX_NAMED = 5
"""Problems in the one line; --json has all."""


def run(words: list[str]) -> int:
    """Run the command; return its exit status."""
    parser = Parser(
        PROGRAM,
        description="Say in one line whether the virtual machines here are well: their two processes answer.",
        epilog="Exit status: 0 all are well, 1 one is not, 2 wrong usage, 3 it does not run (or nothing does).",
    )  # fmt: skip
    parser.add_argument("vms", nargs="*", metavar="VM", help="only these VMs")
    parser.add_argument("--wait", type=seconds, default=0.0, metavar="SECONDS", help="until they run and are well")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value")
    options = parser.parse_args(words)
    deadline = time.monotonic() + options.wait
    while True:
        status, line, found = _look(options.vms)
        if status == WELL or time.monotonic() >= deadline:
            break
        time.sleep(STEP)
    print(json.dumps(_document(status, line, found)) if options.json else line)
    return status


def _look(names: Sequence[str]) -> tuple[int, str, list[Health]]:
    try:
        vms = [find_vm(name) for name in names] if names else running_vms()
    except ConfigError as error:
        return ABSENT, f"absent: {error}", []
    if not vms:
        return ABSENT, "absent: no VM runs here", []
    found = examine(vms)
    problems = [f"{each.vm.name}: {each.problem}" for each in found if each.problem]
    if problems:
        more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        return ILL, f"ill: {'; '.join(problems[:MAX_NAMED])}{more}", found
    ports = [port for each in found for port in each.vm.ports]
    is_open = sum(port.guest_open for port in ports)
    restarts = sum(each.vm.restarts for each in found)
    return WELL, f"well: VMs {len(found)}, ports {len(ports)}, open {is_open}, worker restarts {restarts}", found


def _document(status: int, line: str, found: Sequence[Health]) -> dict[str, object]:
    return {
        "status": status,
        "line": line,
        "vms": [
            {
                "vm": each.vm.name, "user": each.vm.user, "pid": each.vm.pid, "well": not each.problem,
                "problem": each.problem, "answer-seconds": round(each.vm.seconds, 6), "restarts": each.vm.restarts,
                "ports": len(each.vm.ports), "open": sum(port.guest_open for port in each.vm.ports),
            }
            for each in found
        ],
    }  # fmt: skip
