"""Our device in this process, driven by its legacy interface: the same cases, their registers and rings translated.

A legacy driver cannot choose a queue's size, so the queues of this device have the 16 entries of the cases.
"""

from __future__ import annotations

from virtserial.conformance.legacy_registers import LegacyRegisters
from virtserial.conformance.steps import RING_SIZE
from virtserial.pci.layout import LEGACY_BAR
from virtserial.testing.hostile.in_memory import InMemoryMachine


class LegacyMachine(InMemoryMachine):
    """Our device, nothing around it."""

    def __init__(self) -> None:
        super().__init__(has_legacy=True)
        self.name = "in memory, legacy"
        for queue in self.device.queues:
            queue.max_size = queue.record.size = RING_SIZE
        self._registers = LegacyRegisters(self._load, self._store)

    def load(self, offset: int, width: int) -> int:
        return self._registers.load(offset, width)

    def store(self, offset: int, value: int, width: int) -> None:
        self._registers.store(offset, value, width)

    def _load(self, offset: int, width: int) -> int:
        return int.from_bytes(self.function.region_read(LEGACY_BAR, offset, width), "little")

    def _store(self, offset: int, value: int, width: int) -> None:
        self.function.region_write(LEGACY_BAR, offset, value.to_bytes(width, "little"))

    def read(self, address: int, length: int) -> bytes:
        return super().read(self._registers.moved(address), length)

    def write(self, address: int, data: bytes) -> None:
        super().write(self._registers.moved(address), data)
