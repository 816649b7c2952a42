"""Parts of guest memory files, mapped into this process within a budget.

A VMM maps one file many times (behind a virtual IOMMU once for each page), and any file may be sparse and huge.  So the
files are mapped in windows, which all regions inside them share:

| rule | why |
|---|---|
| a window covers the requested range, rounded out to WINDOW bytes | a page of a 2 TiB file must not take 2 TiB |
| each further window of a file rounds to twice as much | a file in pages ends in a few windows |
| a VMM has MAPPED_BYTES and MAX_WINDOWS of its own | another VMM's maps must find room |
| a process has PROCESS_BYTES and PROCESS_WINDOWS | the allocator needs the rest of 128 TiB and of vm.max_map_count |

Beyond that the device reads and writes the file by system calls (region.FileRegion): slower, and as correct.  A window
is unmapped when its last view goes.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final
from weakref import finalize, ref

from virtserial.errors import AddressSpaceFull, PeerError
from virtserial.memory.file_status import status_of

WINDOW: Final = 64 << 20
MAPPED_BYTES: Final = 4 << 40
MAX_WINDOWS: Final = 256
PROCESS_BYTES: Final = 64 << 40
PROCESS_WINDOWS: Final = 16384

_SEAL_WRITE: Final = 0x8
_SEAL_FUTURE_WRITE: Final = 0x10


class MappingBudget:
    """Windows and bytes that one VMM's maps may take; a window counts for the VMM that mapped it first."""

    def __init__(self, most_windows: int = MAX_WINDOWS, most_bytes: int = MAPPED_BYTES) -> None:
        self._windows_left = most_windows
        self._bytes_left = most_bytes

    def has(self, size: int) -> bool:
        """Whether a window of `size` bytes fits."""
        return self._windows_left > 0 and self._bytes_left >= size

    def take(self, size: int) -> None:
        """Count a window of `size` bytes."""
        self._windows_left -= 1
        self._bytes_left -= size

    def give_back(self, size: int) -> None:
        """A window of `size` bytes was unmapped."""
        self._windows_left += 1
        self._bytes_left += size


_process = MappingBudget(PROCESS_WINDOWS, PROCESS_BYTES)
_windows: dict[tuple[int, int, bool], list[tuple[int, ref[mmap.mmap]]]] = {}
"""By device, inode and whether they are writable: (start, window)."""


def view_of_file(fd: int, offset: int, size: int, writable: bool, budget: MappingBudget) -> memoryview:
    """Return a view of [offset, offset + size) of a file that is mapped shared.

    Raises:
        AddressSpaceFull: the budget, or the process's, has no room for another window.
        PeerError: the range is outside the file, the descriptor lacks the right, or the kernel refuses.
    """
    end = offset + size
    status = status_of(fd)
    if end > status.size:
        raise PeerError(f"DMA map ends at offset {end} of a file of {status.size} bytes")
    _check_rights(fd, writable)
    key = (status.device, status.inode, writable)
    windows = _windows.get(key, [])
    for start, window in windows:
        mapped = window()
        if mapped is not None and start <= offset and end <= start + len(mapped):
            return memoryview(mapped)[offset - start : end - start]
    unit = max(WINDOW << len(windows), status.block_size)
    start = offset // unit * unit
    length = min(-(-end // unit) * unit, status.size) - start
    if not (budget.has(length) and _process.has(length)):
        raise AddressSpaceFull(f"DMA map of {size} bytes: no room for a window of {length} bytes", 12)
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        mapped = mmap.mmap(fd, length, mmap.MAP_SHARED, prot, offset=start)
    except (OSError, ValueError) as error:
        # ValueError: the file shrank just now (--trust-vmm).
        number = error.errno if isinstance(error, OSError) else None
        raise PeerError(f"DMA map cannot be mapped: {error}", number or 22) from error
    entry = (start, ref(mapped))
    _windows.setdefault(key, []).append(entry)
    for each in (budget, _process):
        each.take(length)
        finalize(mapped, each.give_back, length).atexit = False
    finalize(mapped, _forget, key, entry).atexit = False
    return memoryview(mapped)[offset - start : end - start]


def _check_rights(fd: int, writable: bool) -> None:
    """A window may be another descriptor's, so the kernel's checks of mmap(2) are made here for this one."""
    mode = fcntl.fcntl(fd, fcntl.F_GETFL)
    access = mode & os.O_ACCMODE
    if mode & os.O_PATH or access == os.O_WRONLY or (writable and access != os.O_RDWR):
        raise PeerError("DMA map cannot be mapped: its descriptor does not allow that access", 13)
    if writable:
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:
            return
        if seals & (_SEAL_WRITE | _SEAL_FUTURE_WRITE):
            raise PeerError("DMA map cannot be mapped: its file is sealed against writing", 1)


def _forget(key: tuple[int, int, bool], entry: tuple[int, ref[mmap.mmap]]) -> None:
    windows = _windows[key]
    windows.remove(entry)
    if not windows:
        del _windows[key]
