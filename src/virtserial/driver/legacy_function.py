"""A virtio PCI function seen from its driver by the legacy interface (virtio 1.3, 4.1.4.8): registers in I/O space.

There is no FEATURES_OK, a queue has the size that the device gives it, its rings lie behind each other in whole pages,
and the configuration has no generation: it is read until two reads agree (2.5.4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from virtserial.driver.pci_capabilities import check_identity, find_msix
from virtserial.driver.pci_transport import PciTransport
from virtserial.errors import PeerError
from virtserial.pci.layout import LEGACY_BAR, PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE
from virtserial.pci.legacy import HEADER_SIZE, HEADER_SIZE_WITH_VECTORS, ISR_STATUS, PAGE_SHIFT
from virtserial.vfio_user.wire import VFIO_PCI_CONFIG_REGION_INDEX
from virtserial.virtio.features import LEGACY_FEATURES
from virtserial.virtio.ring.split.layout import MAX_QUEUE_SIZE
from virtserial.virtio.status import FEATURES_OK

if TYPE_CHECKING:
    from virtserial.driver.access import DeviceAccess
    from virtserial.loop import EventLoop
    from virtserial.virtio.ring.driver_ring import DriverRing

# (offset, width in bytes)
DEVICE_FEATURES: Final = (0, 4)
DRIVER_FEATURES: Final = (4, 4)
QUEUE_ADDRESS: Final = (8, 4)
QUEUE_SIZE: Final = (12, 2)
QUEUE_SELECT: Final = (14, 2)
QUEUE_NOTIFY: Final = (16, 2)
DEVICE_STATUS: Final = (18, 1)
CONFIG_VECTOR: Final = (20, 2)
QUEUE_VECTOR: Final = (22, 2)

MAX_QUEUES: Final = 1024
LOOKS: Final = 100


class LegacyFunction(PciTransport):
    """The driver's transport to one function (DriverTransport).

    Args:
        access: registers, DMA and interrupts of the function; closed by `close`.
        loop: watches the interrupts.
        device_id: the expected virtio device type.

    Raises:
        PeerError: the function has another type, or no legacy interface.
    """

    def __init__(self, access: DeviceAccess, loop: EventLoop, device_id: int) -> None:
        self._bar_size = access.region_info(LEGACY_BAR).size
        if not check_identity(access, device_id) or self._bar_size < HEADER_SIZE:
            raise PeerError("device: it has no legacy interface")
        super().__init__(access, loop, find_msix(access))
        self.num_queues = next((index for index in range(MAX_QUEUES) if not self.queue_max_size(index)), MAX_QUEUES)

    def _read(self, register: tuple[int, int]) -> int:
        return int.from_bytes(self._access.region_read(LEGACY_BAR, *register), "little")

    def _write(self, register: tuple[int, int], value: int) -> None:
        offset, width = register
        self._access.region_write(LEGACY_BAR, offset, value.to_bytes(width, "little"), posted=True)

    def read_status(self) -> int:
        """The device status."""
        return self._read(DEVICE_STATUS)

    def write_status(self, status: int) -> None:
        """Set the device status, without FEATURES_OK."""
        self._write(DEVICE_STATUS, status & ~FEATURES_OK)

    def read_features(self) -> int:
        """The 32 feature bits that the interface shows."""
        return self._read(DEVICE_FEATURES)

    def write_features(self, features: int) -> None:
        """Accept features."""
        self._write(DRIVER_FEATURES, features & LEGACY_FEATURES)

    def _take_isr(self) -> int:
        return self._read((ISR_STATUS, 1))

    def _set_config_vector(self, vector: int) -> None:
        self._write(CONFIG_VECTOR, vector)
        if self._read(CONFIG_VECTOR) != vector:
            raise PeerError(f"device: the configuration does not take MSI-X vector {vector}")

    # Queues

    def queue_max_size(self, index: int) -> int:
        """The size of a queue, which is no choice."""
        self._write(QUEUE_SELECT, index)
        size = self._read(QUEUE_SIZE)
        if size > MAX_QUEUE_SIZE or size & (size - 1):
            raise PeerError(f"device: queue {index} has {size} entries, not a power of 2 up to {MAX_QUEUE_SIZE}")
        return size

    def enable_queue(self, index: int, queue: DriverRing[Any]) -> None:
        """Assign a queue's vector and place its rings."""
        self._write(QUEUE_SELECT, index)
        vector = self._vector_of.get(index)
        if vector is not None:
            self._write(QUEUE_VECTOR, vector)
            if self._read(QUEUE_VECTOR) != vector:
                raise PeerError(f"device: queue {index} does not take MSI-X vector {vector}")
        page = queue.desc_address >> PAGE_SHIFT
        self._write(QUEUE_ADDRESS, page)
        if self._read(QUEUE_ADDRESS) != page:
            raise PeerError(f"device: queue {index} does not go to page {page:#x}")

    def notify(self, index: int) -> None:
        """Ring the doorbell of a queue."""
        self._write(QUEUE_NOTIFY, index)

    # Device-specific configuration

    @property
    def _config_start(self) -> int:
        if not self._msix.offset:
            return HEADER_SIZE
        control = self._access.region_read(VFIO_PCI_CONFIG_REGION_INDEX, self._msix.offset + PCI_MSIX_FLAGS, 2)
        enabled = int.from_bytes(control, "little") & PCI_MSIX_FLAGS_ENABLE
        return HEADER_SIZE_WITH_VECTORS if enabled else HEADER_SIZE

    def read_config(self, offset: int, length: int) -> bytes:
        """Read bytes that do not change meanwhile; less than `length` at the structure's end."""
        start = self._config_start + offset
        length = min(length, self._bar_size - start)
        if length <= 0:
            return b""
        before = self._access.region_read(LEGACY_BAR, start, length)
        for _ in range(LOOKS):
            data, before = before, self._access.region_read(LEGACY_BAR, start, length)
            if data == before:
                return data
        raise PeerError("device: its configuration changes faster than it can be read")

    def write_config(self, offset: int, data: bytes) -> None:
        """Write configuration fields that a driver may write."""
        start = self._config_start + offset
        if start + len(data) > self._bar_size:
            raise PeerError(f"device: BAR 0 of {self._bar_size} bytes has no field at {start}")
        self._access.region_write(LEGACY_BAR, start, data)
