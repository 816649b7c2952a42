"""The 256 bytes of PCI configuration space: what a driver may write is a mask, everything else stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.errors import ConfigError
from virtserial.named_tuple import NamedTuple
from virtserial.pci import layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.memory.state import StateMemory
    from virtserial.pci.capabilities import Capability

_COMMAND_WRITABLE: Final = 0x0547
"""I/O, memory, bus master, parity error response, SERR#, interrupt disable."""


class Bar(NamedTuple):
    """A base address register.  `size` is a power of 2; a 64-bit one takes the next register too."""

    number: int
    size: int
    is_64_bit: bool
    prefetchable: bool
    is_io: bool = False


class Identity(NamedTuple):
    """The numbers by which drivers are found."""

    device_id: int
    revision: int
    class_code: int
    subsystem_vendor_id: int
    subsystem_id: int


class ConfigurationSpace:
    """Configuration space in state memory.

    Args:
        state: where its bytes live.
        identity: who the function is; the vendor is 1af4.
        bars: its base address registers.
        capabilities: its capability list, in this order.
    """

    def __init__(
        self, state: StateMemory, identity: Identity, bars: Sequence[Bar], capabilities: Sequence[Capability]
    ) -> None:
        self._data = state.bytes_at(layout.PCI_CONFIG_SPACE_SIZE)
        self._initial = bytearray(layout.PCI_CONFIG_SPACE_SIZE)
        self._writable = bytearray(layout.PCI_CONFIG_SPACE_SIZE)
        status = layout.PCI_STATUS_CAP_LIST if capabilities else 0
        for offset, size, value in (
            (layout.PCI_VENDOR_ID, 2, layout.PCI_VENDOR_ID_REDHAT_QUMRANET),
            (layout.PCI_DEVICE_ID, 2, identity.device_id),
            (layout.PCI_STATUS, 2, status),
            (layout.PCI_REVISION_ID, 1, identity.revision),
            (layout.PCI_CLASS_DEVICE, 2, identity.class_code),
            (layout.PCI_SUBSYSTEM_VENDOR_ID, 2, identity.subsystem_vendor_id),
            (layout.PCI_SUBSYSTEM_ID, 2, identity.subsystem_id),
            (layout.PCI_INTERRUPT_PIN, 1, 1),
        ):
            _store(self._initial, offset, size, value)
        for offset, size, value in (
            (layout.PCI_COMMAND, 2, _COMMAND_WRITABLE),
            (layout.PCI_CACHE_LINE_SIZE, 1, 0xFF),
            (layout.PCI_INTERRUPT_LINE, 1, 0xFF),
        ):
            _store(self._writable, offset, size, value)
        for bar in bars:
            self._add_bar(bar)
        self.capability_offsets = self._add_capabilities(capabilities)
        if not state.restored:
            self.reset()

    def _add_bar(self, bar: Bar) -> None:
        offset = layout.PCI_BASE_ADDRESS_0 + 4 * bar.number
        width = 8 if bar.is_64_bit else 4
        _store(self._initial, offset, width, bar.is_io | bar.is_64_bit << 2 | bar.prefetchable << 3)
        _store(self._writable, offset, width, (1 << 8 * width) - bar.size)

    def _add_capabilities(self, capabilities: Sequence[Capability]) -> list[int]:
        offsets = []
        link = layout.PCI_CAPABILITY_LIST
        offset = layout.PCI_FIRST_CAPABILITY
        for data, writable in capabilities:
            if offset + len(data) > layout.PCI_CONFIG_SPACE_SIZE:
                raise ConfigError(f"PCI capabilities end at {offset + len(data)}, there are 256 bytes")
            self._initial[offset : offset + len(data)] = data
            self._writable[offset : offset + len(data)] = writable
            self._initial[link] = offset
            offsets.append(offset)
            link = offset + 1
            offset = (offset + len(data) + 3) & ~3
        return offsets

    def reset(self) -> None:
        """Return every register to its value after power-on."""
        self._data[:] = self._initial

    def restore(self, data: bytes) -> None:
        """Take over all 256 bytes of an equal function.

        Raises:
            ConfigError: the function is another one: bits differ that no driver can write.
        """
        if len(data) != layout.PCI_CONFIG_SPACE_SIZE:
            raise ConfigError(f"PCI configuration space of {len(data)} bytes, it has {layout.PCI_CONFIG_SPACE_SIZE}")
        for at, (value, initial, writable) in enumerate(zip(data, self._initial, self._writable, strict=True)):
            if (value ^ initial) & ~writable:
                raise ConfigError(f"PCI configuration: byte {at:#x} is {value:#x}, this function's is {initial:#x}")
        self._data[:] = data

    def read(self, offset: int, length: int) -> bytes:
        """Return registers; bytes past the end are 0."""
        return bytes(self._data[offset : offset + length]).ljust(length, b"\0")

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Change the bits that a driver may change."""
        for at, value in enumerate(bytes(data[: layout.PCI_CONFIG_SPACE_SIZE - offset]), offset):
            mask = self._writable[at]
            self._data[at] = self._data[at] & ~mask | value & mask

    def word(self, offset: int) -> int:
        """The 16-bit register at `offset`."""
        return self._data[offset] | self._data[offset + 1] << 8

    def dword(self, offset: int) -> int:
        """The 32-bit register at `offset`."""
        return self.word(offset) | self.word(offset + 2) << 16


def _store(where: bytearray, offset: int, size: int, value: int) -> None:
    where[offset : offset + size] = value.to_bytes(size, "little")
