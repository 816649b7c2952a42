"""`virtserial receive`: see virtserial.guest.programs, which both ends share."""

from __future__ import annotations

from virtserial.cli.end import add_address, open_end
from virtserial.guest import programs


def run(words: list[str]) -> int:
    """Run the command; return its exit status."""
    program = "virtserial receive"
    return programs.run(program, lambda: programs.receive(program, words, add_address, open_end, "the guest"))
