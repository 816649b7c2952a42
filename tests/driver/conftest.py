"""The driver beside the device in memory."""

from __future__ import annotations

import pytest
from support.driver_machine import Machine


@pytest.fixture
def machine(loop):
    machine = Machine(loop)
    yield machine
    machine.memory.driver.close()
