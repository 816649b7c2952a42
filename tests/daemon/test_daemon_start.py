"""What a device process reads before it serves, by counts: benchmarks/scale.py measures times."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from support.device_process import controller_options, port_options
from support.places import ENVIRONMENT, ROOT
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient

SERVE = """
import builtins, json, sys

compiled = []

def note(source, *more, original=builtins.compile, **named):
    if isinstance(source, str):
        compiled.append(source)
    return original(source, *more, **named)

import re, typing
builtins.compile = note
from virtserial.cli import main, service

def run(serving):
    ready = list(sys.modules)
    for read in serving._keeper.workers.read_ahead:
        read()
    json.dump([ready, list(sys.modules), compiled], sys.__stdout__)
    serving._close()

service.Service.run = run
sys.exit(main.main(sys.argv[1:]))
"""
"""Starts, and prints which modules it has read when it is ready, which ahead, and which texts it has compiled."""
HEAVY = {
    "argparse", "ast", "asyncio", "base64", "dataclasses", "email", "hashlib", "inspect", "ipaddress", "shlex", "ssl",
    "subprocess", "urllib.parse",
}  # fmt: skip


@pytest.fixture
def read(folder):
    """Starts with options; returns the modules of the keeper when it is ready, those ahead, what was compiled."""

    def start(*options):
        done = subprocess.run(
            [sys.executable, "-c", SERVE, "serve", *options],
            env=ENVIRONMENT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        # What is announced comes first.
        ready, ahead, compiled = json.loads(done.stdout[done.stdout.index("[[") :])
        return set(ready), set(ahead), compiled

    return start


def test_a_start_reads_nothing_heavy(read, folder):
    ready, ahead, compiled = read(*controller_options(folder), *port_options(folder, "a"))
    assert not ready & HEAVY
    assert not ahead & HEAVY
    # Annotations are not compiled: it makes the classes of `ast`, 0.2 MiB of each process.
    assert compiled == []


def test_the_keeper_reads_what_only_clients_need_when_it_serves(read, folder):
    later = {"virtserial.monitor.registry_client", "virtserial.monitor.inventory", "virtserial.daemon.worker.worker"}
    ready, ahead, _ = read(*controller_options(folder), *port_options(folder, "a"))
    assert not ready & later
    assert later <= ahead
    assert "virtserial.monitor.server" not in ahead


def test_with_a_monitor_every_kind_of_chardev_is_read_ahead(read, folder):
    kinds = {f"virtserial.chardev.{kind}" for kind in ("hub", "null", "pipe", "pty", "serial", "stdio", "udp")}
    ready, ahead, _ = read(*controller_options(folder), "-qmp", f"unix:{folder}/qmp,server=on,wait=off")
    assert not ready & kinds
    assert kinds <= ahead


FRONTS = [f"virtserial.daemon.worker.{name}_front" for name in ("vfio_user", "vhost_user")]
"""By Controller.vhost_user."""


@pytest.mark.parametrize("driver", ["virtio-serial", "vhost-user-serial"])
def test_who_cannot_plug_reads_no_other_front(read, folder, driver):
    _, ahead, _ = read("-device", f"{driver},id=ser0,socket={folder}/s", *port_options(folder, "a"))
    vhost_user = driver == "vhost-user-serial"
    assert FRONTS[vhost_user] in ahead
    assert FRONTS[not vhost_user] not in ahead


def test_who_may_plug_reads_every_front(read, folder):
    _, ahead, _ = read(*controller_options(folder), "-qmp", f"unix:{folder}/qmp,server=on,wait=off")
    assert ahead.issuperset(FRONTS)


def test_a_start_does_not_wait_for_the_workers_code(start, folder):
    code = folder / "code"
    shutil.copytree(ROOT / "src" / "virtserial", code / "virtserial")
    worker = code / "virtserial" / "daemon" / "worker" / "worker.py"
    worker.write_text(f"open({str(folder / 'begun')!r}, 'w').close()\nimport time\ntime.sleep(600)\n")
    device = start(*controller_options(folder), environment={**os.environ, "PYTHONPATH": str(code)})
    wait_until((folder / "begun").exists)
    assert device.process.poll() is None
    assert device.stop() == 0


def test_code_that_cannot_be_read_ends_the_worker_alone(start, folder):
    code = folder / "code"
    shutil.copytree(ROOT / "src" / "virtserial", code / "virtserial")
    worker = code / "virtserial" / "daemon" / "worker" / "worker.py"
    text = worker.read_text()
    worker.write_text("raise ImportError('half installed')\n")
    options = [*controller_options(folder), "-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    device = start(*options, environment={**os.environ, "PYTHONPATH": str(code)})
    device.wait_for_log("half installed")
    worker.write_text(text)
    with QmpClient(f"{folder}/qmp", 30) as monitor:
        wait_until(lambda: not monitor.execute("x-virtserial-query")["changing"])
    assert (folder / "ser0.sock").exists()
    assert device.stop() == 0
