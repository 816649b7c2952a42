"""PCI registers that QEMU emulates for a controller's function: read where it leaves, set up where it arrives.

Base addresses, COMMAND, interrupt line and MSI-X control pass through QEMU to the device, so its own copy of the
configuration space has them; the MSI-X table may be QEMU's alone, and is read and stored as guest-physical memory.

The order on arrival matters: base addresses while nothing decodes them; COMMAND with memory and bus mastering on, which
the table needs; the table; MSI-X control, by which QEMU asks for interrupts; COMMAND as it was.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from virtserial.migration import pci_access
from virtserial.pci import layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.migration.pci_access import Function
    from virtserial.monitor.steps import Steps, T

CAPABILITY_MSIX: Final = 0x11
CAPABILITY_LIST: Final = 0x34
MSIX_CONTROL: Final = 2
MSIX_TABLE: Final = 4
MSIX_ENABLE: Final = 1 << 15
MAX_CAPABILITIES: Final = 48
MEMORY: Final = 1 << 1
BUS_MASTER: Final = 1 << 2
BAR_MASK: Final = 0xF
IO_BAR_MASK: Final = 0x3
BAR_64_BIT: Final = 4
BARS: Final = 6


class Space:
    """A configuration space that was read."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def number(self, register: int, size: int) -> int:
        """A register of `size` bytes."""
        return int.from_bytes(self.data[register : register + size], "little")

    @property
    def msix(self) -> int | None:
        """Where the MSI-X capability is."""
        at = self.number(CAPABILITY_LIST, 1)
        for _ in range(MAX_CAPABILITIES):
            if not at or at > len(self.data) - 12:
                return None
            if self.number(at, 1) == CAPABILITY_MSIX:
                return at
            at = self.number(at + 1, 1)
        return None

    @property
    def vectors(self) -> int:
        """How many MSI-X vectors there are."""
        return 0 if self.msix is None else (self.number(self.msix + MSIX_CONTROL, 2) & 0x7FF) + 1

    @property
    def table_address(self) -> int | None:
        """The guest-physical address of the MSI-X table; None: there is none, or no address was given to it."""
        if self.msix is None:
            return None
        table = self.number(self.msix + MSIX_TABLE, 4)
        address = self.bar_address(table & 7)
        return None if address is None else address + (table & ~7)

    @property
    def uses_intx(self) -> bool:
        """Whether interrupts are those of the line."""
        return self.msix is None or not self.number(self.msix + MSIX_CONTROL, 2) & MSIX_ENABLE

    def bar_address(self, number: int) -> int | None:
        """The guest-physical address of a BAR; None: none was given to it."""
        bar = layout.PCI_BASE_ADDRESS_0 + 4 * number
        base = self.number(bar, 4)
        address = base & ~BAR_MASK
        if base & BAR_64_BIT:
            address |= self.number(bar + 4, 4) << 32
        return address or None


def read_table(function: Function, space: Space) -> Steps[bytes]:
    """Read a function's MSI-X table; empty if it has none, or nowhere.

    Raises:
        ConfigError, QmpError: QEMU does not tell.
    """
    address = space.table_address
    if address is None:
        return b""
    return (yield from with_memory(function, space, pci_access.read_memory(address, 4 * space.vectors)))


def lower_intx(function: Function, space: Space) -> Steps[None]:
    """Have QEMU let go of the interrupt line, which the paused controller does not want any more.

    QEMU keeps it up until the guest reads or writes a register of the function.  The bus migrates with its count of
    raised lines, and on the destination nobody would take this one from it.
    """
    if not space.uses_intx:
        return
    address = space.bar_address(layout.REGISTER_BAR)
    if address is not None:
        yield from with_memory(function, space, pci_access.read_memory(address, 1))
    elif space.number(layout.PCI_COMMAND, 2) & layout.PCI_COMMAND_IO:
        # A function with the legacy interface alone; its features are read.
        port = space.number(layout.PCI_BASE_ADDRESS_0 + 4 * layout.LEGACY_BAR, 4) & ~IO_BAR_MASK
        yield from pci_access.read_port(port, 4)


def with_memory(function: Function, space: Space, steps: Steps[T]) -> Steps[T]:
    """Go through steps for which a function has to decode its memory."""
    command = space.number(layout.PCI_COMMAND, 2)
    if command & MEMORY:
        return (yield from steps)
    yield from pci_access.write(function, layout.PCI_COMMAND, 2, command | MEMORY)
    try:
        return (yield from steps)
    finally:
        yield from pci_access.write(function, layout.PCI_COMMAND, 2, command)


def with_bus_mastering(function: Function, space: Space, store: Callable[[], None]) -> Steps[None]:
    """Store something by QEMU, which it does for a bus master only."""
    command = space.number(layout.PCI_COMMAND, 2)
    wanted = command | BUS_MASTER | MEMORY
    if wanted != command:
        yield from pci_access.write(function, layout.PCI_COMMAND, 2, wanted)
    try:
        store()
    finally:
        if wanted != command:
            yield from pci_access.write(function, layout.PCI_COMMAND, 2, command)


def set_up(function: Function, space: Space, store_table: Callable[[int], None] | None) -> Steps[None]:
    """Give a function that was reset the registers of another.

    Args:
        store_table: stores the MSI-X table at an address; None: there is nothing to store.

    Raises:
        ConfigError, QmpError: QEMU refuses.
    """
    for number in range(BARS):
        bar = layout.PCI_BASE_ADDRESS_0 + 4 * number
        yield from pci_access.write(function, bar, 4, space.number(bar, 4))
    for register in (layout.PCI_CACHE_LINE_SIZE, layout.PCI_INTERRUPT_LINE):
        yield from pci_access.write(function, register, 1, space.number(register, 1))
    command = space.number(layout.PCI_COMMAND, 2)
    yield from pci_access.write(function, layout.PCI_COMMAND, 2, command)
    if space.msix is None:
        return
    address = space.table_address
    if address is not None and store_table is not None:
        yield from with_bus_mastering(function, space, partial(store_table, address))
    control = space.msix + MSIX_CONTROL
    yield from pci_access.write(function, control, 2, space.number(control, 2))
