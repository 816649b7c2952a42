"""Finds a virtio PCI function's structures in its configuration space (virtio 1.3, section 4.1.4).

The function is not trusted: its capability list may be a loop, a structure may lie outside its BAR.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from virtserial.errors import PeerError
from virtserial.pci.layout import (
    PCI_CAP_ID_MSIX,
    PCI_CAP_ID_VNDR,
    PCI_CAPABILITY_LIST,
    PCI_CONFIG_SPACE_SIZE,
    PCI_DEVICE_ID,
    PCI_FIRST_CAPABILITY,
    PCI_MSIX_FLAGS,
    PCI_STATUS,
    PCI_STATUS_CAP_LIST,
    PCI_VENDOR_ID,
    PCI_VENDOR_ID_REDHAT_QUMRANET,
    TRANSITIONAL_DEVICE_IDS,
    VIRTIO_PCI_CAP_COMMON_CFG,
    VIRTIO_PCI_CAP_DEVICE_CFG,
    VIRTIO_PCI_CAP_ISR_CFG,
    VIRTIO_PCI_CAP_NOTIFY_CFG,
    VIRTIO_PCI_DEVICE_ID_BASE,
)
from virtserial.vfio_user.wire import VFIO_PCI_CONFIG_REGION_INDEX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from virtserial.driver.access import DeviceAccess

MSIX_TABLE_SIZE: Final = 0x07FF

_PCI_CAP: Final = Struct("<BBBBBBxxII")
"""struct virtio_pci_cap: cap_vndr, cap_next, cap_len, cfg_type, bar, id, padding, offset, length."""
_LEAST_LENGTH: Final = {
    VIRTIO_PCI_CAP_COMMON_CFG: 56,
    VIRTIO_PCI_CAP_NOTIFY_CFG: 2,
    VIRTIO_PCI_CAP_ISR_CFG: 1,
    VIRTIO_PCI_CAP_DEVICE_CFG: 1,
}


class Structure(NamedTuple):
    """A virtio structure: `length` bytes at `offset` of region `bar`."""

    bar: int
    offset: int
    length: int


class Msix(NamedTuple):
    """The MSI-X capability: its offset, 0 for none, and the entries of the table."""

    offset: int = 0
    vectors: int = 0


class Capabilities(NamedTuple):
    """A driver's view of a function's capability list.

    Attributes:
        notify_multiplier: bytes between the doorbells of queues with consecutive queue_notify_off.
    """

    common: Structure
    notify: Structure
    isr: Structure
    device: Structure
    notify_multiplier: int
    msix: Msix


def find_capabilities(access: DeviceAccess, device_id: int) -> Capabilities:
    """Walk the capability list of a virtio function of device type `device_id` (section 5).

    Raises:
        PeerError: the device has another type, or breaks a rule of 4.1.4.
    """

    check_identity(access, device_id)
    structures: dict[int, Structure] = {}
    multiplier, msix = 0, Msix()
    for pointer, kind in _capability_list(access):
        if kind == PCI_CAP_ID_MSIX and not msix.offset:
            msix = _msix_at(access, pointer)
        elif kind == PCI_CAP_ID_VNDR and pointer + _PCI_CAP.size <= PCI_CONFIG_SPACE_SIZE:
            data = access.region_read(VFIO_PCI_CONFIG_REGION_INDEX, pointer, _PCI_CAP.size)
            _, _, cap_length, cfg_type, bar, _, offset, length = _PCI_CAP.unpack(data)
            # 4.1.4.1: the first structure of a type that the driver can use; reserved types and BARs are skipped.
            if cfg_type in _LEAST_LENGTH and cfg_type not in structures and bar <= 5:
                structures[cfg_type] = _checked(access, cfg_type, Structure(bar, offset, length))
                if cfg_type == VIRTIO_PCI_CAP_NOTIFY_CFG:
                    if cap_length < _PCI_CAP.size + 4:
                        raise PeerError(f"device: notify capability of {cap_length} bytes, it takes 20")
                    multiplier = _config(access, pointer + _PCI_CAP.size, 4)
    if multiplier & (multiplier - 1) or multiplier == 1:
        raise PeerError(f"device: notify_off_multiplier {multiplier} is neither 0 nor an even power of 2 (4.1.4.4.1)")
    missing = sorted(set(_LEAST_LENGTH) - set(structures))
    if missing:
        raise PeerError(f"device: no virtio structure of type {missing[0]}: not a modern virtio function")
    return Capabilities(
        structures[VIRTIO_PCI_CAP_COMMON_CFG],
        structures[VIRTIO_PCI_CAP_NOTIFY_CFG],
        structures[VIRTIO_PCI_CAP_ISR_CFG],
        structures[VIRTIO_PCI_CAP_DEVICE_CFG],
        multiplier,
        msix,
    )


def find_msix(access: DeviceAccess) -> Msix:
    """Return the MSI-X capability of a function, whatever else is in its list.

    Raises:
        PeerError: the list is none.
    """
    return next((_msix_at(access, at) for at, kind in _capability_list(access) if kind == PCI_CAP_ID_MSIX), Msix())


def check_identity(access: DeviceAccess, device_id: int) -> bool:
    """Whether a function of virtio device type `device_id` is transitional: it may have a legacy interface.

    Raises:
        PeerError: it is another device.
    """
    vendor, device = _config(access, PCI_VENDOR_ID, 2), _config(access, PCI_DEVICE_ID, 2)
    transitional = TRANSITIONAL_DEVICE_IDS.get(device_id)
    if vendor != PCI_VENDOR_ID_REDHAT_QUMRANET or device not in (VIRTIO_PCI_DEVICE_ID_BASE + device_id, transitional):
        raise PeerError(f"device: PCI id {vendor:04x}:{device:04x} is not virtio device type {device_id}")
    return device == transitional


def has_modern_interface(access: DeviceAccess) -> bool:
    """Whether there is some virtio structure; without one there is the legacy interface alone."""
    return any(kind == PCI_CAP_ID_VNDR for _, kind in _capability_list(access))


def _config(access: DeviceAccess, offset: int, length: int) -> int:
    return int.from_bytes(access.region_read(VFIO_PCI_CONFIG_REGION_INDEX, offset, length), "little")


def _capability_list(access: DeviceAccess) -> Iterator[tuple[int, int]]:
    """(offset, id) of each capability."""
    seen: set[int] = set()
    has_list = _config(access, PCI_STATUS, 2) & PCI_STATUS_CAP_LIST
    pointer = _config(access, PCI_CAPABILITY_LIST, 1) & 0xFC if has_list else 0
    while pointer:
        if pointer < PCI_FIRST_CAPABILITY or pointer in seen:
            raise PeerError(f"device: capability list comes to {pointer:#x}, inside the header or seen before")
        seen.add(pointer)
        kind, following = _config(access, pointer, 1), _config(access, pointer + 1, 1)
        yield pointer, kind
        pointer = following & 0xFC


def _msix_at(access: DeviceAccess, offset: int) -> Msix:
    return Msix(offset, (_config(access, offset + PCI_MSIX_FLAGS, 2) & MSIX_TABLE_SIZE) + 1)


def _checked(access: DeviceAccess, cfg_type: int, structure: Structure) -> Structure:
    size = access.region_info(structure.bar).size
    if structure.length < _LEAST_LENGTH[cfg_type] or structure.offset + structure.length > size:
        raise PeerError(
            f"device: virtio structure of type {cfg_type} has {structure.length} bytes at {structure.offset:#x} "
            f"of BAR {structure.bar}, which has {size}"
        )
    return structure
