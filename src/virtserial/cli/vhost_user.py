"""The `virtserial-vhost-user` program: `virtserial serve` by the conventions of vhost-user back ends (QEMU's
docs/interop/vhost-user.rst, "Backend program conventions")."""

from __future__ import annotations

import sys

from virtserial.cli import main as program


def main() -> int:
    """Run; return the exit status."""
    return program.main(["serve", *sys.argv[1:]])
