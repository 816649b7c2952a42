"""What goes wrong at plugging, at start and at the worker's end is undone: no ghost, no keeper that ends."""

from __future__ import annotations

import contextlib
import signal

import pytest
from support.device_process import DeviceProcess, controller_options, port_options
from support.embedded_guest import EmbeddedGuest
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient
from virtserial.errors import VirtserialError


@pytest.fixture
def start(folder):
    """Starts a device process with a controller `ser0`, its port `a`, and a monitor."""
    started = []

    def start_device():
        options = [*controller_options(folder), *port_options(folder, "a")]
        started.append(DeviceProcess(folder, *options, "-qmp", f"unix:{folder}/qmp,server=on,wait=off"))
        return started[-1]

    yield start_device
    for device in started:
        if device.process.poll() is None:
            device.kill()


def test_sigchld_that_was_ignored_before_the_start_changes_nothing(start, folder):
    """As a shell or a supervisor may leave it to the programs that it starts."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        device = start()
    finally:
        signal.signal(signal.SIGCHLD, before)
    device.wait_for_new_worker(device.kill_worker())
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        guest.check_port("a", folder / "a", 10_000)
    assert device.stop() == 0
    assert "Traceback" not in device.log


@pytest.mark.parametrize(
    "plug",
    [
        {"driver": "virtio-serial-pci", "id": "x" * 300, "socket": "{folder}/late"},
        {"driver": "virtio-serial-pci", "id": "ser1", "socket": "{folder}/missing/late"},
        {"driver": "virtio-serial-pci", "id": "ser1", "socket": "{folder}/late", "max_ports": 0},
    ],
    ids=["a long id", "no folder", "no ports"],
)
def test_a_controller_that_cannot_be_plugged_leaves_no_ghost(start, folder, plug):
    device = start()
    words = {name: value.format(folder=folder) if isinstance(value, str) else value for name, value in plug.items()}
    with QmpClient(f"{folder}/qmp", 10) as monitor, contextlib.suppress(VirtserialError):
        monitor.execute("device_add", words)
    with QmpClient(f"{folder}/qmp", 10) as monitor:
        monitor.execute("device_add", {"driver": "virtio-serial-pci", "id": "later", "socket": f"{folder}/later"})
    worker = device.wait_for_new_worker(device.kill_worker())
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        guest.check_port("a", folder / "a", 10_000)
    wait_until(lambda: (folder / "later").exists())
    assert device.worker == worker, device.log
