"""The PCI function of a virtio device, as a VFIO device sees it: regions to read and write, interrupts to give.

This is virtserial.vfio_user.device.VfioDevice but for guest memory, which is not the function's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.errors import ConfigError
from virtserial.memory.state import U8, Record
from virtserial.pci import layout
from virtserial.pci.capabilities import (
    PCI_CFG_CAP_BAR,
    PCI_CFG_CAP_DATA,
    PCI_CFG_CAP_LENGTH,
    PCI_CFG_CAP_OFFSET,
    msix_capability,
    virtio_capabilities,
)
from virtserial.pci.common import CommonConfiguration, CommonRecord
from virtserial.pci.configuration import Bar, ConfigurationSpace, Identity
from virtserial.pci.interrupts import Interrupts
from virtserial.pci.legacy import LegacyRegisters, bar_size
from virtserial.pci.msix import MsixMessages
from virtserial.virtio.ring.record import VECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from virtserial.accounting import Account
    from virtserial.memory.state import StateMemory
    from virtserial.pci.capabilities import Capability
    from virtserial.pci.msix import MessageWriter
    from virtserial.virtio.device import VirtioDevice

# Numbers of <linux/vfio.h>; vfio_user/ has them too, but comes after this room.
VFIO_PCI_CONFIG_REGION_INDEX: Final = 7
VFIO_PCI_NUM_REGIONS: Final = 9
VFIO_PCI_INTX_IRQ_INDEX: Final = 0
VFIO_PCI_MSIX_IRQ_INDEX: Final = 2
VFIO_PCI_NUM_IRQS: Final = 5
_REGION_READ_WRITE: Final = 0b11
_IRQ_EVENTFD: Final = 0b001
_IRQ_INTX: Final = 0b111  # EVENTFD, MASKABLE, AUTOMASKED
_HIDDEN_MSIX: Final = b"\x0c" + bytes(9)
"""What a hidden MSI-X capability shows behind its link, as a vendor-specific one: its length of 12, and nothing."""


class FunctionRecord(Record):
    """What the function keeps in state memory beside its registers."""

    __slots__ = ()
    SIZE = 8
    isr = U8(0)
    by_messages = U8(1)
    msix_hidden = U8(2)


class VirtioPciFunction:
    """A virtio device behind PCI registers; it makes itself the device's transport.

    Args:
        device: the device.
        state: where registers live, at least `state_size` bytes; the device may have its own in the same memory.
        vectors: MSI-X vectors, 0 to 2048; with 0 there is only INTx.
        message_writer: sends MSI-X messages itself to a client that cannot delete a device with MSI-X (msix.py), which
            takes `MsixMessages.state_size` more of the state; None: every client gives eventfds.
        account: gets what interrupts write; None: nobody counts.
        class_code: base class and subclass.
        has_legacy: there is a legacy interface, by which drivers from before virtio 1.0 use the device (pci/legacy.py).
        has_modern: there is a modern interface.  A driver may change to the other one after a reset.
        page_per_vq: every queue has a page for its doorbell.

    Attributes:
        msix_table: the MSI-X table as it was written.
        ignored_accesses: how many reads and writes named no register.

    Raises:
        ConfigError: too many vectors or queues.
    """

    num_regions = VFIO_PCI_NUM_REGIONS
    num_irqs = VFIO_PCI_NUM_IRQS
    doorbell_region = layout.REGISTER_BAR

    state_size = layout.PCI_CONFIG_SPACE_SIZE + CommonRecord.SIZE + FunctionRecord.SIZE

    def __init__(
        self,
        device: VirtioDevice,
        state: StateMemory,
        *,
        vectors: int,
        message_writer: MessageWriter | None = None,
        account: Account | None = None,
        class_code: int = layout.PCI_CLASS_COMMUNICATION_OTHER,
        has_legacy: bool = False,
        has_modern: bool = True,
        page_per_vq: bool = False,
    ) -> None:
        if not 0 <= vectors <= layout.MAX_VECTORS:
            raise ConfigError(f"vectors={vectors}: MSI-X has 0 to {layout.MAX_VECTORS} vectors")
        if device.num_queues > layout.MAX_QUEUES:
            raise ConfigError(f"{device.num_queues} queues: the notification area has room for {layout.MAX_QUEUES}")
        self.device = device
        self.has_legacy, self.has_modern = has_legacy, has_modern
        self.interrupts = Interrupts(vectors, account)
        self.ring_doorbell = device.notify
        self.ring_lone_doorbell = device.notify_alone
        doorbells = layout.DoorbellLayout.of(device.num_queues, page_per_vq=page_per_vq)
        self.doorbell_offsets = {
            layout.NOTIFY_AREA + doorbells.stride * index: index
            for index in range(device.num_queues if has_modern else 0)
        }
        self._other_ignored = 0
        self._msix = layout.MsixLayout.of(vectors)
        capabilities: list[Capability] = []
        bars: list[Bar] = []
        if has_legacy:
            io_size = bar_size(device, vectors)
            bars.append(Bar(layout.LEGACY_BAR, io_size, is_64_bit=False, prefetchable=False, is_io=True))
        if has_modern:
            capabilities += virtio_capabilities(doorbells)
            bars.append(Bar(layout.REGISTER_BAR, doorbells.bar_size, is_64_bit=True, prefetchable=True))
        if vectors:
            capabilities.append(msix_capability(self._msix))
            bars.append(Bar(layout.MSIX_BAR, self._msix.bar_size, is_64_bit=False, prefetchable=False))
        identity = _identity(device.device_id, class_code, has_legacy=has_legacy)
        self.configuration = ConfigurationSpace(state, identity, bars, capabilities)
        offsets = self.configuration.capability_offsets
        self._window = offsets[4] if has_modern else 0
        self._window_data = self._window + PCI_CFG_CAP_DATA
        self._msix_flags = offsets[-1] + layout.PCI_MSIX_FLAGS if vectors else None
        self.common = CommonConfiguration(state, device, vectors, self._driver_reset)
        self.record = FunctionRecord(state)
        self.messages: MsixMessages | None = None
        # A VMM that gives eventfds has the MSI-X table that counts; this one only reads back what was written.
        self.msix_table: bytearray | memoryview = bytearray(self._msix.bar_size)
        if message_writer is not None and vectors:
            self.messages = MsixMessages(state, self._msix, message_writer)
            self.msix_table = self.messages.table
        self._legacy: LegacyRegisters | None = None
        if has_legacy:
            self._legacy = LegacyRegisters(device, self.common, lambda: self._by_vectors, self._take_isr)
        self._region_sizes = {bar.number: bar.size for bar in bars}
        self._region_sizes[VFIO_PCI_CONFIG_REGION_INDEX] = layout.PCI_CONFIG_SPACE_SIZE
        self._irq_counts = {VFIO_PCI_INTX_IRQ_INDEX: 1, VFIO_PCI_MSIX_IRQ_INDEX: vectors}
        self._by_vectors = self._intx_held = False
        self._used_messages: MsixMessages | None = None
        self._interrupt_mode_changed()
        device.transport = self

    @property
    def ignored_accesses(self) -> int:
        """How many accesses named no register."""
        refused = self.messages.refused if self.messages is not None else 0
        legacy = self._legacy.ignored_writes if self._legacy is not None else 0
        return self._other_ignored + self.common.ignored_writes + legacy + refused

    # Whose the MSI-X table is

    def client_negotiated(self, *, deletes_only_without_msix: bool) -> None:
        """A client has come; it knows nothing of the function yet (VfioDevice).

        One that aborts when it deletes a device with MSI-X - QEMU - finds a vendor-specific capability in its place
        until it resets the function, which it does once it has read the list.  From then on the guest sees MSI-X.
        """
        hidden = self.messages is not None and deletes_only_without_msix
        self.record.by_messages = self.record.msix_hidden = hidden
        self._interrupt_mode_changed()

    @property
    def sends_messages(self) -> bool:
        """Whether the client gets MSI-X by messages: the table that counts is this one."""
        return bool(self.record.by_messages)

    @property
    def pending_vectors(self) -> set[int]:
        """MSI-X vectors whose message is still to be sent."""
        return self.interrupts.pending if self._used_messages is None else self._used_messages.pending

    # Transport: what the device calls

    def queue_interrupt(self, index: int) -> None:
        """Tell the driver that a queue has used buffers."""
        if self._by_vectors:
            record = self.device.queues[index].record
            self._signal_vector(record.state.u16[(record.base + VECTOR) >> 1])
        else:
            self._raise_isr(layout.VIRTIO_PCI_ISR_QUEUE)

    def config_interrupt(self) -> None:
        """Tell the driver that the configuration or the status has changed."""
        if self._by_vectors:
            self._signal_vector(self.common.config_vector)
        else:
            self._raise_isr(layout.VIRTIO_PCI_ISR_CONFIG)

    def _raise_isr(self, bit: int) -> None:
        self.record.isr |= bit
        self._drive_intx()

    def _drive_intx(self) -> None:
        disabled = self.configuration.word(layout.PCI_COMMAND) & layout.PCI_COMMAND_INTX_DISABLE
        wanted = self.record.isr != 0 and not disabled and not self._by_vectors
        self.interrupts.set_intx(wanted and not self._intx_held)

    def hold_intx(self, held: bool) -> None:
        """Let the interrupt line be low, whatever the ISR says, until it is no longer held."""
        self._intx_held = held
        self._drive_intx()

    def _interrupt_mode_changed(self) -> None:
        """Vectors are used once the driver has enabled MSI-X, or the VMM has given some vector an eventfd."""
        flags = 0 if self._msix_flags is None else self.configuration.word(self._msix_flags)
        enabled = bool(flags & layout.PCI_MSIX_FLAGS_ENABLE)
        self._by_vectors = enabled or self.interrupts.uses_msix
        # A client that gives eventfds has the table, whatever else is known of it.
        by_messages = self.record.by_messages and not self.interrupts.uses_msix
        self._used_messages = self.messages if by_messages else None
        if self.messages is not None:
            master = self.configuration.word(layout.PCI_COMMAND) & layout.PCI_COMMAND_MASTER
            masked = flags & layout.PCI_MSIX_FLAGS_MASKALL
            self.messages.enable(bool(by_messages and enabled and master and not masked))
        self._signal_vector = (self._used_messages or self.interrupts).signal_vector
        self._drive_intx()

    # VfioDevice: regions

    def region_size(self, index: int) -> int:
        return self._region_sizes.get(index, 0)

    def region_flags(self, index: int) -> int:
        return _REGION_READ_WRITE if self.region_size(index) else 0

    def region_read(self, index: int, offset: int, length: int) -> bytes:
        """Return `length` bytes of a region; what is no register reads as 0."""
        if index == layout.REGISTER_BAR:
            return self._read_registers(offset, length)
        if index == VFIO_PCI_CONFIG_REGION_INDEX:
            return self._read_configuration(offset, length)
        if index == layout.MSIX_BAR:
            return self._read_msix(offset, length)
        if index == layout.LEGACY_BAR and self._legacy is not None:
            return self._legacy.read(offset, length)
        return bytes(length)

    def region_write(self, index: int, offset: int, data: bytes | memoryview) -> None:
        """Write to a region; what is no register is ignored and counted."""
        if index == layout.REGISTER_BAR:
            self._write_registers(offset, data)
        elif index == layout.LEGACY_BAR and self._legacy is not None:
            self._legacy.write(offset, data)
        elif index == VFIO_PCI_CONFIG_REGION_INDEX:
            self._write_configuration(offset, data)
        elif index == layout.MSIX_BAR:
            end = min(offset + len(data), self._msix.pba_offset)
            if offset < end and self.messages is not None:
                self.messages.write_table(offset, data[: end - offset])
            elif offset < end:
                self.msix_table[offset:end] = data[: end - offset]

    def _read_registers(self, offset: int, length: int) -> bytes:
        area, at = offset & ~(layout.AREA_SIZE - 1), offset & (layout.AREA_SIZE - 1)
        if area == layout.COMMON_AREA:
            return self.common.read(at, length)
        if area == layout.DEVICE_AREA and at < self.device.config_size:
            return self.device.read_config(at, length)
        if area == layout.ISR_AREA and at == 0 and length:
            return self._take_isr().to_bytes(1, "little").ljust(length, b"\0")
        self._other_ignored += 1
        return bytes(length)

    def _take_isr(self) -> int:
        """4.1.4.5.1: reading it resets it and lets go of the interrupt line."""
        isr: int = self.record.isr
        self.record.isr = 0
        self._drive_intx()
        return isr

    def _write_registers(self, offset: int, data: bytes | memoryview) -> None:
        area, at = offset & ~(layout.AREA_SIZE - 1), offset & (layout.AREA_SIZE - 1)
        if area == layout.COMMON_AREA:
            self.common.write(at, data)
        elif area == layout.DEVICE_AREA and at < self.device.config_size:
            self.device.write_config(at, bytes(data))
        elif len(data) == 2 and offset in self.doorbell_offsets:
            self.ring_doorbell(self.doorbell_offsets[offset])
        else:
            self._other_ignored += 1

    def _read_msix(self, offset: int, length: int) -> bytes:
        msix = self._msix
        bar = bytearray(self.msix_table)
        pending = sum(1 << vector for vector in self.pending_vectors)
        bar[msix.pba_offset : msix.pba_offset + msix.pba_size] = pending.to_bytes(msix.pba_size, "little")
        return bytes(bar[offset : offset + length])

    def _read_configuration(self, offset: int, length: int) -> bytes:
        if access := self._window_access(offset, length):
            self.configuration.write(self._window_data, self.region_read(*access))
        data = bytearray(self.configuration.read(offset, length))
        if self.record.msix_hidden and self._msix_flags is not None:
            whole = bytearray(self.configuration.read(0, layout.PCI_CONFIG_SPACE_SIZE))
            whole[self._msix_flags - layout.PCI_MSIX_FLAGS] = layout.PCI_CAP_ID_VNDR
            whole[self._msix_flags : self._msix_flags + len(_HIDDEN_MSIX)] = _HIDDEN_MSIX
            data = whole[offset : offset + length]
        status = layout.PCI_STATUS - offset
        if self.record.isr and not self._by_vectors and 0 <= status < length:
            data[status] |= layout.PCI_STATUS_INTERRUPT
        return bytes(data)

    def _write_configuration(self, offset: int, data: bytes | memoryview) -> None:
        self.configuration.write(offset, data)
        if access := self._window_access(offset, len(data)):
            index, at, length = access
            self.region_write(index, at, self.configuration.read(self._window_data, length))
        self._interrupt_mode_changed()

    def _window_access(self, offset: int, length: int) -> tuple[int, int, int] | None:
        """The region, offset and length that VIRTIO_PCI_CAP_PCI_CFG is set to; None: it is set to nothing sound, or
        this access to the configuration space does not reach its data.

        4.1.4.9.2: the driver writes a length of 1, 2 or 4, and an offset that is a multiple of it.
        """
        if not self._window or offset >= self._window_data + 4 or offset + length <= self._window_data:
            return None
        index = self.configuration.word(self._window + PCI_CFG_CAP_BAR) & 0xFF
        at = self.configuration.dword(self._window + PCI_CFG_CAP_OFFSET)
        length = self.configuration.dword(self._window + PCI_CFG_CAP_LENGTH)
        is_bar = index in (layout.MSIX_BAR, layout.REGISTER_BAR)
        if not is_bar or length not in (1, 2, 4) or at % length or at + length > self.region_size(index):
            self._other_ignored += 1
            return None
        return index, at, length

    # VfioDevice: interrupts

    def irq_count(self, index: int) -> int:
        return self._irq_counts.get(index, 0)

    def irq_flags(self, index: int) -> int:
        if not self.irq_count(index):
            return 0
        return _IRQ_INTX if index == VFIO_PCI_INTX_IRQ_INDEX else _IRQ_EVENTFD

    def set_irq_eventfds(self, index: int, start: int, fds: Sequence[int]) -> None:
        """Take eventfds for interrupts; none at all disables the type."""
        if index == VFIO_PCI_INTX_IRQ_INDEX:
            self.interrupts.set_intx_eventfd(fds[0] if fds else -1)
        elif fds:
            self.interrupts.set_vector_eventfds(start, fds)
        else:
            self.interrupts.disable_msix()
        self._interrupt_mode_changed()

    def trigger_irqs(self, index: int, start: int, count: int) -> None:
        if index == VFIO_PCI_INTX_IRQ_INDEX:
            self.interrupts.trigger_intx()
        else:
            for vector in range(start, start + count):
                self._signal_vector(vector)

    def mask_irqs(self, index: int, start: int, count: int) -> None:
        """Hold INTx back; no other type is maskable."""
        self.interrupts.mask_intx()

    def unmask_irqs(self, index: int, start: int, count: int) -> None:
        """Let INTx through again."""
        self.interrupts.unmask_intx()

    # Reset

    def _driver_reset(self) -> None:
        """The driver has reset the device: no interrupt is left from before."""
        self.record.isr = 0
        self.interrupts.reset()
        if self.messages is not None:
            self.messages.clear_pending()

    def reset(self) -> None:
        """The VMM resets the function, and so has read its capabilities."""
        self.record.msix_hidden = 0
        self.reset_registers()

    def reset_registers(self) -> None:
        """Return device, registers and configuration space to their state after power-on; eventfds stay."""
        self.device.reset()
        self.common.reset()
        self.configuration.reset()
        if self.messages is not None:
            self.messages.reset()
        self._driver_reset()
        self._interrupt_mode_changed()

    def registers_restored(self, pending: Iterable[int]) -> None:
        """Registers and configuration space were replaced by those of an equal function.

        Args:
            pending: MSI-X vectors whose messages are still to be sent.
        """
        self._interrupt_mode_changed()
        for vector in pending:
            self._signal_vector(vector)


def _identity(device_id: int, class_code: int, *, has_legacy: bool) -> Identity:
    """The numbers of a virtio device type (4.1.2); the subsystem's are those of QEMU's device."""
    vendor = layout.PCI_VENDOR_ID_REDHAT_QUMRANET
    if has_legacy:
        transitional = layout.TRANSITIONAL_DEVICE_IDS[device_id]
        return Identity(transitional, layout.TRANSITIONAL_REVISION, class_code, vendor, device_id)
    modern = layout.VIRTIO_PCI_DEVICE_ID_BASE + device_id
    return Identity(modern, layout.VIRTIO_PCI_REVISION, class_code, vendor, layout.PCI_SUBDEVICE_ID_QEMU)
