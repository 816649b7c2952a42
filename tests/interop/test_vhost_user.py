"""QEMU's vhost-user-test-device-pci with a real Linux guest, whose PCI function is QEMU's and whose queues are ours.

VIRTSERIAL_RESTARTS and VIRTSERIAL_KILLS make it more than the few of an ordinary run (the release's: 100 and 50);
VIRTSERIAL_FRONT=vhost-user runs this folder's suites over vhost-user in the place of vfio-user.
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
from support.guests.host_device import VhostUserDevice
from support.guests.host_end import HostEnd
from support.places import ENVIRONMENT
from support.rounds import rounds
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient
from virtserial.rig import Guest

RESTARTS = int(os.environ.get("VIRTSERIAL_RESTARTS", "2"))
KILLS = int(os.environ.get("VIRTSERIAL_KILLS", "3"))
PORTS = [f"org.test.{number}" for number in range(1, 31)]


@pytest.fixture(scope="module")
def attached(module_folder):
    options = ["-device", "virtio-serial,id=ser0", "-qmp", f"unix:{module_folder}/qmp,server=on,wait=off"]
    options += ["-chardev", f"socket,id=con,path={module_folder}/con,server=on,wait=off"]
    options += ["-device", "virtconsole,chardev=con,nr=0,bus=ser0.0"]
    for number, name in enumerate(PORTS, 1):
        options += socket_port(number, name, f"{module_folder}/{name}", "ser0")
    with VhostUserDevice().attach(options) as attachment:
        yield attachment


@pytest.fixture(scope="module")
def hosts(attached, module_folder):
    """Somebody at each port from the start, but at the first two."""
    ends = [HostEnd(f"{module_folder}/{name}") for name in PORTS[2:]]
    yield ends
    for end in ends:
        end.close()


@pytest.fixture(scope="module")
def guest(attached, hosts):
    with Guest(attached.arguments) as guest:
        yield guest


@pytest.fixture
def counts(module_folder):
    def ask():
        with QmpClient(f"{module_folder}/qmp", 30) as monitor:
            return monitor.execute("x-virtserial-query")

    return ask


@pytest.fixture
def streams(guest, module_folder):
    """Both directions of the first port, busy; what an earlier test has left is gone."""
    guest.check("rm -f /tmp/stop")
    with EndlessStreams(guest, PORTS[0], f"{module_folder}/{PORTS[0]}") as streams:
        streams.wait_for_progress()
        yield streams


def test_all_ports_are_connected_at_boot(guest, attached):
    guest.check(
        "for i in $(seq 400); do c=$(cat /sys/kernel/debug/virtio-ports/vport*p* | grep -c 'host_connected: 1'); "
        '[ "$c" -ge 29 ] && exit 0; sleep 0.1; done; echo "$c connected"; exit 1'
    )
    assert "internal error" not in attached.log


def test_bytes_both_ways(guest, attached, module_folder):
    exchange(guest, {name: f"{module_folder}/{name}" for name in PORTS[:2]}, mib=rounds(2, 8))


def test_a_paused_vm_goes_on(guest, attached, streams):
    for _ in range(3):
        guest.qmp("stop")
        time.sleep(0.2)
        guest.qmp("cont")
        streams.wait_for_progress()
    assert streams.finish()["hangups"] == 0
    assert "internal error" not in attached.log


@pytest.mark.timeout(150 + 12 * KILLS)
def test_kills_cost_no_guest_and_no_byte(guest, attached, streams, counts):
    before = counts()["restarts"]
    for _ in range(KILLS):
        time.sleep(random.uniform(0, 0.5))
        worker = wait_until(lambda: attached.worker_pid, complaint="there is no worker")
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda killed=worker: attached.worker_pid not in (None, killed), complaint="no new worker came")
        assert guest.alive, guest.diagnosis()
        streams.wait_for_progress()
    assert streams.finish()["hangups"] == 0
    found = counts()
    assert (found["restarts"] - before, found["doubtful-bytes"]) == (KILLS, 0)


@pytest.mark.timeout(150 + 10 * RESTARTS)
@pytest.mark.parametrize("words", [(), ("--worker",)], ids=["both", "worker"])
def test_restarts_lose_and_double_no_byte(streams, module_folder, counts, words):
    for _ in range(RESTARTS):
        done = subprocess.run(
            [sys.executable, "-m", "virtserial", "restart", "--monitor", f"{module_folder}/qmp", *words],
            env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        streams.wait_for_progress()
    assert streams.finish()["hangups"] == 0
    assert counts()["doubtful-bytes"] == 0


def test_a_reboot_begins_anew(guest, attached, module_folder):
    guest.reboot()
    exchange(guest, {PORTS[1]: f"{module_folder}/{PORTS[1]}"}, mib=2)
    assert "internal error" not in attached.log
