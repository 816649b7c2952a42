"""Every process a test starts is ended, every folder removed, also when it fails."""

from __future__ import annotations

import pytest
from support.device_process import DeviceProcess, controller_options, port_options


@pytest.fixture
def start(folder):
    """Starts `virtserial serve` with options."""
    started = []

    def start_device(*options, **popen):
        device = DeviceProcess(folder, *options, **popen)
        started.append(device)
        return device

    yield start_device
    for device in started:
        if device.process.poll() is None:
            device.kill()


@pytest.fixture
def device(start, folder):
    """One controller with the ports `a` and `b`."""
    return start(*controller_options(folder), *port_options(folder, "a", 1), *port_options(folder, "b", 2))
