"""Every process a test starts is ended, every folder removed, also when it fails."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from device_process import DeviceProcess, controller_options, port_options


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "daemon" and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(45))


@pytest.fixture
def folder():
    """A short path: sockets' paths are 107 bytes at most, which pytest's own folders can be too long for."""
    with tempfile.TemporaryDirectory(prefix="vs-") as path:
        yield Path(path)


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
