"""Every process a test starts is ended, every folder removed, also when it fails."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from device_process import DeviceProcess


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


def port_options(folder, name, number=1, bus="ser0"):
    """A port with a listening socket of its name as the host's end."""
    return [
        *("-chardev", f"socket,id={name},path={folder}/{name},server=on,wait=off"),
        *("-device", f"virtserialport,bus={bus}.0,nr={number},chardev={name},name={name}"),
    ]


def controller_options(folder, name="ser0", more=""):
    return ["-device", f"virtio-serial,id={name},socket={folder}/{name}.sock{more}"]


@pytest.fixture
def device(start, folder):
    """One controller with the ports `a` and `b`."""
    return start(*controller_options(folder), *port_options(folder, "a", 1), *port_options(folder, "b", 2))
