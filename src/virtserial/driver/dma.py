"""Memory that driver and device share: rings and buffers.

Each region is a memfd, sealed against shrinking (a device maps only such files), mapped here and handed to the device.
The kernel allocates its pages at the first touch, so a large region costs nothing by itself.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING, NamedTuple, Protocol

from virtserial.errors import PeerError, StateError

if TYPE_CHECKING:
    from virtserial.memory.region import Buffer

FIRST_IOVA = 1 << 32
"""Above 4 GiB, to expose addresses cut to 32 bits, and within the 39 bits of the smallest IOMMU."""
REGION_SIZE = 64 << 20
PAGE_SIZE = mmap.PAGESIZE


class DmaMapper(Protocol):
    """The part of DeviceAccess that hands memory to the device."""

    def dma_map(self, iova: int, size: int, *, fd: int | None = None, offset: int = 0) -> None: ...
    def dma_unmap(self, iova: int, size: int) -> None: ...


class DmaBuffer(NamedTuple):
    """A piece of DMA memory: the device's address of it, and its bytes."""

    address: int
    view: memoryview


class DmaRegion:
    """One memfd, mapped here, at one address of the device's.

    Args:
        sealed: seal it against shrinking, which a device requires before it maps it.
    """

    def __init__(self, iova: int, size: int, *, sealed: bool = True) -> None:
        self.iova = iova
        self.size = size
        self.fd = os.memfd_create("virtserial-dma", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            if sealed:
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self.view = memoryview(mmap.mmap(self.fd, size))
        except OSError:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Close the file; the mapping goes with the last view of it."""
        os.close(self.fd)


class DmaMemory:
    """Allocates DMA memory and maps another region when one is full; memory is freed as a whole.

    It also answers memory accesses by message (vfio_user.client.DmaHandler), for a device without the file.

    Args:
        mapper: hands regions to the device.
        sealed: see DmaRegion.
        shared: hand the file to the device; else the device accesses memory by messages.
    """

    def __init__(
        self,
        mapper: DmaMapper,
        *,
        sealed: bool = True,
        shared: bool = True,
        first_iova: int = FIRST_IOVA,
        region_size: int = REGION_SIZE,
    ) -> None:
        self._mapper = mapper
        self._sealed = sealed
        self._shared = shared
        self._next_iova = first_iova
        self._region_size = region_size
        self._used = 0
        self.regions: list[DmaRegion] = []

    def allocate(self, size: int, alignment: int = PAGE_SIZE) -> DmaBuffer:
        """Return `size` zeroed bytes, contiguous for the device.

        Raises:
            PeerError: the device refuses another region.
        """
        if size <= 0 or alignment <= 0 or alignment & (alignment - 1) or alignment > PAGE_SIZE:
            raise StateError(f"DMA memory of {size} bytes aligned to {alignment}: not possible")
        start = (self._used + alignment - 1) & -alignment
        if not self.regions or start + size > self.regions[-1].size:
            self._add_region(size)
            start = 0
        region = self.regions[-1]
        self._used = start + size
        return DmaBuffer(region.iova + start, region.view[start : start + size])

    def _add_region(self, least: int) -> None:
        size = (max(least, self._region_size) + PAGE_SIZE - 1) & -PAGE_SIZE
        region = DmaRegion(self._next_iova, size, sealed=self._sealed)
        try:
            self._mapper.dma_map(region.iova, size, fd=region.fd if self._shared else None)
        except BaseException:
            region.close()
            raise
        self._next_iova += size
        self.regions.append(region)

    def read(self, address: int, length: int) -> bytes:
        """Return a copy of device addresses, for a DMA_READ message.

        Raises:
            PeerError: outside every region.
        """
        return bytes(self._range(address, length))

    def write(self, address: int, data: Buffer) -> None:
        """Store bytes at device addresses, for a DMA_WRITE message.

        Raises:
            PeerError: outside every region.
        """
        data = memoryview(data).cast("B")
        target = self._range(address, len(data))
        if len(data) == 2 and not address & 1:
            # A ring index: one aligned store, because this process may read it meanwhile.
            target.cast("H")[0] = data[0] | data[1] << 8
        else:
            target[:] = data

    def _range(self, address: int, length: int) -> memoryview:
        for region in self.regions:
            start = address - region.iova
            if start >= 0 and 0 <= length <= region.size - start:
                return region.view[start : start + length]
        raise PeerError(f"device: access to {length} bytes at {address:#x}, which is no DMA memory", 14)

    def release(self) -> None:
        """Unmap every region from the device, after its reset, and start empty.

        Raises:
            PeerError: the device's end refuses, or is gone.
        """
        while self.regions:
            region = self.regions[-1]
            self._mapper.dma_unmap(region.iova, region.size)
            self.regions.pop().close()
        self._used = 0

    def close(self) -> None:
        """Drop every region without telling the device, because the device or its owner is gone."""
        while self.regions:
            self.regions.pop().close()
        self._used = 0
