"""The `virtserial` program: runs a subcommand and turns errors into exit statuses."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from virtserial.errors import ConfigError, UsageError, VirtserialError
from virtserial.options.keyval import did_you_mean
from virtserial.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMMANDS = {
    "serve": "serve devices to VMMs over vfio-user",
    "guest": "drive devices from a guest without the kernel's driver: attach, bind, unbind",
    "save": "save the state of a controller to a file",
    "restart": "upgrade a running device in place to the installed code",
    "restore": "load a saved state into a controller",
    "send": "send files and folders over a port",
    "receive": "receive files and folders over a port, into one folder",
    "console": "use a port from this terminal",
    "ssh": "use ssh to a virtual machine over a port, without a network",
    "ssh-config": "print what ~/.ssh/config needs for scp, rsync and others to do so too",
    "pipe": "join standard input and output to a port",
    "record": "record what a port says, with the times",
    "replay": "play a recording: on this terminal, into a port, or in a guest's place",
    "log": "carry log lines over a port, and keep them while the other end is away",
    "ls": "list the virtual machines that run here",
    "ports": "list ports, their state and counters",
    "health": "say whether they are well, for scripts and units",
    "exporter": "give Prometheus the figures of all that runs here",
    "demo": "move files over ports and use consoles, on an embedded guest",
}

USAGE = """usage: virtserial COMMAND [OPTION...]

{commands}

`virtserial COMMAND --help` shows a command's options, `virtserial --version` the version.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit status: 0 success, 1 failure, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "-help", "help"):
        commands = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
        print(USAGE.format(commands=commands), end="")
        return 0 if words else 2
    if words[0] in ("-V", "--version", "-version"):
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
        print(f"virtserial: {error}", file=sys.stderr)
        if isinstance(error, ConfigError) and error.hint:
            print(f"virtserial: {error.hint}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
