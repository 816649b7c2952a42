"""Waiting for what another process or thread does."""

from __future__ import annotations

import time


def wait_until(condition, seconds=20, complaint="it did not happen", step=0.005):
    """Wait for a condition; return its value.

    Args:
        seconds: after so many the test fails.
        complaint: what the failure says, without the time.
        step: seconds between two looks.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{complaint} in {seconds} s"
        time.sleep(step)
    return value
