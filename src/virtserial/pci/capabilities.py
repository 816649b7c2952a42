"""The capability list: what a driver finds the registers and interrupts by (virtio 1.3, 4.1.4; PCI, MSI-X)."""

from __future__ import annotations

import struct
from typing import Final

from virtserial.named_tuple import NamedTuple
from virtserial.pci import layout

_VIRTIO_PCI_CAP: Final = struct.Struct("<BBBBBBxxII")
_MSIX_CAP: Final = struct.Struct("<BBHII")

PCI_CFG_CAP_BAR: Final = 4
PCI_CFG_CAP_OFFSET: Final = 8
PCI_CFG_CAP_LENGTH: Final = 12
PCI_CFG_CAP_DATA: Final = 16


class Capability(NamedTuple):
    """One entry of the list: its bytes, and which bits of them the driver may write.  Byte 1, the link, is 0 here."""

    data: bytes
    writable: bytes


def _area(cfg_type: int, offset: int, area_size: int = layout.AREA_SIZE, more: bytes = b"") -> Capability:
    """A struct virtio_pci_cap that shows one area of the register BAR."""
    size = _VIRTIO_PCI_CAP.size + len(more)
    head = _VIRTIO_PCI_CAP.pack(
        layout.PCI_CAP_ID_VNDR, 0, size, cfg_type, layout.REGISTER_BAR, 0, offset, area_size
    )
    return Capability(head + more, bytes(size))


def virtio_capabilities(doorbells: layout.DoorbellLayout) -> list[Capability]:
    """The five capabilities of a virtio device, VIRTIO_PCI_CAP_PCI_CFG last."""
    window = _VIRTIO_PCI_CAP.pack(
        layout.PCI_CAP_ID_VNDR, 0, _VIRTIO_PCI_CAP.size + 4, layout.VIRTIO_PCI_CAP_PCI_CFG, 0, 0, 0, 0
    )
    # bar, offset, length and pci_cfg_data are the driver's (4.1.4.9.2).
    window_writable = bytes(4) + b"\xff\0\0\0" + b"\xff" * 12
    return [
        _area(layout.VIRTIO_PCI_CAP_COMMON_CFG, layout.COMMON_AREA),
        _area(layout.VIRTIO_PCI_CAP_ISR_CFG, layout.ISR_AREA),
        _area(layout.VIRTIO_PCI_CAP_DEVICE_CFG, layout.DEVICE_AREA),
        _area(
            layout.VIRTIO_PCI_CAP_NOTIFY_CFG,
            layout.NOTIFY_AREA,
            doorbells.size,
            struct.pack("<I", doorbells.stride),
        ),
        Capability(window + bytes(4), window_writable),
    ]


def msix_capability(msix: layout.MsixLayout) -> Capability:
    """The MSI-X capability: how many vectors, table and pending bits in the MSI-X BAR."""
    data = _MSIX_CAP.pack(
        layout.PCI_CAP_ID_MSIX, 0, msix.vectors - 1, layout.MSIX_BAR, msix.pba_offset | layout.MSIX_BAR
    )
    flags = layout.PCI_MSIX_FLAGS_ENABLE | layout.PCI_MSIX_FLAGS_MASKALL
    return Capability(data, struct.pack("<xxH8x", flags))
