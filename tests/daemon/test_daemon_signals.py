"""Signals that come while another program takes this one's place."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from support.places import ENVIRONMENT

PROGRAM = """
import os, signal, sys
from virtserial.daemon.keeper.signals import Signals
from virtserial.loop import EventLoop

loop, renewed = EventLoop(), []
signals = Signals(loop, lambda: renewed.append(True))
os.kill(os.getpid(), int(sys.argv[1]))
if sys.argv[2] == "heeded":
    loop.run_once(1)
signals.pass_on()
if sys.argv[3] == "late":
    os.kill(os.getpid(), int(sys.argv[1]))
waiting = "import signal; print(*map(int, signal.sigpending()))"
os.execv(sys.executable, [sys.executable, "-c", waiting])
"""


def waiting(number, *how):
    """Which signals the next program finds waiting."""
    command = [sys.executable, "-c", PROGRAM, str(int(number)), *how]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("heeded", ["heeded", "unheeded"])
@pytest.mark.parametrize("late", ["late", "early"])
def test_one_that_ends_the_process_ends_the_next_program(number, heeded, late):
    assert waiting(number, heeded, late) == [number]


def test_one_that_was_done_with_does_not_come_again():
    assert waiting(signal.SIGUSR2, "heeded", "early") == []
    assert waiting(signal.SIGUSR2, "unheeded", "early") == [signal.SIGUSR2]
    assert waiting(signal.SIGUSR2, "heeded", "late") == [signal.SIGUSR2]
