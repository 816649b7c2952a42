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
signals = Signals(loop, lambda: not renewed.append(True))
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


STORM = """
import os
from virtserial.daemon.keeper import signals
from virtserial.loop import EventLoop

signals.RETRY_SECONDS = 0.5
loop, tries = EventLoop(), []

def renew():
    tries.append(loop.now())
    return len(tries) == 3

kept = signals.Signals(loop, renew)
while len(tries) < 3:
    os.kill(os.getpid(), signals.RENEWING)
    loop.run_once(0.001)
assert all(later - earlier >= 0.5 for earlier, later in zip(tries, tries[1:])), tries
os.kill(os.getpid(), signals.RENEWING)
loop.run_once(60)
print(len(tries))
"""


def test_a_renewal_that_has_to_wait_is_tried_again_and_a_storm_of_signals_is_one():
    """While another was under way each signal was refused, with a line in the log."""
    command = [sys.executable, "-c", STORM]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stderr, done.stdout) == ("", "4\n")
