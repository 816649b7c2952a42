"""Guest memory as the front end describes it: by guest addresses, and by its own, which it names rings by.

The device has the maps; the regions are in state memory, because a successor of a killed process gets the maps only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.errors import PeerError
from virtserial.memory.state import U32, Record
from virtserial.vhost_user.wire import (
    LAYOUTS,
    MAX_SLOTS,
    REGION_SIZE,
    SLOT_PADDING,
    U64,
    MemoryRegion,
    unpack,
    unpack_table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.memory.state import StateMemory
    from virtserial.vhost_user.backend import VhostDevice

_ADDRESS_LIMIT: Final = 1 << 64


class Regions(Record):
    """The regions of one front end, and the requests that change them (server.Handler).

    Args:
        device: maps them.
    """

    __slots__ = ("_device", "_regions")
    SIZE = 8 + MAX_SLOTS * REGION_SIZE
    count = U32(0)

    def __init__(self, device: VhostDevice, state: StateMemory) -> None:
        super().__init__(state)
        self._device = device
        start = self.base + 8
        stored = state.u8[start : start + min(self.count, MAX_SLOTS) * REGION_SIZE]
        self._regions = [MemoryRegion._make(each) for each in LAYOUTS[MemoryRegion].iter_unpack(stored)]

    def __len__(self) -> int:
        return len(self._regions)

    def _store(self, regions: Sequence[MemoryRegion]) -> None:
        self._regions = list(regions)
        data = b"".join(LAYOUTS[MemoryRegion].pack(*region) for region in regions)
        self.state.u8[self.base + 8 : self.base + 8 + len(data)] = data
        self.count = len(regions)

    def guest_address(self, user: int) -> int:
        """Return the guest address of an address of the front end's.

        Raises:
            PeerError: it is in no region.
        """
        for region in self._regions:
            if region.user <= user < region.user + region.size:
                return region.guest + user - region.user
        raise PeerError(f"address {user:#x} is in no region of memory")

    def clear(self) -> None:
        """Unmap everything."""
        self._device.unmap_all()
        self._store([])

    def set_table(self, payload: bytes | memoryview, fds: list[int]) -> None:
        """SET_MEM_TABLE: these regions in the place of all others."""
        regions = unpack_table(payload)
        if len(fds) != len(regions):
            raise PeerError(f"{len(regions)} regions of memory came with {len(fds)} descriptors")
        for number, region in enumerate(regions):
            _check(region, regions[:number])
        self.clear()
        try:
            for region in regions:
                self._device.map_region(region, fds.pop(0))
        except PeerError:
            self.clear()
            raise
        self._store(regions)

    def get_most(self, payload: bytes | memoryview, fds: list[int]) -> bytes:
        """GET_MAX_MEM_SLOTS."""
        return U64.pack(MAX_SLOTS)

    def add(self, payload: bytes | memoryview, fds: list[int]) -> None:
        """ADD_MEM_REG."""
        region = _single(payload)
        if region in self._regions:
            # Given twice: by a front end, or to a predecessor that was killed over it.
            return
        if len(self._regions) >= MAX_SLOTS:
            raise PeerError(f"more than {MAX_SLOTS} regions of memory")
        _check(region, self._regions)
        self._device.map_region(region, fds.pop())
        self._store([*self._regions, region])

    def remove(self, payload: bytes | memoryview, fds: list[int]) -> None:
        """REM_MEM_REG: the offset does not count, and a region that is not there is fine, as with VFIO."""
        removed = _single(payload)
        for region in self._regions:
            if region[:3] == removed[:3]:
                self._device.unmap_region(region)
                self._store([each for each in self._regions if each != region])
                return


def _single(payload: bytes | memoryview) -> MemoryRegion:
    return unpack(MemoryRegion, payload[len(SLOT_PADDING) :])


def _check(region: MemoryRegion, others: Sequence[MemoryRegion]) -> None:
    guest, size, user, offset = region
    if not size or guest + size > _ADDRESS_LIMIT or user + size > _ADDRESS_LIMIT or offset + size >= 1 << 63:
        raise PeerError(f"{region} is empty, or leaves the address space")
    for other in others:
        for start, theirs in ((guest, other.guest), (user, other.user)):
            if start < theirs + other.size and theirs < start + size:
                raise PeerError(f"{region} overlaps {other}")
