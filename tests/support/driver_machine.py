"""The project's device in memory on an event loop, with the driver beside it."""

from __future__ import annotations

import time

from support.driver_devices import BufferEnd, QuietEvents

from virtserial.console.device import ConsoleDevice
from virtserial.memory.state import StateMemory
from virtserial.testing.memory_driver import MemoryDriver
from virtserial.virtio.features import TRANSPORT_FEATURES


class Machine:
    """A device on the loop, with the driver beside it."""

    def __init__(self, loop, listener=None):
        self.loop = loop
        state = StateMemory(bytearray(ConsoleDevice.state_size(8)))
        self.device = ConsoleDevice(state, 8, TRANSPORT_FEATURES, loop, QuietEvents())
        self.memory = MemoryDriver(self.device, loop, listener)
        self.memory.driver.start()

    def plug(self, number=1, name="org.example", is_console=False):
        host = BufferEnd()
        port = self.device.add_port(number, name, is_console, True)
        port.attach(host)
        self.until(lambda: number in self.memory.driver.ports and self.memory.driver.ports[number].host_connected)
        return self.memory.driver.ports[number], port, host

    def until(self, condition, seconds=60):
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, "it did not come to that"
            self.loop.run_once(timeout=0.01)
