"""A worker is not trusted: whatever it says wrongly ends it, with one line, and never the keeper."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.device_process import controller_options, port_options, wait_until
from support.embedded_guest import EmbeddedGuest
from support.lying_keeper import LIES
from support.places import ENVIRONMENT, ROOT

PROGRAM = Path(__file__).parents[1] / "support" / "lying_keeper.py"


def descriptors_of_lies(pid):
    count = 0
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += os.readlink(each) == "/dev/null"
    return count


class LyingKeeper:
    def __init__(self, folder, seed, liars):
        self._log = folder / "log"
        ready, ready_at_child = os.pipe()
        options = [*controller_options(folder), *port_options(folder, "a", 1), *port_options(folder, "b", 2)]
        words = [sys.executable, PROGRAM, str(ready_at_child), str(seed), str(liars), *options]
        path = os.pathsep.join((ENVIRONMENT["PYTHONPATH"], str(ROOT / "tests")))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                words, env={**ENVIRONMENT, "PYTHONPATH": path}, pass_fds=[ready_at_child], stderr=log
            )
        os.close(ready_at_child)
        assert os.read(ready, 1) == b""
        os.close(ready)

    @property
    def log(self):
        return self._log.read_text(errors="replace")

    def wait_for_ends(self, count):
        wait_until(lambda: self.log.count("a new one takes over") >= count, 40, "so many workers have not ended")


@pytest.fixture
def keeper_of_liars(folder):
    with contextlib.ExitStack() as stack:

        def start(seed, liars):
            keeper = LyingKeeper(folder, seed, liars)
            stack.callback(lambda: (keeper.process.kill(), keeper.process.wait()))
            return keeper

        yield start


def test_each_lie_ends_its_worker_with_one_line_and_the_next_serves(keeper_of_liars, folder):
    keeper = keeper_of_liars("each", len(LIES))
    keeper.wait_for_ends(len(LIES))
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        guest.check_port("a", folder / "a", 10_000)
    lines = keeper.log.splitlines()
    assert len(lines) == len(LIES), keeper.log
    # An empty message is an end of file.
    assert sum("said what cannot be" in line for line in lines) == len(LIES) - 1, keeper.log
    assert all(line.endswith("; a new one takes over") and len(line) < 300 for line in lines)
    assert keeper.process.poll() is None
    keeper.process.terminate()
    assert keeper.process.wait(60) == 0


@pytest.mark.timeout(120)
def test_random_lies_never_end_the_keeper(keeper_of_liars, folder):
    seed, liars = random.randrange(1 << 30), 40
    keeper = keeper_of_liars(seed, liars)
    keeper.wait_for_ends(liars)
    assert keeper.process.poll() is None, f"seed {seed}: {keeper.log}"
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        guest.check_port("a", folder / "a", 10_000)
        guest.check_port("b", folder / "b", 10_000)
    assert "Traceback" not in keeper.log, f"seed {seed}: {keeper.log}"
    wait_until(lambda: descriptors_of_lies(keeper.process.pid) <= 3, complaint=f"seed {seed}: descriptors are held")


def test_vmm_at_whose_restoration_two_workers_die_loses_its_connection(keeper_of_liars, folder):
    keeper = keeper_of_liars("restoring", 0)
    children = Path(f"/proc/{keeper.process.pid}/task/{keeper.process.pid}/children")
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        guest.check_port("a", folder / "a", 10_000)
        os.kill(int(children.read_text()), signal.SIGKILL)
        keeper.wait_for_ends(3)
        wait_until(lambda: "two workers in a row died restoring what its VMM had" in keeper.log)
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        guest.check_port("a", folder / "a", 10_000)
    assert keeper.log.count("a new one takes over") == 3
