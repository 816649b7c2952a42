"""`virtserial log`: see virtserial.guest.programs, which both ends share; the host collects."""

from __future__ import annotations

from virtserial.cli.end import add_address, open_end
from virtserial.guest import programs


def run(words: list[str]) -> int:
    """Run the command; return its exit status."""
    program = "virtserial log"
    return programs.run(program, lambda: programs.log(program, words, add_address, open_end, collects=True))
