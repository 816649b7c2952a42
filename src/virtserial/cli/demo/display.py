"""What the demonstration shows: bars on a terminal, plain lines elsewhere; no colour where NO_COLOR is set."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from typing import NamedTuple

PLAIN_SECONDS = 1.0
DRAW_SECONDS = 0.05
BAR = "█▉▊▋▌▍▎▏"


COLOUR_CODE = re.compile(r"(\033\[[0-9;]*m)")


def cut(line: str, width: int) -> str:
    """The first `width` characters of a line; its colour codes take no room and all stay."""
    pieces = []
    for piece in COLOUR_CODE.split(line):
        is_code = piece.startswith("\033")
        pieces.append(piece if is_code else piece[: max(width, 0)])
        width -= 0 if is_code else len(piece)
    return "".join(pieces)


class Row(NamedTuple):
    """One file on its way."""

    port: str
    to_host: bool

    @property
    def arrow(self) -> str:
        """Which way it goes."""
        return "guest → host" if self.to_host else "host → guest"


class Display:
    """Follows the files and the consoles.

    Args:
        size: bytes of each file.
        rows: the files, in the order they are shown in.
        consoles: names of the consoles.
    """

    def __init__(self, size: int, rows: list[Row], consoles: list[str]) -> None:
        self._size = size
        self._moved = dict.fromkeys(rows, 0)
        self._consoles = dict.fromkeys(consoles, "")
        self._commands = dict.fromkeys(consoles, 0)
        self._width = max(len(row.port) for row in rows)
        self._terminal = sys.stdout.isatty() and os.environ.get("TERM") not in (None, "dumb")
        self._colour = self._terminal and not os.environ.get("NO_COLOR")
        self._drawn = 0
        self._next = 0.0
        self._started = time.monotonic()

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self._erase()
        print(line, flush=True)
        if self._drawn:
            self._drawn = 0
            self._draw()

    def begin(self) -> None:
        """The files begin to move."""
        self._started = time.monotonic()

    def moved(self, row: Row, count: int) -> bool:
        """A file has come so far at its receiver; whether that is farther than it was."""
        farther = count > self._moved[row]
        self._moved[row] = count
        self.update()
        return farther

    def console(self, name: str, command: str, answer: str, seconds: float) -> None:
        """A command was answered on a console."""
        self._commands[name] += 1
        self._consoles[name] = f"$ {command}  {self._dim('→')} {answer}  {self._dim(f'({seconds * 1e3:.0f} ms)')}"
        if self._terminal:
            self.update()
        elif self._commands[name] <= 4:
            print(f"{name} $ {command} -> {answer} ({seconds * 1e3:.0f} ms)", flush=True)

    def update(self, last: bool = False) -> None:
        """Draw, if it is time for it; `last`: in any case, and leave it there."""
        now = time.monotonic()
        if now < self._next and not last:
            return
        self._next = now + (DRAW_SECONDS if self._terminal else PLAIN_SECONDS)
        if self._terminal:
            self._erase()
            self._draw()
            if last:
                self._drawn = 0
        else:
            moved, size = sum(self._moved.values()), self._size * len(self._moved)
            rate = moved / 1e6 / max(now - self._started, 1e-3)
            print(f"{moved / size:5.0%} of {size / 1e6:.0f} MB moved, {rate:.0f} MB/s in all", flush=True)

    def _draw(self) -> None:
        width, _ = shutil.get_terminal_size()
        room = max(10, min(40, width - self._width - 34))
        lines = []
        for row, count in self._moved.items():
            share = min(1.0, count / self._size)
            lines.append(f"{row.port:{self._width}}  {row.arrow}  {self._bar(share, room)} {share:4.0%}")
        lines += [f"{name}  {text}" for name, text in self._consoles.items()]
        # One line each, or it could not be erased.
        sys.stdout.write("".join(f"{cut(line, width - 1)}\033[K\n" for line in lines))
        sys.stdout.flush()
        self._drawn = len(lines)

    def _bar(self, share: float, room: int) -> str:
        eighths = round(share * room * 8)
        full, part = divmod(eighths, 8)
        text = (BAR[0] * full + (BAR[8 - part] if part else "")).ljust(room)
        if not self._colour:
            return f"│{text}│"
        return f"│\033[{32 if share >= 1 else 36}m{text}\033[0m│"

    def _dim(self, text: str) -> str:
        return f"\033[2m{text}\033[0m" if self._colour else text

    def _erase(self) -> None:
        if self._drawn:
            sys.stdout.write(f"\033[{self._drawn}A\033[J")

    def table(self, head: list[str], rows: list[list[str]]) -> None:
        """Show a table; columns after the first two are right-aligned."""
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        for number, row in enumerate([head, *rows]):
            cells = [
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            line = "  ".join(cells).rstrip()
            print(f"\033[1m{line}\033[0m" if number == 0 and self._colour else line)
        sys.stdout.flush()
