"""An embedded guest whose device is moved from one process to another, and streams through it that must not notice."""

from __future__ import annotations

import os
from contextlib import suppress

from support.embedded_guest import EmbeddedGuest, Received

from virtserial.driver.console_driver import ConsoleDriver
from virtserial.driver.dma import DmaMemory
from virtserial.driver.pci_function import PciFunction
from virtserial.loop import EventLoop
from virtserial.vfio_user.client import Client
from virtserial.vfio_user.migration import VFIO_DEVICE_STATE_RESUMING as RESUMING
from virtserial.vfio_user.migration import VFIO_DEVICE_STATE_RUNNING as RUNNING
from virtserial.vfio_user.migration import VFIO_DEVICE_STATE_STOP_COPY as STOP_COPY
from virtserial.vfio_user.migration_client import MigrationClient

CONSOLE = 3


class MovingGuest(EmbeddedGuest):
    """The driver, and the VMM's part of it: its connection, its memory.

    Attributes:
        client: the connection to the process that has the device now.
        migration: the same, for migration.
    """

    def __init__(self, path, *ports):
        self.loop = EventLoop()
        self.failure = None
        self.client = Client(path)
        self.migration = MigrationClient(self.client)
        self.function = PciFunction(self.client, self.loop, CONSOLE)
        self.memory = DmaMemory(self.function)
        self.driver = ConsoleDriver(self.function, self, memory=self.memory)
        try:
            self.driver.start()
            self.run_until(lambda: set(ports) <= {port.name for port in self.driver.ports.values()})
        except BaseException:
            self.close()
            raise

    def connect(self, path):
        """Connect to another process, and give it this guest's memory."""
        client = Client(path)
        for region in self.memory.regions:
            client.dma_map(region.iova, region.size, fd=region.fd)
        return client

    def settle(self, client):
        """Go on with the device behind another connection, and close the present one."""
        self.function.replace_access(client).close()
        self.client, self.migration = client, MigrationClient(client)

    def migrate(self, path):
        """Move the device as a VMM does; returns its state as it went over."""
        self.migration.state = STOP_COPY
        data = self.migration.read_data()
        there = self.connect(path)
        target = MigrationClient(there)
        target.state = RESUMING
        target.write_data(data)
        target.state = RUNNING
        self.settle(there)
        return data

    def memory_copy(self):
        """What is in the guest's memory, by the address of each page."""
        return {
            region.iova + at: bytes(region.view[at : at + 4096])
            for region in self.memory.regions
            for at in range(0, self.memory._used, 4096)
        }


class TwoWayStream:
    """Random bytes both ways through a port whose host's end is a pair of FIFOs, which any process can open.

    Args:
        path: `path`.in and `path`.out are the FIFOs.
    """

    def __init__(self, guest, name, path, size):
        self.guest = guest
        self.received = Received(guest.port(name))
        self.up = os.urandom(size)
        self.down = os.urandom(size)
        self.sent = self.given = 0
        self.taken = bytearray()
        self.writer = os.open(f"{path}.in", os.O_RDWR | os.O_NONBLOCK)
        self.reader = os.open(f"{path}.out", os.O_RDWR | os.O_NONBLOCK)

    def close(self):
        os.close(self.writer)
        os.close(self.reader)

    def empty_host_end(self):
        """Take what waits at the host's end; returns how much."""
        count = 0
        try:
            while data := os.read(self.reader, 1 << 16):
                self.taken += data
                count += len(data)
        except BlockingIOError:
            return count

    def step(self):
        """Move a little in every direction."""
        self.sent += self.received.port.write(self.up[self.sent : self.sent + 50_000])
        with suppress(BlockingIOError):
            self.given += os.write(self.writer, self.down[self.given : self.given + 50_000])
        with suppress(BlockingIOError):
            self.taken += os.read(self.reader, 9_000)
        self.guest.loop.run_once(timeout=0.002)

    def run_to(self, count):
        """Go on until that many bytes have arrived on both sides."""

        def arrived():
            self.step()
            return min(len(self.taken), len(self.received.data)) >= count

        self.guest.run_until(arrived, 40)

    def finish(self):
        """Everything arrives, and nothing else."""
        self.run_to(len(self.up))
        assert self.taken == self.up
        assert self.received.data == self.down
