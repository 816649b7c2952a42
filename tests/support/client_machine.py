"""Processes of `virtserial` for the tests of the client library, and waiting for what they do."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from contextlib import contextmanager

from support.places import ENVIRONMENT

READY_TIME = 90


@contextmanager
def running(*words, environment=ENVIRONMENT):
    """A `virtserial` command that is ready; ended afterwards."""
    ready, ready_at_child = os.pipe()
    command = [sys.executable, "-m", "virtserial", *words, "--ready-fd", str(ready_at_child)]
    process = subprocess.Popen(
        command, env=environment, pass_fds=[ready_at_child],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(ready_at_child)
    try:
        assert select.select([ready], [], [], READY_TIME)[0], "it is not ready"
        yield process
    finally:
        os.close(ready)
        process.terminate()
        try:
            process.wait(READY_TIME)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
