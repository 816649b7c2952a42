"""`virtserial demo`: the whole system at work in one command, with nothing but Python.

A device process with two controllers, a host process, and a guest process with the embedded driver (or a real Linux
guest); files both ways on four named ports at once while a shell is used on both consoles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_MIB = {"embedded": 32, "qemu": 4}
MAX_MIB = 4096


def run(arguments: Sequence[str]) -> int:
    """Parse the options of `virtserial demo` and run it; the exit status."""
    from argparse import ArgumentParser

    parser = ArgumentParser(prog="virtserial demo", description=__doc__.partition("\n\n")[2] if __doc__ else None)
    parser.add_argument(
        "--size", type=int, metavar="MIB", help="size of each of the 8 files (default: 32; 4 with --guest qemu)"
    )
    parser.add_argument(
        "--guest",
        choices=sorted(DEFAULT_MIB),
        default="embedded",
        help="embedded: the driver in user space, no VM (default); qemu: a Linux guest in QEMU, where they can be had",
    )
    options = parser.parse_args(arguments)
    size = DEFAULT_MIB[options.guest] if options.size is None else options.size
    if not 1 <= size <= MAX_MIB:
        parser.error(f"--size {size}: 1 to {MAX_MIB} MiB")
    from virtserial.cli.demo.conductor import conduct

    return conduct(size << 20, options.guest)
