"""A broker, a device with its guest's driver, and the agent that brings it into a fleet: all real processes."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
from support.broker import Broker
from support.fleet_host import FleetHost
from support.waiting import wait_until


@pytest.fixture(scope="module")
def broker(module_folder):
    broker = Broker(module_folder / "broker")
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def host(module_folder, broker):
    """Host h1 with the VM alpha: ports org.example.0 (for one client), many (for several, published), and a console."""
    with FleetHost(module_folder, broker.file()) as host:
        host.join("--publish", "alpha/many")
        yield host


@pytest.fixture
def start_program():
    """Starts programs, and ends them."""
    with contextlib.ExitStack() as ending:

        def start(*words, environment, **more):
            process = subprocess.Popen(
                [sys.executable, "-m", "virtserial", *words], env=environment,
                **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
            )  # fmt: skip
            ending.callback(process.communicate)
            ending.callback(process.kill)
            return process

        yield start


@pytest.fixture
def open_port(host):
    """Opens ports over the fleet, and closes them."""
    with contextlib.ExitStack() as ending:

        def open_it(name, **options):
            stream = ending.enter_context(host.stream(name, **options))
            assert stream.wait_connected(60)
            return stream

        yield open_it
    # Until the agent has heard of it, an exclusive port is busy.
    wait_until(lambda: not host.clients("org.example.0"), 20)
