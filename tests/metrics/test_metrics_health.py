"""`virtserial health`: exit statuses and one line, of machines that are well, hang, are killed, or are not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.places import ENVIRONMENT
from support.programs import run
from support.serving import serve


@pytest.fixture
def registry(folder):
    return folder / "vms"


@pytest.fixture
def alpha(folder, registry):
    with serve("--name", "alpha", "-device", f"virtio-serial,socket={folder}/s", registry=registry) as process:
        yield process


def health(registry, *words):
    return run("health", *words, VIRTSERIAL_REGISTRY=str(registry))


def test_well(alpha, registry):
    assert health(registry) == (0, "well: VMs 1, ports 0, open 0, worker restarts 0\n", "")
    status, output, _ = health(registry, "--json", "alpha")
    told = json.loads(output)
    assert (status, told["status"], told["vms"][0]["well"], told["vms"][0]["pid"]) == (0, 0, True, alpha.pid)


def test_not_there(registry):
    assert health(registry) == (3, "absent: no VM runs here\n", "")
    assert health(registry, "alpha") == (3, "absent: no VM called 'alpha' runs here\n", "")
    assert health(registry, "--what")[0] == 2


def test_wait_is_until_it_runs(folder, registry):
    process = subprocess.Popen(
        [sys.executable, "-m", "virtserial", "health", "--wait", "60", "alpha"], stdout=subprocess.PIPE, text=True,
        env={**ENVIRONMENT, "VIRTSERIAL_REGISTRY": str(registry)},
    )  # fmt: skip
    with process:
        time.sleep(0.5)
        assert process.poll() is None
        with serve("--name", "alpha", "-device", f"virtio-serial,socket={folder}/s", registry=registry):
            assert process.communicate(timeout=90)[0].startswith("well: VMs 1")
            assert process.returncode == 0


def test_a_keeper_that_hangs(alpha, registry):
    os.kill(alpha.pid, signal.SIGSTOP)
    try:
        status, line, _ = health(registry)
    finally:
        os.kill(alpha.pid, signal.SIGCONT)
    assert status == 1
    assert line.startswith(f"ill: alpha: VM 'alpha' (process {alpha.pid}): no QMP greeting in 3 s")


def test_a_worker_that_hangs_is_ill(alpha, registry):
    # One that is still starting has more time.
    assert health(registry, "--wait", "60")[0] == 0
    worker = int(Path(f"/proc/{alpha.pid}/task/{alpha.pid}/children").read_text().split()[0])
    os.kill(worker, signal.SIGSTOP)
    try:
        status, line, _ = health(registry)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert status == 1
    assert line.startswith("ill: alpha: its worker has not answered for ")
    assert health(registry, "--wait", "60") == (0, "well: VMs 1, ports 0, open 0, worker restarts 0\n", "")


def test_one_that_lies_is_ill(registry):
    script = (
        "import sys; from pathlib import Path; from support.pretender import pretender\n"
        "with pretender(Path(sys.argv[1]), {}): print('ready', flush=True); sys.stdin.read()"
    )
    path = f"{Path(__file__).parents[1]}:{ENVIRONMENT['PYTHONPATH']}"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(registry)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**ENVIRONMENT, "PYTHONPATH": path},
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == b"ready\n"
        status, line, _ = health(registry)
        process.stdin.close()
    assert (status, line) == (1, "ill: pretender: VM 'pretender': its inventory makes no sense\n")
