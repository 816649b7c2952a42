"""Our device in this process: PCI function, console device, guest memory in a file; a host that takes everything."""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING

from virtserial.conformance.steps import MAX_PORTS, MEMORY_SIZE
from virtserial.console.device import ConsoleDevice
from virtserial.memory.region import FileRegion, MappedRegion
from virtserial.memory.state import StateMemory
from virtserial.pci.function import VirtioPciFunction
from virtserial.pci.layout import REGISTER_BAR
from virtserial.testing.memory_driver import MOMENT, StepScheduler
from virtserial.virtio.features import TRANSPORT_FEATURES, VIRTIO_F_RING_PACKED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.console.seams import HostListener
    from virtserial.errors import BackendError

FEATURES = TRANSPORT_FEATURES | VIRTIO_F_RING_PACKED
KEPT = 1 << 20
"""Bytes: a ring may offer its whole memory in each of its chains."""


class KeepingHost:
    """A host's end that takes everything, keeps the newest of it, and knows whether the guest is there."""

    connected = True
    ended = False
    exact = False
    readable = False
    wants_input = False
    output_discarded = input_discarded = backlog_size = 0
    listener: HostListener

    def __init__(self) -> None:
        self.taken = bytearray()
        self.guest_is_there = False

    def start(self) -> None:
        self.listener.host_opened()

    def writev(self, buffers: Sequence[memoryview]) -> int:
        return sum(self._take(buffer) for buffer in buffers)

    def _take(self, buffer: memoryview) -> int:
        self.taken += buffer[-KEPT:]
        del self.taken[:-KEPT]
        return len(buffer)

    def readv(self, buffers: Sequence[memoryview]) -> int:
        return 0

    def report_end(self) -> None:
        pass

    def wait_readable(self) -> bool:
        return False

    def hold_input(self) -> bool:
        return False

    def wait_writable(self) -> bool:
        return False

    def log_unconnected(self, buffers: Sequence[memoryview]) -> None: ...

    def read_backlog(self, most: int) -> bytes:
        return b""

    def restore_backlog(self, backlog: bytes) -> None: ...

    def guest_opened(self) -> None:
        self.guest_is_there = True

    def guest_closed(self) -> None:
        self.guest_is_there = False

    def guest_ready(self) -> None: ...

    def close(self) -> None:
        self.connected = False


class _NobodyListens:
    def guest_open_changed(self, number: int, is_open: bool) -> None: ...
    def host_end_closed(self, number: int) -> None: ...
    def host_end_failed(self, number: int, error: BackendError) -> None: ...


class InMemoryMachine:
    """Our device, nothing around it.

    Args:
        sealed: the memory's file cannot shrink, so the device maps it; else it reads and writes the file.
        has_legacy: the function has a legacy interface too.
    """

    def __init__(self, *, sealed: bool = True, has_legacy: bool = False) -> None:
        self.name = "in memory" if sealed else "in memory, file"
        self._fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._fd, MEMORY_SIZE)
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._memory = mmap.mmap(self._fd, MEMORY_SIZE)
        self._scheduler = StepScheduler()
        size = ConsoleDevice.state_size(MAX_PORTS) + VirtioPciFunction.state_size
        state = StateMemory(bytearray(size + -size % 8))
        self.device = ConsoleDevice(state, MAX_PORTS, FEATURES, self._scheduler, _NobodyListens())
        self.function = VirtioPciFunction(self.device, state, vectors=2, has_legacy=has_legacy)
        self._hosts = [KeepingHost(), KeepingHost()]
        for number, host in enumerate(self._hosts):
            port = self.device.add_port(number, f"org.test.{number}", is_console=number == 0, has_backend=True)
            port.attach(host)
        region = MappedRegion if sealed else FileRegion
        self.device.memory.map(region(0, MEMORY_SIZE, self._fd if sealed else os.dup(self._fd), 0))
        self.device.memory_mapped()

    def load(self, offset: int, width: int) -> int:
        return int.from_bytes(self.function.region_read(REGISTER_BAR, offset, width), "little")

    def store(self, offset: int, value: int, width: int) -> None:
        self.function.region_write(REGISTER_BAR, offset, value.to_bytes(width, "little"))

    def read(self, address: int, length: int) -> bytes:
        return self._memory[address : address + length]

    def write(self, address: int, data: bytes) -> None:
        self._memory[address : address + len(data)] = data

    def step(self) -> None:
        self._scheduler.run()

    def settle(self) -> None:
        self._scheduler.advance(MOMENT)

    def heard(self) -> bytes:
        data = b"".join(host.taken for host in self._hosts)
        for host in self._hosts:
            host.taken.clear()
        return data

    def told(self) -> bool | None:
        return not any(host.guest_is_there for host in self._hosts)

    def check(self) -> None:
        """An exception would have come out of the call that caused it."""

    def close(self) -> None:
        os.close(self._fd)
