"""The registers of the legacy interface, behind an I/O BAR (virtio 1.3, 4.1.4.8), over the same device as common.py.

| offset | bytes | register | |
|---|---|---|---|
| 0 | 4 | device features | bits 0 to 31: a legacy driver knows no others |
| 4 | 4 | driver features | |
| 8 | 4 | queue address | of the selected queue's rings, in pages of 4096 bytes; 0 resets the queue |
| 12 | 2 | queue size | the largest; it cannot be changed |
| 14 | 2 | queue select | shared with the modern interface, as are the vectors |
| 16 | 2 | queue notify | |
| 18 | 1 | device status | without FEATURES_OK; 0 resets the device |
| 19 | 1 | ISR status | a read clears it |
| 20 | 4 | vectors of the configuration and of the selected queue | only while MSI-X is enabled |
| 20 or 24 | | device-specific configuration | it moves when MSI-X is enabled or disabled |

Fields are in the guest's byte order, and here little-endian: machines whose guests may use another get no legacy
interface (options/interfaces.py).  A write of another width than its register's is ignored and counted.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from virtserial.pci.layout import VIRTIO_MSI_NO_VECTOR
from virtserial.virtio.features import LEGACY_FEATURES
from virtserial.virtio.status import FEATURES_OK

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.pci.common import CommonConfiguration
    from virtserial.virtio.device import VirtioDevice

_HEADER: Final = Struct("<IIIHHHBBHH")
ISR_STATUS: Final = 19
HEADER_SIZE: Final = 20
HEADER_SIZE_WITH_VECTORS: Final = 24
PAGE_SHIFT: Final = 12


def bar_size(device: VirtioDevice, vectors: int) -> int:
    """Bytes of the I/O BAR, as QEMU's is: a power of 2 with room for header and configuration."""
    size = (HEADER_SIZE_WITH_VECTORS if vectors else HEADER_SIZE) + device.config_size
    return 1 << (size - 1).bit_length()


class LegacyRegisters:
    """The registers, over a device and the modern interface's registers.

    Args:
        device: whose they are.
        common: the modern registers, which have what both interfaces share.
        uses_vectors: whether MSI-X is enabled.
        take_isr: clears the ISR status and returns what it was.

    Attributes:
        ignored_writes: how many writes made no sense.
    """

    def __init__(
        self,
        device: VirtioDevice,
        common: CommonConfiguration,
        uses_vectors: Callable[[], bool],
        take_isr: Callable[[], int],
    ) -> None:
        self._device = device
        self._common = common
        self._uses_vectors = uses_vectors
        self._take_isr = take_isr
        self.ignored_writes = 0
        self._registers: dict[tuple[int, int], Callable[[int], None]] = {
            (4, 4): device.set_legacy_features,
            (8, 4): self._write_queue_address,
            (14, 2): common.write_queue_select,
            (16, 2): self._write_queue_notify,
            (18, 1): self._write_status,
            (20, 2): common.write_config_vector,
            (22, 2): common.write_queue_vector,
        }

    @property
    def _header_size(self) -> int:
        return HEADER_SIZE_WITH_VECTORS if self._uses_vectors() else HEADER_SIZE

    def read(self, offset: int, length: int) -> bytes:
        """Return registers and configuration; bytes past them are 0."""
        isr = self._take_isr() if offset <= ISR_STATUS < offset + length else 0
        if offset == ISR_STATUS and length == 1:
            return isr.to_bytes(1, "little")  # Once for each interrupt of the line.
        device = self._device
        registers = self._header(isr)[: self._header_size] + device.read_config(0, device.config_size)
        return registers[offset : offset + length].ljust(length, b"\0")

    def _header(self, isr: int) -> bytes:
        device, queue = self._device, self._common.selected()
        return _HEADER.pack(
            device.device_features & LEGACY_FEATURES,
            device.driver_features & LEGACY_FEATURES,
            queue.desc_address >> PAGE_SHIFT & 0xFFFFFFFF if queue is not None else 0,
            queue.max_size if queue is not None else 0,
            self._common.record.queue_select,
            0,
            device.status & ~FEATURES_OK,
            isr,
            self._common.config_vector,
            queue.vector if queue is not None else VIRTIO_MSI_NO_VECTOR,
        )

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Take a write; ignore one that fits no field."""
        at = offset - self._header_size
        if 0 <= at < self._device.config_size:
            self._device.write_config(at, bytes(data))
        elif at < 0 and (register := self._registers.get((offset, len(data)))) is not None:
            register(int.from_bytes(data, "little"))
        else:
            self.ignored_writes += 1

    def _write_queue_address(self, value: int) -> None:
        queue = self._common.selected()
        if queue is None:
            self.ignored_writes += 1
        elif value:
            self._device.place_legacy_queue(queue.index, value << PAGE_SHIFT)
        else:
            self._device.reset_queue(queue.index)

    def _write_queue_notify(self, value: int) -> None:
        # 3.1.2: a driver may use the device before it sets DRIVER_OK.
        self._device.begin_legacy()
        if value < self._device.num_queues:
            self._device.notify(value)
        else:
            self.ignored_writes += 1

    def _write_status(self, value: int) -> None:
        if value:
            self._device.set_legacy_status(value)
        else:
            self._common.write_status(0)
