"""Processes that are replaced or killed under a real guest that moves data: neither the guest nor the bytes notice.

VIRTSERIAL_RESTARTS and VIRTSERIAL_KILLS make it more than the few of an ordinary run (the release's: 100 and 50).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from support.guests.endless import EndlessStreams
from support.guests.exchange import exchange, socket_port
from support.places import ENVIRONMENT
from support.rounds import LONG_RUN
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient
from virtserial.rig import Guest

RESTARTS = int(os.environ.get("VIRTSERIAL_RESTARTS", "3"))
KILLS = int(os.environ.get("VIRTSERIAL_KILLS", "3"))
NAME = "org.test.stream"


@pytest.fixture
def attached(our_device, module_folder):
    options = ["-device", "virtio-serial,id=ser0", *socket_port(1, NAME, f"{module_folder}/stream")]
    with our_device.attach([*options, "-qmp", f"unix:{module_folder}/qmp,server=on,wait=off"]) as attachment:
        yield attachment


def restart(module_folder, words):
    done = subprocess.run(
        [sys.executable, "-m", "virtserial", "restart", "--monitor", f"{module_folder}/qmp", *words],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def counts(module_folder):
    with QmpClient(f"{module_folder}/qmp", 30) as monitor:
        return monitor.execute("x-virtserial-query")


@pytest.mark.timeout(150 + 10 * RESTARTS)
@pytest.mark.parametrize(
    "words", [pytest.param((), id="both"), pytest.param(("--worker",), id="worker", marks=pytest.mark.slow)]
)
def test_restarts_lose_and_double_no_byte_and_no_poller_sees_a_hang_up(attached, module_folder, words):
    with Guest(attached.arguments) as guest:
        with EndlessStreams(guest, NAME, f"{module_folder}/stream") as streams:
            streams.wait_for_progress()
            for _ in range(RESTARTS):
                restart(module_folder, words)
                streams.wait_for_progress()
            assert streams.finish()["hangups"] == 0
        found = counts(module_folder)
        assert (found["upgrades"], found["restarts"], found["doubtful-bytes"]) == (RESTARTS, 0, 0)
        assert found["keeper-restarts"] == (0 if words else RESTARTS)
        exchange(guest, {NAME: f"{module_folder}/stream"}, mib=2)
    assert "internal error" not in attached.log
    assert "takes over" not in attached.log


@pytest.mark.slow
@pytest.mark.parametrize("shared_memory", ["file", False])
def test_restarts_where_the_guest_s_memory_is_not_mapped(attached, module_folder, shared_memory):
    """It is read and written as a file, or by messages to QEMU."""
    with Guest(attached.arguments, shared_memory=shared_memory) as guest:
        with EndlessStreams(guest, NAME, f"{module_folder}/stream") as streams:
            streams.wait_for_progress()
            for words in ((), ("--worker",), ()):
                restart(module_folder, words)
                streams.wait_for_progress()
            assert streams.finish()["hangups"] == 0
        found = counts(module_folder)
        assert (found["upgrades"], found["restarts"], found["doubtful-bytes"]) == (3, 0, 0)
        exchange(guest, {NAME: f"{module_folder}/stream"}, mib=1)
    assert "internal error" not in attached.log


@pytest.mark.timeout(150 + 12 * KILLS)
def test_kills_at_random_moments_cost_no_guest_and_no_byte(attached, module_folder):
    rng = random.Random()
    with Guest(attached.arguments) as guest:
        with EndlessStreams(guest, NAME, f"{module_folder}/stream") as streams:
            streams.wait_for_progress()
            for _ in range(KILLS):
                time.sleep(rng.uniform(0, 0.5))
                worker = wait_until(lambda: attached.worker_pid, complaint="there is no worker")
                os.kill(worker, signal.SIGKILL)
                wait_until(
                    lambda killed=worker: attached.worker_pid not in (None, killed), complaint="no new worker came"
                )
                assert guest.alive, guest.diagnosis()
                streams.wait_for_progress()
            assert streams.finish()["hangups"] == 0
        found = counts(module_folder)
        assert (found["restarts"], found["doubtful-bytes"]) == (KILLS, 0)
        exchange(guest, {NAME: f"{module_folder}/stream"}, mib=2)
        if LONG_RUN:
            guest.reboot()
            exchange(guest, {NAME: f"{module_folder}/stream"}, mib=2)
    assert "internal error" not in attached.log
