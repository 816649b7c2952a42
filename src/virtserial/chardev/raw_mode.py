"""A terminal's raw mode: every byte passes unchanged, both ways."""

from __future__ import annotations

import termios
from typing import Any


def cfmakeraw(settings: list[Any]) -> None:
    """Change what termios.tcgetattr returned as cfmakeraw(3) does (Python's tty has it from 3.12)."""
    settings[0] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    settings[1] &= ~termios.OPOST
    settings[2] = settings[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    settings[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN | termios.ISIG)
    settings[6][termios.VMIN], settings[6][termios.VTIME] = 1, 0
