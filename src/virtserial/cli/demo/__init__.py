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
    from virtserial.guest.words import Parser

    parser = Parser("virtserial demo", description=__doc__.partition("\n\n")[2] if __doc__ else None)
    parser.add_argument(
        "--size", type=_mebibytes, metavar="MIB", help="size of each of the 8 files (default: 32; 4 with --guest qemu)"
    )
    parser.add_argument(
        "--guest",
        choices=sorted(DEFAULT_MIB),
        default="embedded",
        help="embedded: the driver in user space, no VM (default); qemu: a Linux guest in QEMU, where they can be had",
    )
    options = parser.parse_args(arguments)
    size = DEFAULT_MIB[options.guest] if options.size is None else options.size
    from virtserial.cli.demo.conductor import conduct

    return conduct(size << 20, options.guest)


def _mebibytes(text: str) -> int:
    from argparse import ArgumentTypeError

    if not text.isdecimal() or not 1 <= int(text) <= MAX_MIB:
        raise ArgumentTypeError(f"{text!r} is no size: 1 to {MAX_MIB} MiB")
    return int(text)
