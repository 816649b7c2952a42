"""What `ls` and `ports` share: tables, --json, --watch."""

from __future__ import annotations

import json
import shutil
import sys
import time
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING

from virtserial.cli.main import output
from virtserial.client.registry import registry_folders, running_vms
from virtserial.client.survey import look
from virtserial.guest.files.messages import printable
from virtserial.guest.files.report import amount
from virtserial.guest.words import seconds

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from virtserial.client.registry import Vm
    from virtserial.client.survey import Seen

CLEAR = "\x1b[H\x1b[2J"
NOTHING = {"0", "-", "?"}
LEAST_INTERVAL = 0.1


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --json, --names and --watch."""
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value, with --watch one a line")
    parser.add_argument("--names", action="store_true", help="for scripts: the names alone, one a line")
    parser.add_argument(
        "--watch", nargs="?", type=_interval, const=1.0, metavar="SECONDS",
        help="show it again every second, or every SECONDS, until Ctrl-C",
    )  # fmt: skip


def _interval(text: str) -> float:
    value = seconds(text)
    if value < LEAST_INTERVAL:
        raise ArgumentTypeError(f"{text!r} is too often: at least {LEAST_INTERVAL} seconds")
    return value


def show(
    options: argparse.Namespace,
    program: str,
    table: Callable[[list[Seen]], list[tuple[str, ...]]],
    document: Callable[[list[Seen]], object],
    choose: Callable[[], Sequence[Vm]] = running_vms,
) -> int:
    """Show it once, or again and again; return the exit status: 1 if a VM did not answer.

    Args:
        table: rows, the first one the heading.
        document: what --json prints.
        choose: whom to ask.
    """
    while True:
        begun = time.monotonic()
        seen = look(choose())
        with output():
            if options.json:
                print(json.dumps(document(seen)))
            elif options.names:
                sys.stdout.write("".join(f"{printable(row[0])}\n" for row in table(seen)[1:]))
            else:
                rows = f"no VM runs here: looked in {', '.join(registry_folders())}\n"
                if seen:
                    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
                    rows = text_of(fitting(table(seen), width))
                clear = CLEAR if options.watch is not None and sys.stdout.isatty() else ""
                sys.stdout.write(clear + rows)
        silent = [one for one in seen if one.error]
        for one in silent:
            print(f"{program}: {printable(one.error)}", file=sys.stderr)
        if options.watch is None:
            return 1 if silent else 0
        try:
            time.sleep(max(options.watch - (time.monotonic() - begun), 0))
        except KeyboardInterrupt:
            return 0


def fitting(rows: list[tuple[str, ...]], width: int) -> list[tuple[str, ...]]:
    """Leave out columns that say nothing, the last ones first, until the table fits a terminal's width (0: any)."""
    while width and max(map(len, text_of(rows).splitlines())) > width:
        columns = list(zip(*rows, strict=True))
        idle = [place for place, column in enumerate(columns) if place and set(column[1:]) <= NOTHING]
        if not idle:
            break
        del columns[idle[-1]]
        rows = list(zip(*columns, strict=True))
    return rows


def text_of(rows: Sequence[tuple[str, ...]]) -> str:
    """Align the columns; those whose heading ends in a space, figures, to the right."""
    safe = [tuple(printable(cell).rstrip() for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*safe, strict=True)]
    return "".join(
        "  ".join(
            cell.rjust(width) if heading.endswith(" ") else cell.ljust(width)
            for cell, width, heading in zip(row, widths, rows[0], strict=True)
        ).rstrip()
        + "\n"
        for row in safe
    )


def size(value: int) -> str:
    """A number of bytes for a cell."""
    return amount(value) if value else "0"
