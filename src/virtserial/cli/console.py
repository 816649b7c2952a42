"""`virtserial console`: see virtserial.guest.programs, which both ends share; here also who else uses the port."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.cli.end import add_address, named_port, open_end, open_in_fleet
from virtserial.client.named_stream import open_free
from virtserial.errors import ConfigError
from virtserial.guest import programs

if TYPE_CHECKING:
    import argparse

    from virtserial.guest.stream import EpollStream

PROGRAM = "virtserial console"


def run(words: list[str]) -> int:
    """Run the command; return its exit status."""
    return programs.run(PROGRAM, lambda: programs.console(PROGRAM, words, _add_options, _open))


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_address(parser)
    parser.add_argument("--force", action="store_true", help="send away whoever uses VM/PORT")


def _open(options: argparse.Namespace) -> EpollStream:
    try:
        port = named_port(options)
    except ConfigError as error:
        return open_in_fleet(options.port, error, force=options.force, only_watch=options.watch, history=True)
    if port is not None:
        return open_free(port, options.force, options.watch)
    if options.force:
        raise ConfigError("--force needs the port's name, VM/PORT: an address does not say who uses it")
    return open_end(options)
