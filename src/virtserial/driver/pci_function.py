"""A virtio PCI function seen from its driver by the modern interface (virtio 1.3, section 4.1.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from virtserial.driver.pci_capabilities import find_capabilities
from virtserial.driver.pci_transport import PciTransport
from virtserial.errors import PeerError

if TYPE_CHECKING:
    from virtserial.driver.access import DeviceAccess
    from virtserial.loop import EventLoop
    from virtserial.virtio.ring.driver_ring import DriverRing

# struct virtio_pci_common_cfg: (offset, width in bytes)
DEVICE_FEATURE_SELECT: Final = (0x00, 4)
DEVICE_FEATURE: Final = (0x04, 4)
DRIVER_FEATURE_SELECT: Final = (0x08, 4)
DRIVER_FEATURE: Final = (0x0C, 4)
CONFIG_MSIX_VECTOR: Final = (0x10, 2)
NUM_QUEUES: Final = (0x12, 2)
DEVICE_STATUS: Final = (0x14, 1)
CONFIG_GENERATION: Final = (0x15, 1)
QUEUE_SELECT: Final = (0x16, 2)
QUEUE_SIZE: Final = (0x18, 2)
QUEUE_MSIX_VECTOR: Final = (0x1A, 2)
QUEUE_ENABLE: Final = (0x1C, 2)
QUEUE_NOTIFY_OFF: Final = (0x1E, 2)
QUEUE_DESC: Final = 0x20
QUEUE_DRIVER: Final = 0x28
QUEUE_DEVICE: Final = 0x30


class PciFunction(PciTransport):
    """The driver's transport to one function.

    Args:
        access: registers, DMA and interrupts of the function; closed by `close`.
        loop: watches the interrupts.
        device_id: the expected virtio device type.

    Raises:
        PeerError: the function has another type, or its capability list breaks the rules.
    """

    def __init__(self, access: DeviceAccess, loop: EventLoop, device_id: int) -> None:
        self._capabilities = find_capabilities(access, device_id)
        super().__init__(access, loop, self._capabilities.msix)
        self._doorbells: dict[int, tuple[int, bytes]] = {}
        self.num_queues = self._read(NUM_QUEUES)

    # Registers of the common configuration

    def _read(self, register: tuple[int, int]) -> int:
        offset, width = register
        common = self._capabilities.common
        return int.from_bytes(self._access.region_read(common.bar, common.offset + offset, width), "little")

    def _write(self, register: tuple[int, int], value: int, more: bool = False) -> None:
        # Posted: the device handles messages in order, so a later read sees what these did.
        offset, width = register
        common = self._capabilities.common
        data = value.to_bytes(width, "little")
        self._access.region_write(common.bar, common.offset + offset, data, posted=True, more=more)

    def reset(self) -> None:
        """Write 0 to the status and wait until it reads 0 (4.1.4.3.2)."""
        super().reset()
        self._doorbells.clear()

    def _take_isr(self) -> int:
        isr = self._capabilities.isr
        return self._access.region_read(isr.bar, isr.offset, 1)[0]

    def _set_config_vector(self, vector: int) -> None:
        self._write(CONFIG_MSIX_VECTOR, vector)
        if self._read(CONFIG_MSIX_VECTOR) != vector:
            raise PeerError(f"device: the configuration does not take MSI-X vector {vector}")

    def read_status(self) -> int:
        """The device status."""
        return self._read(DEVICE_STATUS)

    def write_status(self, status: int) -> None:
        """Set the device status."""
        self._write(DEVICE_STATUS, status)

    def read_features(self) -> int:
        """The 64 feature bits the device offers."""
        features = 0
        for word in range(2):
            self._write(DEVICE_FEATURE_SELECT, word)
            features |= self._read(DEVICE_FEATURE) << (32 * word)
        return features

    def write_features(self, features: int) -> None:
        """Accept features."""
        for word in range(2):
            self._write(DRIVER_FEATURE_SELECT, word)
            self._write(DRIVER_FEATURE, features >> (32 * word) & 0xFFFFFFFF)

    # Queues

    def queue_max_size(self, index: int) -> int:
        """The size the device suggests before it is written: its maximum (4.1.4.3)."""
        self._write(QUEUE_SELECT, index, more=True)
        return self._read(QUEUE_SIZE)

    def enable_queue(self, index: int, queue: DriverRing[Any]) -> None:
        """Set the rings of a queue, assign its vector, enable it."""
        self._write(QUEUE_SELECT, index, more=True)
        self._write(QUEUE_SIZE, queue.size, more=True)
        for offset, address in (
            (QUEUE_DESC, queue.desc_address),
            (QUEUE_DRIVER, queue.avail_address),
            (QUEUE_DEVICE, queue.used_address),
        ):
            # 4.1.3.1: 64-bit fields are written as two 32-bit halves.
            self._write((offset, 4), address & 0xFFFFFFFF, more=True)
            self._write((offset + 4, 4), address >> 32, more=True)
        vector = self._vector_of.get(index)
        if vector is not None:
            self._write(QUEUE_MSIX_VECTOR, vector, more=True)
            if self._read(QUEUE_MSIX_VECTOR) != vector:
                raise PeerError(f"device: queue {index} does not take MSI-X vector {vector}")
        notify = self._capabilities.notify
        offset = self._read(QUEUE_NOTIFY_OFF) * self._capabilities.notify_multiplier
        if offset + 2 > notify.length:
            raise PeerError(f"device: the doorbell of queue {index} is at {offset:#x} of {notify.length:#x} bytes")
        self._doorbells[index] = (notify.offset + offset, index.to_bytes(2, "little"))
        self._write(QUEUE_ENABLE, 1, more=True)
        if self._read(QUEUE_ENABLE) != 1:
            raise PeerError(f"device: queue {index} of {queue.size} entries does not enable")

    def notify(self, index: int) -> None:
        """Ring the doorbell of a queue."""
        offset, data = self._doorbells[index]
        self._access.region_write(self._capabilities.notify.bar, offset, data, posted=True)

    # Device-specific configuration

    def read_config(self, offset: int, length: int) -> bytes:
        """Read bytes of one generation; less than `length` at the structure's end."""
        device = self._capabilities.device
        length = min(length, device.length - offset)
        if length <= 0:
            return b""
        for _ in range(100):
            generation = self._read(CONFIG_GENERATION)
            data = self._access.region_read(device.bar, device.offset + offset, length)
            if self._read(CONFIG_GENERATION) == generation:
                return data
        raise PeerError("device: its configuration changes faster than it can be read")

    def write_config(self, offset: int, data: bytes) -> None:
        """Write configuration fields that a driver may write."""
        device = self._capabilities.device
        if offset + len(data) > device.length:
            raise PeerError(f"device: configuration of {device.length} bytes has no field at {offset}")
        self._access.region_write(device.bar, device.offset + offset, data)
