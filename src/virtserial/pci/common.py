"""The common configuration: registers of the device as a whole and of the queue selected (virtio 1.3, 4.1.4.3).

Reads show the structure as it is, at any offset and width.  Writes are taken at the offset and width of a field -
64-bit addresses also by halves - and anything else is ignored and counted: a driver that is confused must not harm
anybody.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from virtserial.memory.state import U16, U32, Record
from virtserial.pci.layout import VIRTIO_MSI_NO_VECTOR
from virtserial.virtio.features import VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.memory.state import StateMemory
    from virtserial.virtio.device import VirtioDevice
    from virtserial.virtio.queue import Virtqueue

_COMMON: Final = struct.Struct("<IIIIHHBBHHHHHQQQ8x")
"""struct virtio_pci_common_cfg: device_feature_select, device_feature, driver_feature_select, driver_feature,
config_msix_vector, num_queues, device_status, config_generation, queue_select, queue_size, queue_msix_vector,
queue_enable, queue_notify_off, queue_desc, queue_driver, queue_device; the rest is always 0: queue_notif_config_data,
queue_reset, admin_queue_index, admin_queue_num."""


class CommonRecord(Record):
    """The registers that belong to the transport."""

    __slots__ = ()
    SIZE = 16
    device_feature_select = U32(0)
    driver_feature_select = U32(4)
    config_vector = U16(8)
    queue_select = U16(10)


class CommonConfiguration:
    """The registers, over a device and its queues.

    Args:
        state: where they live.
        device: whose they are.
        vectors: how many MSI-X vectors can be mapped to.
        on_reset: called when the driver has reset the device.

    Attributes:
        ignored_writes: how many writes made no sense.
    """

    def __init__(self, state: StateMemory, device: VirtioDevice, vectors: int, on_reset: Callable[[], None]) -> None:
        self._device = device
        self._vectors = vectors
        self._on_reset = on_reset
        self.record = CommonRecord(state)
        self.ignored_writes = 0
        if not state.restored:
            self.reset()
        self._registers: dict[tuple[int, int], Callable[[int], None]] = {
            (0x00, 4): self._write_device_feature_select,
            (0x08, 4): self._write_driver_feature_select,
            (0x0C, 4): self._write_driver_feature,
            (0x10, 2): self.write_config_vector,
            (0x14, 1): self.write_status,
            (0x16, 2): self.write_queue_select,
            (0x18, 2): self._write_queue_size,
            (0x1A, 2): self.write_queue_vector,
            (0x1C, 2): self._write_queue_enable,
            (0x3A, 2): self._write_queue_reset,
        }
        for offset, name in ((0x20, "desc_address"), (0x28, "avail_address"), (0x30, "used_address")):
            for at, width in ((offset, 8), (offset, 4), (offset + 4, 4)):
                self._registers[at, width] = self._address_writer(name, 8 * (at - offset), width)

    @property
    def config_vector(self) -> int:
        """The MSI-X vector of configuration changes, 0xffff for none."""
        return self.record.config_vector

    def reset(self) -> None:
        """Return the transport's registers to their values after power-on."""
        self.record.clear()
        self.record.config_vector = VIRTIO_MSI_NO_VECTOR

    def read(self, offset: int, length: int) -> bytes:
        """Return registers; bytes past the structure are 0."""
        device, record = self._device, self.record
        queue = self.selected()
        if queue is None:
            # "0 means the queue is unavailable" (queue_size)
            of_queue = (0, VIRTIO_MSI_NO_VECTOR, 0, 0, 0, 0, 0)
        else:
            of_queue = (
                queue.size,
                queue.vector,
                int(queue.enabled),
                queue.index,
                queue.desc_address,
                queue.avail_address,
                queue.used_address,
            )
        registers = _COMMON.pack(
            record.device_feature_select,
            _word_of(device.device_features, record.device_feature_select),
            record.driver_feature_select,
            _word_of(device.driver_features, record.driver_feature_select),
            record.config_vector,
            device.num_queues,
            device.status,
            device.config_generation,
            record.queue_select,
            *of_queue,
        )
        return registers[offset : offset + length].ljust(length, b"\0")

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Take a write; ignore one that fits no field."""
        register = self._registers.get((offset, len(data)))
        if register is None:
            self.ignored_writes += 1
        else:
            register(int.from_bytes(data, "little"))

    def selected(self) -> Virtqueue | None:
        """The queue that queue_select names, None if there is none."""
        index = self.record.queue_select
        return self._device.queues[index] if index < self._device.num_queues else None

    def _vector(self, value: int) -> int:
        # 4.1.5.1.2: a vector that cannot be mapped reads back as NO_VECTOR.
        return value if value < self._vectors else VIRTIO_MSI_NO_VECTOR

    def _write_device_feature_select(self, value: int) -> None:
        self.record.device_feature_select = value

    def _write_driver_feature_select(self, value: int) -> None:
        self.record.driver_feature_select = value

    def _write_driver_feature(self, value: int) -> None:
        select = self.record.driver_feature_select
        if select > 1:
            self.ignored_writes += 1
            return
        shift = 32 * select
        self._device.driver_features = self._device.driver_features & ~(0xFFFFFFFF << shift) | value << shift

    def write_config_vector(self, value: int) -> None:
        """Take a write to config_msix_vector."""
        self.record.config_vector = self._vector(value)

    def write_status(self, value: int) -> None:
        """Take the driver's write to the status; 0 resets the device and these registers."""
        self._device.set_status(value)
        if value == 0:
            self.reset()
            self._on_reset()

    def write_queue_select(self, value: int) -> None:
        """Take a write to queue_select."""
        self.record.queue_select = value

    def _write_queue_size(self, value: int) -> None:
        if (queue := self.selected()) is None:
            return
        if self._device.has_feature(VIRTIO_F_RING_PACKED):
            queue.set_packed_size(value)
        else:
            queue.size = value

    def write_queue_vector(self, value: int) -> None:
        """Take a write to queue_msix_vector."""
        if (queue := self.selected()) is not None:
            queue.vector = self._vector(value)

    def _write_queue_enable(self, value: int) -> None:
        # 4.1.4.3.2: "The driver MUST NOT write a 0 to queue_enable."
        if value == 1 and (queue := self.selected()) is not None:
            self._device.enable_queue(queue.index)
        else:
            self.ignored_writes += 1

    def _write_queue_reset(self, value: int) -> None:
        queue = self.selected()
        if value == 1 and queue is not None and self._device.has_feature(VIRTIO_F_RING_RESET):
            self._device.reset_queue(queue.index)
        else:
            self.ignored_writes += 1

    def _address_writer(self, name: str, shift: int, width: int) -> Callable[[int], None]:
        mask = ((1 << 8 * width) - 1) << shift

        def write(value: int) -> None:
            if (queue := self.selected()) is not None:
                setattr(queue, name, getattr(queue, name) & ~mask | value << shift)

        return write


def _word_of(features: int, select: int) -> int:
    """The 32 feature bits that a select register shows."""
    return features >> 32 * select & 0xFFFFFFFF if select < 2 else 0
