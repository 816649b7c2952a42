"""Devices for hostile drivers, and what tests of several rooms have for hosts and guests."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from support.device_process import DeviceProcess, controller_options, port_options
from support.fetched import fetch_or_skip
from support.neighbour import Neighbour
from support.waiting import PATIENCE

from virtserial.conformance.qemu_machine import QemuMachine

LONGEST = 2 if PATIENCE > 1 else 1
"""Seconds that an attack may hold a neighbour up; where everything runs at once a turn of the loop takes longer."""


@pytest.fixture(scope="module")
def qemu_machine():
    """QEMU's own device; without a QEMU its tests are skipped, in CI they fail."""
    machine = fetch_or_skip(QemuMachine)
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


@pytest.fixture
def attack(device, folder):
    """`with attack(deaths=0):` holds that what is done inside to `ser0` harms nobody.

    The keeper lives, at most so many workers die, and the guest on `ser1` waits less than LONGEST for a byte, beside
    what one on another process waits, which tells how busy the machine is.
    """
    (folder / "elsewhere").mkdir()
    elsewhere = DeviceProcess(
        folder / "elsewhere", *controller_options(folder / "elsewhere"), *port_options(folder / "elsewhere", "d")
    )

    @contextmanager
    def watch(deaths=0):
        with (
            Neighbour(folder / "ser1.sock", "c", folder / "c") as beside,
            Neighbour(folder / "elsewhere/ser0.sock", "d", folder / "elsewhere/d") as far,
        ):
            yield
            waited, usual = beside.longest(), far.longest()
        assert device.process.poll() is None, device.log
        assert "internal error" not in device.log, device.log
        assert device.log.count("a new one takes over") <= deaths, device.log
        assert waited < LONGEST + usual, device.log

    yield watch
    elsewhere.kill()
