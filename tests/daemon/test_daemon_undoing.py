"""What cannot be plugged is undone, and what was inherited from whoever started the process does no harm."""

from __future__ import annotations

import os
import resource
import signal
from functools import partial
from itertools import chain

import pytest
from support.device_process import controller_options, port_options
from support.embedded_guest import EmbeddedGuest

from virtserial.client.qmp import QmpClient
from virtserial.errors import VirtserialError


@pytest.fixture
def monitored(start, folder):
    return start(
        *controller_options(folder), *port_options(folder, "a"), "-qmp", f"unix:{folder}/qmp,server=on,wait=off"
    )


def refused(monitor, **device):
    with pytest.raises(VirtserialError):
        monitor.execute("device_add", device)


def test_device_that_cannot_be_plugged_leaves_nothing_behind(monitored, folder):
    """Whatever the exception: a directory that is not there, no descriptor left, a name too long for a message."""
    with QmpClient(f"{folder}/qmp", 30) as monitor, EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        limits = resource.prlimit(monitored.pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{monitored.pid}/fd"))
        refused(monitor, driver="virtio-serial", id="x", socket=f"{folder}/nowhere/x.sock")
        for room in (0, 1):
            resource.prlimit(monitored.pid, resource.RLIMIT_NOFILE, (used + room, limits[1]))
            refused(monitor, driver="virtio-serial", id="x", socket=f"{folder}/x.sock")
        resource.prlimit(monitored.pid, resource.RLIMIT_NOFILE, limits)
        refused(monitor, driver="virtserialport", bus="ser0.0", id="y", name="n" * 66_000)
        monitored.wait_for_new_worker(monitored.kill_worker())
        guest.check_port("a", folder / "a", 10_000)
        monitor.execute("device_add", {"driver": "virtio-serial", "id": "x", "socket": f"{folder}/x.sock"})
        long = "i" * 300
        monitor.execute("device_add", {"driver": "virtio-serial", "id": long, "socket": f"{folder}/long.sock"})
        monitor.execute("device_add", {"driver": "virtserialport", "bus": "ser0.0", "id": "y", "name": "n"})
        monitored.wait_for_new_worker(monitored.kill_worker())
        guest.check_port("a", folder / "a", 10_000)
    assert monitored.stop() == 0


def test_sigchld_that_was_ignored_is_not(start, folder):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        device = start(*controller_options(folder), *port_options(folder, "a"))
    finally:
        signal.signal(signal.SIGCHLD, before)
    device.wait_for_new_worker(device.kill_worker())
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        guest.check_port("a", folder / "a", 10_000)
    assert device.stop() == 0
    assert "Traceback" not in device.log


def test_limit_of_descriptors_that_is_too_low_for_the_ports_is_told_at_the_start(start, folder):
    """VMMs may take three quarters: 50 of the 200 were left, and 20 hosts need 40 of them beside a worker's start."""
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (200, 200))
    few, many = ([f"{what}{number}" for number in range(1, count + 1)] for what, count in (("a", 9), ("b", 20)))
    for controller, names in (("ser0", few), ("ser1", many)):
        ports = [port_options(folder, name, number, controller) for number, name in enumerate(names, 1)]
        device = start(*controller_options(folder, controller), *chain(*ports), preexec_fn=limit)
        needed = 4 * (2 * len(names) + 32)
        warning = f"this process may have 200 descriptors, but {len(names)} ports need {needed}: "
        way_out = f"set LimitNOFILE={needed} in the unit, or run 'ulimit -n {needed}' before\n"
        assert (warning in device.log, device.log.endswith(way_out)) == (names is many,) * 2
