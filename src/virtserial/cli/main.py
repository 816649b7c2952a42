"""The `virtserial` program: runs a subcommand and turns errors into exit statuses."""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import sys
from typing import TYPE_CHECKING

from virtserial.cli.commands import COMMANDS, listing
from virtserial.errors import ConfigError, UsageError, VirtserialError
from virtserial.options.keyval import did_you_mean
from virtserial.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

USAGE = """usage: virtserial COMMAND [OPTION...]

{}

`virtserial COMMAND --help` shows a command's options, `virtserial --version`
the version.  virtserial-qemu takes a QEMU command line and serves its ports.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit status: 0 success, 1 failure, 2 wrong usage, 130 Ctrl-C."""
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            with output():
                pass
    except ConfigError as error:
        return refuse(error)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _nobody_reads(1):
            raise
        # As with `head`: who has read enough hears nothing of the rest.
        _discard_output()
        return 0


@contextlib.contextmanager
def output() -> Iterator[None]:
    """Write standard output out at the end of the block, which does nothing else that could fail with an OSError.

    Raises:
        ConfigError: it cannot be written; what is left of it is lost.
        BrokenPipeError: its reader has left.
    """
    try:
        yield
        if sys.stdout is not None:  # closed by who started us
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_output()
        raise ConfigError(f"cannot write to standard output: {error.strerror}") from error


def _discard_output() -> None:
    """Let the interpreter, which tries again at its end, write what is left to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _nobody_reads(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "-help", "help"):
        with output():
            print(USAGE.format(listing()), end="")
        return 0 if words else 2
    if words[0] in ("-V", "--version", "-version"):
        with output():
            print(f"virtserial {__version__}")
        return 0
    if words[0] not in COMMANDS:
        hint = did_you_mean(words[0], COMMANDS) or "`virtserial --help` lists them"
        print(f"virtserial: {words[0]!r} is not a command; {hint}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"virtserial.cli.{words[0].replace('-', '_')}")
    run: Callable[[list[str]], int] = module.run
    try:
        return run(words[1:])
    except VirtserialError as error:
        return refuse(error)


def refuse(error: VirtserialError, program: str = "virtserial") -> int:
    """Say what is wrong, and the way out in the words of a program; return the exit status."""
    print(f"{program}: {error}", file=sys.stderr)
    if isinstance(error, ConfigError) and error.hint:
        hint = error.hint if program == "virtserial" else error.hint.replace("virtserial serve", program)
        print(f"{program}: {hint}", file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1
