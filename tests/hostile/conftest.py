"""Devices for hostile drivers, and what tests of several rooms have for hosts and guests."""

from __future__ import annotations

import pytest
from support.device_process import DeviceProcess, controller_options, port_options
from support.fetched import had

from virtserial.testing.hostile.qemu_oracle import QemuMachine


@pytest.fixture(scope="module")
def qemu_machine():
    """QEMU's own device; without a QEMU its tests are skipped, in CI they fail."""
    machine = had(QemuMachine)
    yield machine
    machine.close()


@pytest.fixture
def device(folder):
    """`virtserial serve` with two controllers: `ser0` with ports `a` and `b`, `ser1` with port `c`."""
    process = DeviceProcess(
        folder,
        *controller_options(folder), *port_options(folder, "a", 1), *port_options(folder, "b", 2),
        *controller_options(folder, "ser1"), *port_options(folder, "c", 1, "ser1"),
    )  # fmt: skip
    yield process
    if process.process.poll() is None:
        process.kill()
