"""Waiting for what another process or thread does."""

from __future__ import annotations

import os
import time
from pathlib import Path

PATIENCE = 3 if os.environ.get("CI") else 1
"""Where every test runs at once on a machine of strangers, a limit is so many times as long."""

ACCEPTS_CONNECTIONS = 0x10000
"""linux/net.h __SO_ACCEPTCON, in the flags of /proc/net/unix."""


def wait_until(condition, seconds=60, complaint="it did not happen", step=0.005):
    """Wait for a condition; return its value.

    Args:
        seconds: after so many the test fails; PATIENCE times as many where everything runs at once.
        complaint: what the failure says, without the time.
        step: seconds between two looks.
    """
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{complaint} in {seconds} s"
        time.sleep(step)
    return value


def wait_for_socket(path):
    """Wait until a Unix socket of this path accepts connections: its file is there a moment earlier."""
    wait_until(lambda: _accepts(str(path)), complaint=f"{path}: nobody listens")


def _accepts(path):
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
        words = line.split(maxsplit=7)
        if words[-1] == path and int(words[3], 16) & ACCEPTS_CONNECTIONS:
            return True
    return False
