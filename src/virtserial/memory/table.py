"""The memory table: every region that the VMM has mapped for one device, and the way from a guest address to bytes.

Nothing outside a region is reachable: the table checks each access against the region's bounds and against 2**64, and
a returned view ends where its region ends.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from virtserial.errors import AddressError, PeerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from virtserial.memory.dirty_log import DirtyLog
    from virtserial.memory.region import Buffer, Region

ADDRESS_LIMIT = 1 << 64
MAX_REGIONS = 8192
"""Maps of one VMM.  A machine needs a few dozen; a guest with a vIOMMU one for each posted buffer, 128 for a port.
VFIO's type1 driver allows 65,535 (dma_entry_limit), but each costs 30 us when a worker takes over, for all VMMs."""


class MemoryTable:
    """Regions sorted by address, none overlapping another.

    Attributes:
        recent: a recently used mapped region; None after every change.
        generation: counts the changes.
        commits: counts how often chains were returned: what was read of the rings before is of the past.
        log: notes the device's writes; None while nobody asks for them.  Rings read it when they open.
    """

    def __init__(self) -> None:
        self.log: DirtyLog | None = None
        self.recent: Region | None = None
        self.generation = 0
        self.commits = 0
        self._starts: list[int] = []
        self._regions: list[Region] = []

    def __len__(self) -> int:
        return len(self._regions)

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions)

    def check(self, iova: int, size: int) -> None:
        """Check that [iova, iova + size) may be mapped now.

        Raises:
            PeerError: the range is empty, leaves the 64-bit space or overlaps a region; there are too many regions.
        """
        if size <= 0 or iova < 0 or iova + size > ADDRESS_LIMIT:
            raise PeerError(f"DMA map of {size:#x} bytes at {iova:#x} leaves the 64-bit address space")
        if len(self._regions) >= MAX_REGIONS:
            raise PeerError(f"DMA map: more than {MAX_REGIONS} regions", 28)
        index = bisect_right(self._starts, iova)
        before = self._regions[index - 1] if index else None
        after = self._regions[index] if index < len(self._regions) else None
        if (before and before.iova + before.size > iova) or (after and iova + size > after.iova):
            raise PeerError(f"DMA map of {size:#x} bytes at {iova:#x} overlaps another", 17)

    def map(self, region: Region) -> None:
        """Add a region.

        Raises:
            PeerError: see `check`.
        """
        self.check(region.iova, region.size)
        index = bisect_right(self._starts, region.iova)
        self._starts.insert(index, region.iova)
        self._regions.insert(index, region)
        self._changed()

    def _changed(self) -> None:
        self.recent = None
        self.generation += 1

    def unmap(self, iova: int, size: int) -> list[Region]:
        """Remove the regions inside [iova, iova + size) and return them; none is fine, as with VFIO.

        Raises:
            PeerError: the range cuts a region in two.
        """
        if size <= 0 or iova < 0 or iova + size > ADDRESS_LIMIT:
            raise PeerError(f"DMA unmap of {size:#x} bytes at {iova:#x} leaves the 64-bit address space")
        end = iova + size
        first = bisect_right(self._starts, iova)
        if first and self._starts[first - 1] == iova:
            first -= 1
        elif first and iova < self._starts[first - 1] + self._regions[first - 1].size:
            raise PeerError(f"DMA unmap at {iova:#x} cuts the region at {self._starts[first - 1]:#x}")
        last = first
        while last < len(self._regions) and self._starts[last] < end:
            last += 1
        if last > first and self._starts[last - 1] + self._regions[last - 1].size > end:
            raise PeerError(f"DMA unmap up to {end:#x} cuts the region at {self._starts[last - 1]:#x}")
        removed = self._regions[first:last]
        if removed:
            del self._regions[first:last]
            del self._starts[first:last]
            self._changed()
        return removed

    def clear(self) -> list[Region]:
        """Remove every region and return them."""
        removed, self._regions, self._starts = self._regions, [], []
        self._changed()
        return removed

    def find(self, address: int) -> Region:
        """Return the region that holds `address`.

        Raises:
            AddressError: no region does.
        """
        index = bisect_right(self._starts, address) - 1
        if index >= 0:
            region = self._regions[index]
            if address < region.iova + region.size:
                return region
        raise AddressError(f"guest address {address:#x} is not mapped for DMA")

    def pieces(self, address: int, length: int, write: bool) -> Iterator[tuple[Region, int, int]]:
        """Yield (region, offset, length) for a range that may span adjacent regions (behind an IOMMU it does).

        Raises:
            AddressError: a part is not mapped, not writable though `write` is set, or past 2**64.
        """
        if address + length > ADDRESS_LIMIT:
            raise AddressError(f"{length:#x} bytes at guest address {address:#x} leave the 64-bit address space")
        end_found = False
        while length:
            region = self.find(address)
            if write and not region.writable:
                raise AddressError(f"guest address {address:#x} is mapped read-only, the device was asked to write")
            offset = address - region.iova
            count = min(length, region.size - offset)
            if count < length and not end_found:
                # Refuse a range whose end is not mapped before its first byte is used.
                self.find(address + length - 1)
                end_found = True
            yield region, offset, count
            address += count
            length -= count

    def readable_views(self, address: int, length: int, limit: int) -> list[memoryview]:
        """Return views of a range: of guest memory where it is mapped, else of a copy.

        At most `limit` bytes are copied; the views end once they hold that many.

        Raises:
            AddressError: see `pieces`.
        """
        views: list[memoryview] = []
        if limit <= 0:
            return views
        for region, offset, count in self.pieces(address, length, write=False):
            if region.view is not None:
                views.append(region.view[offset : offset + count])
            else:
                views.append(memoryview(region.read(offset, min(count, limit))))
            limit -= count
            if limit <= 0:
                break
        return views

    def writable_views(
        self, address: int, length: int, limit: int
    ) -> tuple[list[memoryview], list[tuple[int, memoryview]]]:
        """Return views to fill, and those among them that are not guest memory.

        The second list holds (guest address, view): fill such a view, then pass its filled part to `write`.  At most
        `limit` bytes of such buffers are made; the views end once they hold that many.

        Raises:
            AddressError: see `pieces`.
        """
        views: list[memoryview] = []
        bounces: list[tuple[int, memoryview]] = []
        if limit <= 0:
            return views, bounces
        for region, offset, count in self.pieces(address, length, write=True):
            if region.view is not None:
                views.append(region.view[offset : offset + count])
            else:
                view = memoryview(bytearray(min(count, limit)))
                views.append(view)
                bounces.append((region.iova + offset, view))
            limit -= count
            if limit <= 0:
                break
        return views, bounces

    def read(self, address: int, length: int) -> bytes:
        """Return a copy of a range.

        Raises:
            AddressError: see `pieces`.
        """
        parts = [region.read(offset, count) for region, offset, count in self.pieces(address, length, write=False)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, address: int, data: Buffer) -> None:
        """Store bytes.

        Raises:
            AddressError: see `pieces`; nothing was stored.
        """
        data = memoryview(data)
        start = 0
        for region, offset, count in list(self.pieces(address, len(data), write=True)):
            region.write(offset, data[start : start + count])
            start += count

    def view_in_region(self, address: int, length: int, writable: bool) -> memoryview | None:
        """Return one view of a range inside one mapped region; None if the range is anything else."""
        region = self.recent
        if region is None or not region.iova <= address < region.iova + region.size:
            try:
                region = self.find(address)
            except AddressError:
                return None
            if region.view is not None:
                self.recent = region
        view, at = region.view, address - region.iova
        end = at + length
        if view is None or end > region.size or (writable and not region.writable):
            return None
        return view[at:end]

    def mapped_view(self, address: int, length: int) -> memoryview | None:
        """Return one view of a whole range in mapped, writable memory, or None if the range is elsewhere.

        Raises:
            AddressError: the range is not mapped for DMA.
        """
        pieces = list(self.pieces(address, length, write=True))
        if len(pieces) != 1 or pieces[0][0].view is None:
            return None
        region, offset, count = pieces[0]
        assert region.view is not None
        return region.view[offset : offset + count]
