"""The `virtserial-vhost-user` program: `virtserial serve` by the conventions of vhost-user back ends (QEMU's
docs/interop/vhost-user.rst, "Backend program conventions")."""

from __future__ import annotations

import sys

from virtserial.cli import main as program
from virtserial.cli import serve
from virtserial.cli.serve_options import USAGE
from virtserial.errors import VirtserialError
from virtserial.version import __version__

PROGRAM = "virtserial-vhost-user"
WORDS = f"{PROGRAM} {{--socket-path=PATH | --fd=N}} [OPTION...]"


def main() -> int:
    """Run; return the exit status."""
    if sys.argv[1:2] in (["--version"], ["-V"], ["-version"]):
        print(f"{PROGRAM} {__version__}")
        return 0
    try:
        usage = USAGE.replace("virtserial serve OPTION...", WORDS)
        return serve.run(sys.argv[1:], usage, "--socket-path=PATH or --fd=N")
    except VirtserialError as error:
        return program.refuse(error, PROGRAM)
