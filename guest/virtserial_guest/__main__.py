"""`python3 -m virtserial_guest`: the guest's programs; they take a port's name or its device's path."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Callable, Sequence, cast

from . import __version__, programs
from .files.messages import printable
from .hints import did_you_mean
from .ports import list_ports, open_port, wait_for_port
from .stream import EpollStream
from .words import Parser

if TYPE_CHECKING:
    import argparse

PROGRAM = "virtserial-guest"
USAGE = """usage: {} COMMAND [OPTION...]

{}

`COMMAND --help` tells more.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit status: 0 done, 1 failed, 2 wrong options."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        lines = "\n".join(f"  {name:10} {what}" for name, (what, _) in COMMANDS.items())
        print(USAGE.format(PROGRAM, lines), end="")
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"{PROGRAM} {__version__}")
        return 0
    if words[0] not in COMMANDS:
        hint = did_you_mean(words[0], COMMANDS) or "--help lists them"
        print(f"{PROGRAM}: {words[0]!r} is not a command; {hint}", file=sys.stderr)
        return 2
    program = f"{PROGRAM} {words[0]}"
    return programs.run(program, lambda: COMMANDS[words[0]][1](program, words[1:]))


def add_address(parser: argparse.ArgumentParser) -> None:
    """The argument that names a port."""
    parser.add_argument("port", metavar="PORT", help="the port's name, or its device's path")
    parser.add_argument("--wait", action="store_true", help="wait for the port if it is not there yet")


def open_end(options: argparse.Namespace) -> EpollStream:
    """Open the port that add_address()'s argument names."""
    if options.wait:
        wait_for_port(options.port)
    return cast(EpollStream, open_port(options.port))


def serve_ssh(program: str, words: list[str]) -> int:
    """`sshd`: what no other command has to load."""
    from .sshd import sshd

    return sshd(program, words, add_address, open_end)


def show_ports(program: str, words: list[str]) -> int:
    """`ports`: a table of this guest's ports."""
    parser = Parser(program, description="List the virtio-serial ports of this guest.")
    parser.add_argument("--run-dir", metavar="FOLDER", help="of a user-space driver that has its ports there")
    parser.add_argument("--names", action="store_true", help="for scripts: the names alone, one a line")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value")
    options = parser.parse_args(words)
    ports = list_ports(run_directory=options.run_dir)
    if options.json:
        print(json.dumps([port._asdict() for port in ports]))
        return 0
    if options.names:
        for port in ports:
            print(printable(port.name) or port.path)
        return 0
    rows: list[tuple[str, ...]] = [("PORT", "NAME", "HOST", "GUEST", "SENT", "RECEIVED", "DISCARDED")]
    for port in ports:
        host = {True: "connected", False: "away", None: "?"}[port.host_connected]
        guest = "console" if port.is_console else {True: "open", False: "closed", None: "?"}[port.guest_open]
        counters = ("?" if each is None else str(each) for each in (port.sent, port.received, port.discarded))
        rows.append((port.path, printable(port.name), host, guest, *counters))
    print_table(rows)
    return 0


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Align the columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


COMMANDS: dict[str, tuple[str, Callable[[str, list[str]], int]]] = {
    "send": (
        "send files and folders to the host",
        lambda program, words: programs.send(program, words, add_address, open_end, "the host"),
    ),
    "receive": (
        "receive files and folders from the host",
        lambda program, words: programs.receive(program, words, add_address, open_end, "the host"),
    ),
    "log": (
        "send log lines to the host, and keep them while it is away",
        lambda program, words: programs.log(program, words, add_address, open_end, collects=False),
    ),
    "console": (
        "use a port from this terminal, or run a program on it",
        lambda program, words: programs.console(program, words, add_address, open_end),
    ),
    "record": (
        "record what a port says, with the times",
        lambda program, words: programs.record(program, words, add_address, open_end),
    ),
    "sshd": (
        "serve `virtserial ssh`: run sshd for each connection over a port",
        lambda program, words: serve_ssh(program, words),
    ),
    "ports": ("list the ports, their state and counters", show_ports),
}

if __name__ == "__main__":
    sys.exit(main())
