"""Where things are in the function: numbers of PCI, of virtio over PCI, and of QEMU's virtio-pci, whose layout this is.

QEMU: BAR 0 has the legacy registers (I/O space), BAR 1 the MSI-X table and pending bits, BAR 4 (64 bits, prefetchable)
the registers of the modern interface in four areas of 4096 bytes.  Offsets of the common configuration are those of
struct virtio_pci_common_cfg (4.1.4.3).
"""

from __future__ import annotations

from typing import Final

from virtserial.named_tuple import NamedTuple

PCI_CONFIG_SPACE_SIZE: Final = 256
PCI_VENDOR_ID_REDHAT_QUMRANET: Final = 0x1AF4
VIRTIO_PCI_DEVICE_ID_BASE: Final = 0x1040
PCI_SUBDEVICE_ID_QEMU: Final = 0x1100
PCI_CLASS_COMMUNICATION_OTHER: Final = 0x0780
VIRTIO_PCI_REVISION: Final = 1
TRANSITIONAL_DEVICE_IDS: Final = {3: 0x1003}
"""By device type (4.1.2.1): a function with a legacy interface has this id, and 0 as its revision."""
TRANSITIONAL_REVISION: Final = 0

PCI_VENDOR_ID: Final = 0x00
PCI_DEVICE_ID: Final = 0x02
PCI_COMMAND: Final = 0x04
PCI_COMMAND_IO: Final = 0x1
PCI_COMMAND_MEMORY: Final = 0x2
PCI_COMMAND_MASTER: Final = 0x4
PCI_COMMAND_INTX_DISABLE: Final = 0x400
PCI_STATUS: Final = 0x06
PCI_STATUS_INTERRUPT: Final = 0x08
PCI_STATUS_CAP_LIST: Final = 0x10
PCI_REVISION_ID: Final = 0x08
PCI_CLASS_DEVICE: Final = 0x0A
PCI_CACHE_LINE_SIZE: Final = 0x0C
PCI_BASE_ADDRESS_0: Final = 0x10
PCI_SUBSYSTEM_VENDOR_ID: Final = 0x2C
PCI_SUBSYSTEM_ID: Final = 0x2E
PCI_CAPABILITY_LIST: Final = 0x34
PCI_INTERRUPT_LINE: Final = 0x3C
PCI_INTERRUPT_PIN: Final = 0x3D
PCI_FIRST_CAPABILITY: Final = 0x40

PCI_CAP_ID_VNDR: Final = 0x09
PCI_CAP_ID_MSIX: Final = 0x11
PCI_MSIX_FLAGS: Final = 2
PCI_MSIX_FLAGS_MASKALL: Final = 0x4000
PCI_MSIX_FLAGS_ENABLE: Final = 0x8000
MAX_VECTORS: Final = 2048
VIRTIO_MSI_NO_VECTOR: Final = 0xFFFF

VIRTIO_PCI_CAP_COMMON_CFG: Final = 1
VIRTIO_PCI_CAP_NOTIFY_CFG: Final = 2
VIRTIO_PCI_CAP_ISR_CFG: Final = 3
VIRTIO_PCI_CAP_DEVICE_CFG: Final = 4
VIRTIO_PCI_CAP_PCI_CFG: Final = 5

VIRTIO_PCI_ISR_QUEUE: Final = 1
VIRTIO_PCI_ISR_CONFIG: Final = 2

LEGACY_BAR: Final = 0
MSIX_BAR: Final = 1
REGISTER_BAR: Final = 4
AREA_SIZE: Final = 0x1000
COMMON_AREA: Final = 0x0000
ISR_AREA: Final = 0x1000
DEVICE_AREA: Final = 0x2000
NOTIFY_AREA: Final = 0x3000
DOORBELL_SIZE: Final = 4
MAX_QUEUES: Final = AREA_SIZE // DOORBELL_SIZE


class DoorbellLayout(NamedTuple):
    """The doorbells in the register BAR: `stride` bytes from one to the next, in an area of `size` bytes."""

    stride: int
    size: int

    @classmethod
    def of(cls, queues: int, *, page_per_vq: bool) -> DoorbellLayout:
        """The layout for so many queues.  `page_per_vq`: a page for each, so that a VMM can map one without another."""
        return cls(AREA_SIZE, queues * AREA_SIZE) if page_per_vq else cls(DOORBELL_SIZE, AREA_SIZE)

    @property
    def bar_size(self) -> int:
        """Bytes of the register BAR."""
        return 1 << (NOTIFY_AREA + self.size - 1).bit_length()


class MsixLayout(NamedTuple):
    """The MSI-X structures in their BAR, placed as QEMU's msix_init_exclusive_bar places them."""

    vectors: int
    pba_offset: int
    pba_size: int
    bar_size: int

    @classmethod
    def of(cls, vectors: int) -> MsixLayout:
        """The layout for 1 to 2048 vectors; a BAR of no size for 0."""
        if not vectors:
            return cls(0, 0, 0, 0)
        pba_offset = max(2048, vectors * 16)
        pba_size = (vectors + 63) // 64 * 8
        return cls(vectors, pba_offset, pba_size, max(4096, 1 << (pba_offset + pba_size - 1).bit_length()))
