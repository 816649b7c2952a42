"""A virtio device apart from its transport: features, status, queues, and what happens when the driver breaks a rule.

A device type (console/) says what its queues mean; a transport (pci/) shows registers and delivers interrupts; the
memory table is filled by whoever maps guest memory.  Errors of the driver end here: `fail` stops this device until
the driver resets it (virtio 1.3, section 2.1.2) and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from virtserial.errors import AccessInterrupted, AddressError, DriverError
from virtserial.memory.state import U8, U32, U64, Record
from virtserial.memory.table import MemoryTable
from virtserial.virtio.features import (
    LEGACY_FEATURES,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
)
from virtserial.virtio.queue import Virtqueue
from virtserial.virtio.ring.split.layout import LEGACY_RING_ALIGNMENT, descriptor_table_size, used_ring_start
from virtserial.virtio.status import (
    DEVICE_NEEDS_RESET,
    DRIVER,
    DRIVER_OK,
    FEATURES_OK,
    LEGACY_DRIVER_BITS,
    next_status,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.memory.dirty_log import DirtyLog
    from virtserial.memory.state import StateMemory

LIVE: Final = DRIVER_OK | FEATURES_OK


class Transport(Protocol):
    """The bus side of a device: how it reaches the driver."""

    def queue_interrupt(self, index: int) -> None:
        """Tell the driver that queue `index` has used buffers."""
        ...

    def config_interrupt(self) -> None:
        """Tell the driver that the configuration or the status has changed."""
        ...


class NoTransport:
    """Before a transport is joined, interrupts go nowhere."""

    def queue_interrupt(self, index: int) -> None: ...

    def config_interrupt(self) -> None: ...


class DeviceRecord(Record):
    """What every device keeps in state memory."""

    __slots__ = ()
    SIZE = 16
    status = U8(0)
    config_generation = U8(1)
    paused = U8(2)
    """The device stands still, whatever driver and host do."""
    failures = U32(4)
    driver_features = U64(8)


class VirtioDevice:
    """Base of a device type.

    Args:
        state: where registers live.
        device_id: the device type (section 5).
        queue_sizes: the largest size of each queue.
        device_features: the bits to offer.
        on_failure: called with the error when the driver has broken a rule.
        on_address_fault: asked for a second try when the driver named memory that is not mapped; its map may still
            be on its way.  None: there is no second try.

    Attributes:
        memory: guest memory; who maps says so by `memory_mapped`, who unmaps by `memory_unmapped`.
        transport: sets itself when it is made for this device; until then interrupts go nowhere.
        live: the device may use the queues: DRIVER_OK, with features agreed, and nothing broken.
        epoch: grows whenever something is taken from the queues: a reset, a failure, a ring's memory unmapped.
    """

    def __init__(
        self,
        state: StateMemory,
        device_id: int,
        queue_sizes: Sequence[int],
        device_features: int,
        *,
        on_failure: Callable[[DriverError], None] = lambda error: None,
        on_address_fault: Callable[[], None] | None = None,
    ) -> None:
        self.device_id = device_id
        self.device_features = device_features
        self.record = DeviceRecord(state)
        self.status = self.record.status
        self._touched: dict[Virtqueue, None] = {}
        self.queues = [Virtqueue(index, size, state, self._touched) for index, size in enumerate(queue_sizes)]
        self.memory = MemoryTable()
        self._resting: list[Virtqueue] = []
        self.epoch = 0
        self.transport: Transport = NoTransport()
        self.on_failure = on_failure
        self.on_address_fault = on_address_fault

    # What a device type provides

    config_size = 0

    def read_config(self, offset: int, length: int) -> bytes:
        """Return bytes of the device-specific configuration; zeros where it has none."""
        return bytes(length)

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a write to the device-specific configuration."""

    def notify(self, index: int) -> None:
        """The driver rang for queue `index`, which may not exist: note that there is work, do none of it here."""

    def notify_alone(self, index: int) -> None:
        """The same, told by the event that is being served, and nothing else came with it: it may be served now."""
        self.notify(index)

    def driver_ready(self) -> None:
        """The driver has set DRIVER_OK."""

    def uses(self, queue: Virtqueue) -> bool:
        """Whether the device reads or writes chains of a queue now; the ring of another need not stay open."""
        return True

    def stopped(self) -> None:
        """The device was reset or has failed: forget what the driver said.  `_touched` has the queues that it used."""

    # Registers

    @property
    def num_queues(self) -> int:
        """How many queues there are."""
        return len(self.queues)

    @property
    def config_generation(self) -> int:
        """Changes whenever the device-specific configuration does (8 bits)."""
        return self.record.config_generation

    @property
    def status(self) -> int:
        """The device status field.  Nothing else sets the record's: `live` follows it."""
        return self.record.status

    @status.setter
    def status(self, value: int) -> None:
        self.record.status = value
        # A legacy driver may use the device before it sets DRIVER_OK (3.1.2); see `begin_legacy`.
        bits = value & (LIVE | DEVICE_NEEDS_RESET)
        self.live = bits == LIVE or (bits == FEATURES_OK and self.driver_is_legacy)

    @property
    def driver_is_legacy(self) -> bool:
        """Whether the driver uses the legacy interface: features are fixed without VIRTIO_F_VERSION_1 (2.2.3)."""
        record = self.record
        return record.status & FEATURES_OK != 0 and not record.driver_features & VIRTIO_F_VERSION_1

    @property
    def driver_features(self) -> int:
        """The features the driver has accepted."""
        return self.record.driver_features

    @driver_features.setter
    def driver_features(self, value: int) -> None:
        """Fixed once FEATURES_OK is set (2.2.1: the driver must not change them after that)."""
        if not self.record.status & FEATURES_OK:
            self.record.driver_features = value

    def has_feature(self, mask: int) -> bool:
        """Whether all bits of `mask` were negotiated."""
        return self.record.status & FEATURES_OK != 0 and self.record.driver_features & mask == mask

    def set_status(self, value: int) -> None:
        """Take the driver's write to the device status; 0 resets the device."""
        old, was_live = self.record.status, self.live
        features = self.record.driver_features
        acceptable = not features & ~self.device_features and bool(features & VIRTIO_F_VERSION_1)
        new = next_status(old, value, acceptable)
        if new == 0:
            self.reset()
            return
        self.status = new
        if self.live and not was_live:
            self._begin()

    def _begin(self) -> None:
        self.driver_ready()
        for queue in list(self._touched):
            if queue.enabled:
                self.notify(queue.index)

    # The legacy interface (2.2.3, 2.7.2, 3.1.2)

    def set_legacy_status(self, value: int) -> None:
        """Take a write to the status that came by the legacy interface: no FEATURES_OK, and bits may be cleared."""
        record = self.record
        if value == 0 or record.driver_features & VIRTIO_F_VERSION_1:
            self.set_status(value)
            return
        self.status = record.status & ~LEGACY_DRIVER_BITS | value & LEGACY_DRIVER_BITS
        if value & DRIVER_OK:
            self.begin_legacy()

    def set_legacy_features(self, value: int) -> None:
        """Take the features of a legacy driver; what was not offered is not accepted, for it cannot be refused."""
        self.driver_features = value & self.device_features & LEGACY_FEATURES

    def begin_legacy(self) -> None:
        """A legacy driver sets DRIVER_OK, or uses the device before that: its features and rings are fixed now.

        Internally that is FEATURES_OK without VIRTIO_F_VERSION_1, a state that no modern driver can reach.
        """
        record = self.record
        if record.status & (FEATURES_OK | DEVICE_NEEDS_RESET | DRIVER) != DRIVER:
            return
        record.driver_features &= self.device_features & LEGACY_FEATURES
        # Before the bit: after a crash in between, the driver's write is handled again, and goes on here.
        for queue in list(self._touched):
            if queue.desc_address:
                self.enable_queue(queue.index)
        self.status |= FEATURES_OK
        if self.live:
            self._begin()

    def place_legacy_queue(self, index: int, address: int) -> None:
        """Put the rings of a queue at a page, in the one layout and of the one size that a legacy driver knows."""
        queue = self.queues[index]
        size = queue.size = queue.max_size
        queue.desc_address = address
        queue.avail_address = address + descriptor_table_size(size)
        queue.used_address = address + used_ring_start(size, LEGACY_RING_ALIGNMENT)
        if self.driver_is_legacy:
            self.enable_queue(index)

    def reset(self) -> None:
        """Return to the state after power-on (2.4); guest memory stays mapped.

        A driver can reset a device as fast as it can write a byte, so this costs what was done since the last reset and
        not what a device of 1,024 queues could have done.
        """
        self.status = self.record.driver_features = 0
        self._resting.clear()
        self.epoch += 1
        for queue in self._touched:
            queue.reset()
        self.stopped()
        self._touched.clear()

    # Queues

    def enable_queue(self, index: int, progress: int | None = None) -> None:
        """Latch a queue's registers and resolve its rings.  What is wrong with them fails the device.

        Args:
            progress: where the ring stands, as QueueRecord's; None: at its start.
        """
        queue = self.queues[index]
        if queue.enabled:
            return
        features = self.record.driver_features
        queue.enable(
            bool(features & VIRTIO_F_EVENT_IDX),
            bool(features & VIRTIO_F_INDIRECT_DESC),
            bool(features & VIRTIO_F_RING_PACKED),
            progress,
        )
        try:
            queue.attach(self.memory)
        except DriverError as error:
            self.fail(error)
            return
        if not self.uses(queue):
            queue.close_ring()
        if self.live:
            self.notify(index)

    def find_ring(self, queue: Virtqueue) -> None:
        """Find the ring of an enabled queue again, where it was left.  Without its memory it rests; what else is wrong
        with it fails the device."""
        try:
            queue.attach(self.memory)
        except AddressError:
            self._resting.append(queue)
        except DriverError as error:
            self.fail(error)

    def reset_queue(self, index: int) -> None:
        """Return one queue to its state after a device reset (2.6.1, VIRTIO_F_RING_RESET)."""
        self.epoch += 1
        vector = self.queues[index].vector
        self.queues[index].reset()
        self.queues[index].vector = vector

    def touch_all(self) -> None:
        """Registers are written by somebody who does not say which."""
        for queue in self.queues:
            queue.touch()

    def memory_mapped(self) -> None:
        """Memory was added: a ring that was not mapped may be now."""
        for queue in [queue for queue in self._resting if queue.enabled]:
            try:
                queue.attach(self.memory)
            except AddressError:
                continue
            self._resting.remove(queue)
            if self.live:
                # What happened meanwhile, and an interrupt that could not be considered, are caught up with.
                self.transport.queue_interrupt(queue.index)
                self.notify(queue.index)

    def memory_unmapped(self, iova: int, size: int) -> None:
        """[iova, iova + size) was taken away: a ring with a part in it rests until it is mapped again."""
        end = iova + size
        for queue in self._touched:
            queue.ring.forget_buffers()
            if queue.ring.lies_in(iova, end):
                self.epoch += 1
                queue.detach()
                self._resting.append(queue)

    def log_writes(self, log: DirtyLog | None) -> None:
        """Note in `log` what the device writes into guest memory from now on; None: note it no more."""
        self.memory.log = log
        for queue in self._touched:
            queue.ring.reopen()

    def signal(self, queue: Virtqueue) -> None:
        """Interrupt the driver if it wants to hear of the chains returned on `queue`."""
        try:
            wanted = queue.ring.take_signal()
        except AccessInterrupted:
            # It could not be asked: one interrupt too many does no harm, one too few hangs a guest.
            wanted = self.live
        if wanted:
            self.transport.queue_interrupt(queue.index)

    def fail(self, error: DriverError) -> None:
        """Stop until the driver resets the device: set DEVICE_NEEDS_RESET, and tell it if it is listening (2.1.2)."""
        record = self.record
        if record.status & DEVICE_NEEDS_RESET:
            return
        listening = record.status & DRIVER_OK
        self.status |= DEVICE_NEEDS_RESET
        record.failures += 1
        self.epoch += 1
        self.stopped()
        if listening:
            self.transport.config_interrupt()
        self.on_failure(error)

    def config_changed(self) -> None:
        """Count and announce a change of the device-specific configuration."""
        self.record.config_generation = (self.record.config_generation + 1) & 0xFF
        if self.live:
            self.transport.config_interrupt()
