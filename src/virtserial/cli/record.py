"""`virtserial record`: see virtserial.guest.programs, which both ends share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.cli.end import add_address, named_port, open_end
from virtserial.client.named_stream import open_free
from virtserial.guest import programs

if TYPE_CHECKING:
    import argparse

    from virtserial.guest.stream import EpollStream

PROGRAM = "virtserial record"


def run(words: list[str]) -> int:
    """Run the command; return its exit status."""
    return programs.run(PROGRAM, lambda: programs.record(PROGRAM, words, add_address, _open))


def _open(options: argparse.Namespace) -> EpollStream:
    port = named_port(options)
    return open_end(options) if port is None else open_free(port, only_watch=True)
