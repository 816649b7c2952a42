"""Lines on standard output for whoever started this process."""

from __future__ import annotations

import os


def announce(line: str) -> None:
    """Print a line.  That nobody can read it any more is no reason not to serve."""
    try:
        print(line, flush=True)
    except OSError:
        # Else what could not be written would be tried again at exit, and fail the exit status.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
