"""The part of a saved state that a PCI function adds: its configuration space, registers and MSI-X vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.errors import ConfigError
from virtserial.pci.layout import (
    PCI_CONFIG_SPACE_SIZE,
    VIRTIO_MSI_NO_VECTOR,
    VIRTIO_PCI_ISR_CONFIG,
    VIRTIO_PCI_ISR_QUEUE,
)
from virtserial.state.fields import encode

if TYPE_CHECKING:
    from virtserial.pci.function import VirtioPciFunction
    from virtserial.state.fields import Fields

U16: Final = 0xFFFF
U32: Final = 0xFFFFFFFF


class PciState:
    """Saves and loads a function (state.device_state.FrontState)."""

    def __init__(self, function: VirtioPciFunction) -> None:
        self._function = function

    @property
    def size_limit(self) -> int:
        function = self._function
        return 4096 + len(function.msix_table) * 4 // 3 + 8 * function.interrupts.vectors

    def reset(self) -> None:
        self._function.reset_registers()

    def save(self) -> dict[str, object]:
        function = self._function
        common = function.common.record
        return {
            "vectors": function.interrupts.vectors,
            "pci": {
                "configuration": encode(function.configuration.read(0, PCI_CONFIG_SPACE_SIZE)),
                "device_feature_select": common.device_feature_select,
                "driver_feature_select": common.driver_feature_select,
                "config_vector": common.config_vector,
                "queue_select": common.queue_select,
                "isr": function.record.isr,
                "legacy": function.has_legacy,
                "modern": function.has_modern,
                "msix_by_messages": function.sends_messages,
                "msix_table": encode(function.msix_table),
                "msix_pending": sorted(function.pending_vectors),
            },
        }

    def check(self, state: Fields) -> None:
        ours = self._function.interrupts.vectors
        vectors = state.number("vectors", U16)
        if vectors != ours:
            raise state.refuse("vectors", f"is {vectors}, this device has {ours}")
        registers, by_messages = state.group("pci"), self._function.sends_messages
        if registers.flag("msix_by_messages", default=False) != by_messages:
            raise registers.refuse(
                "msix_by_messages",
                f"is {not by_messages} there and {by_messages} here: both sides need the same unplug=",
            )

        for name, words, here in (
            ("legacy", "disable-legacy", self._function.has_legacy),
            ("modern", "disable-modern", self._function.has_modern),
        ):
            # States of older programs have the modern interface alone.
            there = registers.flag(name, default=name == "modern")
            if there != here:
                raise registers.refuse(name, f"is {there} there and {here} here: both sides need the same {words}=")

    def load(self, state: Fields) -> None:
        function = self._function
        vectors = function.interrupts.vectors
        for queue in function.device.queues:
            if vectors <= queue.vector != VIRTIO_MSI_NO_VECTOR:
                raise ConfigError(f"saved state: queue {queue.index}: vector is {queue.vector}, there are {vectors}")
        registers = state.group("pci")
        common = function.common.record
        common.device_feature_select = registers.number("device_feature_select", U32)
        common.driver_feature_select = registers.number("driver_feature_select", U32)
        config_vector = registers.number("config_vector", U16)
        if vectors <= config_vector != VIRTIO_MSI_NO_VECTOR:
            raise registers.refuse("config_vector", f"is {config_vector}, there are {vectors}")
        common.config_vector = config_vector
        common.queue_select = registers.number("queue_select", U16)
        function.record.isr = registers.number("isr", VIRTIO_PCI_ISR_QUEUE | VIRTIO_PCI_ISR_CONFIG)
        table = registers.data("msix_table", len(function.msix_table))
        if len(table) != len(function.msix_table):
            ours = len(function.msix_table)
            raise registers.refuse("msix_table", f"has {len(table)} bytes, this function's has {ours}")
        function.msix_table[:] = table
        pending = registers.numbers("msix_pending", vectors - 1, vectors)
        function.configuration.restore(registers.data("configuration", PCI_CONFIG_SPACE_SIZE))
        function.registers_restored(pending)
