"""A VMM on a controller's vfio-user socket, with memory for its driver."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import time
from typing import TYPE_CHECKING, Final

from virtserial.conformance.driver import PATIENCE
from virtserial.conformance.legacy_registers import LegacyRegisters
from virtserial.conformance.registers import RegisterMap
from virtserial.conformance.steps import BAR, MEMORY_SIZE, STATUS
from virtserial.console.wire import VIRTIO_ID_CONSOLE
from virtserial.driver.pci_capabilities import check_identity, find_capabilities
from virtserial.errors import PeerError
from virtserial.pci.layout import LEGACY_BAR, NOTIFY_AREA, PCI_BASE_ADDRESS_0, PCI_COMMAND, REGISTER_BAR
from virtserial.vfio_user.client import Client
from virtserial.vfio_user.wire import VFIO_PCI_CONFIG_REGION_INDEX

if TYPE_CHECKING:
    from pathlib import Path

QUIET: Final = 0.05
"""Seconds: longer than a device waits for a map that may be on its way (daemon.worker.guest_device.FAULT_GRACE)."""
LOOKS: Final = 8
"""Round trips after that: each is at least one turn of the worker's loop, and no case has work for more turns."""


class _MemoryByMessages:
    """Serves DMA_READ and DMA_WRITE (vfio_user.client.DmaHandler).

    Attributes:
        asked: how often the device has asked.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self.asked = 0

    def read(self, iova: int, length: int) -> bytes:
        return self._memory[self._range(iova, length)]

    def write(self, iova: int, data: bytes) -> None:
        self._memory[self._range(iova, len(data))] = data

    def _range(self, iova: int, length: int) -> slice:
        self.asked += 1
        if iova + length > MEMORY_SIZE:
            raise PeerError(f"{length} bytes at {iova:#x}: there is no memory")
        return slice(iova, iova + length)


class Vmm:
    """A VMM on a controller's socket, with memory for its driver.

    Args:
        shared: the device gets the memory's file; else it asks for every byte by messages.
    """

    def __init__(self, path: Path, *, shared: bool = True) -> None:
        self._fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._fd, MEMORY_SIZE)
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._memory = mmap.mmap(self._fd, MEMORY_SIZE)
        self._by_messages = _MemoryByMessages(self._memory)
        self._client = Client(path, timeout=PATIENCE, dma_handler=self._by_messages)
        self._client.dma_map(0, MEMORY_SIZE, fd=self._fd if shared else None)
        for offset, value in (
            (PCI_BASE_ADDRESS_0 + 4 * REGISTER_BAR, BAR.to_bytes(8, "little")),
            (PCI_COMMAND, (7).to_bytes(2, "little")),
        ):
            self._client.region_write(VFIO_PCI_CONFIG_REGION_INDEX, offset, value)
        try:
            self._find_registers()
        except BaseException:
            self.close()
            raise

    def _find_registers(self) -> None:
        capabilities = find_capabilities(self._client, VIRTIO_ID_CONSOLE)
        self._registers = RegisterMap(capabilities, self._read_register, self._write_register)

    def _read_register(self, bar: int, offset: int, width: int) -> int:
        return int.from_bytes(self._client.region_read(bar, offset, width), "little")

    def _write_register(self, bar: int, offset: int, value: int, width: int) -> None:
        self._client.region_write(bar, offset, value.to_bytes(width, "little"))

    def read(self, address: int, length: int) -> bytes:
        return self._memory[address : address + length]

    def write(self, address: int, data: bytes) -> None:
        self._memory[address : address + len(data)] = data

    def load(self, offset: int, width: int) -> int:
        return self._read_register(*self._registers.place(offset), width)

    def store(self, offset: int, value: int, width: int) -> None:
        # QEMU posts writes to doorbells and waits for the others.
        posted = offset >= NOTIFY_AREA
        bar, place = self._registers.place(offset)
        self._client.region_write(bar, place, value.to_bytes(width, "little"), posted)

    def step(self) -> None:
        self.load(STATUS, 1)

    def settle(self) -> None:
        asked = -1
        while asked != self._by_messages.asked:
            # While it asks for memory, a look may be answered in the middle of a turn.
            asked = self._by_messages.asked
            end = time.monotonic() + QUIET
            while (left := end - time.monotonic()) > 0:
                select.select([self._client], [], [], left)
                self._client.poll()
            for _ in range(LOOKS):
                self.step()

    def told(self) -> bool | None:
        return None

    def check(self) -> None: ...

    def close(self) -> None:
        self._client.close()
        self._memory.close()
        os.close(self._fd)


class LegacyVmm(Vmm):
    """The same, with a driver of the legacy interface."""

    def _find_registers(self) -> None:
        if not check_identity(self._client, VIRTIO_ID_CONSOLE):
            raise PeerError("device: it has no legacy interface")
        self._legacy = LegacyRegisters(
            lambda offset, width: self._read_register(LEGACY_BAR, offset, width),
            lambda offset, value, width: self._write_register(LEGACY_BAR, offset, value, width),
        )

    def load(self, offset: int, width: int) -> int:
        return self._legacy.load(offset, width)

    def store(self, offset: int, value: int, width: int) -> None:
        self._legacy.store(offset, value, width)

    def read(self, address: int, length: int) -> bytes:
        return super().read(self._legacy.moved(address), length)

    def write(self, address: int, data: bytes) -> None:
        super().write(self._legacy.moved(address), data)
