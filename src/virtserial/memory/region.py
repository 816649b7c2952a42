"""One region of guest memory, from one DMA_MAP, in one of three forms (`RegionMaker` chooses).

| form | when | access |
|---|---|---|
| `MappedRegion` | the file keeps its pages, or the VMM is trusted | views of a mapping |
| `FileRegion` | the file may shrink: a mapping would turn that into SIGBUS, which Python cannot catch | pread, pwrite |
| `MessageRegion` | no file, or huge pages, which cannot be written by a system call | DMA_READ, DMA_WRITE messages |

Offsets count from the start of the region; callers check offset and length against `size`.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Protocol, TypeAlias

from virtserial.accounting import Account
from virtserial.errors import AddressError, AddressSpaceFull, PeerError
from virtserial.memory.file_status import has_huge_pages, status_of
from virtserial.memory.mapping import MappingBudget, view_of_file

if TYPE_CHECKING:
    from collections.abc import Callable

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes to be stored (collections.abc.Buffer is newer than Python 3.11)."""

F_SEAL_SHRINK = 2


class Region(Protocol):
    """A range of guest addresses [iova, iova + size)."""

    iova: int
    size: int
    writable: bool
    view: memoryview | None
    """The region's bytes; None if they are not mapped."""
    is_shared: bool
    """Whether it is reached past the VMM, which then does not see what is stored there."""

    def read(self, offset: int, length: int) -> bytes:
        """Return a copy of `length` bytes."""
        ...

    def write(self, offset: int, data: Buffer) -> None:
        """Store `data`."""
        ...


def keeps_its_pages(fd: int) -> bool:
    """Whether a mapping of the file can never be SIGBUS: a memfd of ordinary pages, sealed against shrinking.

    A seal does not stop holes.  A touched hole is a fresh page in ordinary memory, but SIGBUS in huge pages if the pool
    is empty, and F_SEAL_WRITE, which does stop holes, would lock out the guest.
    """
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & F_SEAL_SHRINK
    except OSError:
        return False
    return bool(sealed) and not has_huge_pages(fd)


class MappedRegion:
    """Guest memory in a mapped file: reached by views, without a system call.

    Raises:
        AddressSpaceFull, PeerError: see mapping.view_of_file.
    """

    is_shared = True

    def __init__(
        self, iova: int, size: int, fd: int, offset: int, writable: bool = True, budget: MappingBudget | None = None
    ) -> None:
        self.iova = iova
        self.size = size
        self.writable = writable
        self.view: memoryview | None = view_of_file(fd, offset, size, writable, budget or MappingBudget())

    def read(self, offset: int, length: int) -> bytes:
        view = self.view
        assert view is not None
        return bytes(view[offset : offset + length])

    def write(self, offset: int, data: Buffer) -> None:
        view = self.view
        assert view is not None
        data = memoryview(data)
        if len(data) == 2 and not offset & 1:
            # A ring index: one aligned store, never two bytes one after the other.
            view[offset : offset + 2].cast("H")[0] = data[0] | data[1] << 8
        else:
            view[offset : offset + len(data)] = data


class FileRegion:
    """Guest memory in a file that may shrink: reached by pread and pwrite.  Owns `fd`."""

    view: memoryview | None = None
    is_shared = True

    def __init__(
        self, iova: int, size: int, fd: int, offset: int, writable: bool = True, account: Account | None = None
    ) -> None:
        self.iova = iova
        self.size = size
        self.writable = writable
        self._account = account or Account()
        self._fd = fd
        self._offset = offset

    def __del__(self) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        self._account.stray = True
        try:
            data = os.pread(self._fd, length, self._offset + offset)
        except OSError as error:
            raise AddressError(f"guest memory at {self.iova + offset:#x} cannot be read: {error.strerror}") from None
        if len(data) != length:
            raise AddressError(f"guest memory at {self.iova + offset:#x} is gone: its file was truncated")
        return data

    def write(self, offset: int, data: Buffer) -> None:
        """Store `data`.  The file grows again, by zeros and `data`, if it shrinks between the look and the pwrite.

        Raises:
            AddressError: it no longer reaches that far, or cannot be stored.
        """
        length = len(memoryview(data))
        if status_of(self._fd).size < self._offset + offset + length:
            raise AddressError(f"guest memory at {self.iova + offset:#x} is gone: its file was truncated")
        self._account.stray = True
        try:
            written = os.pwrite(self._fd, data, self._offset + offset)
        except OSError as error:
            raise AddressError(f"guest memory at {self.iova + offset:#x} cannot be stored: {error.strerror}") from None
        if written != length:
            raise AddressError(f"guest memory at {self.iova + offset:#x} cannot be stored: its file system is full")


class MessageAccess(Protocol):
    """Memory accesses by vfio-user messages; each call blocks until the VMM has answered."""

    def dma_read(self, address: int, length: int) -> bytes: ...
    def dma_write(self, address: int, data: Buffer) -> None: ...


class MessageRegion:
    """Guest memory that only the VMM can reach: DMA_READ and DMA_WRITE messages."""

    view: memoryview | None = None
    is_shared = False

    def __init__(self, iova: int, size: int, access: MessageAccess, writable: bool = True) -> None:
        self.iova = iova
        self.size = size
        self.writable = writable
        self._access = access

    def read(self, offset: int, length: int) -> bytes:
        return self._access.dma_read(self.iova + offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        self._access.dma_write(self.iova + offset, data)


class RegionMaker:
    """Makes regions of one VMM's DMA maps.

    Args:
        access: reaches memory by messages.
        trust_vmm: map files even if the VMM can take their pages away.
        slow: takes a text when a region is slower than a mapping.
        account: counts this process's reads and writes.
    """

    def __init__(
        self, access: MessageAccess, trust_vmm: bool, slow: Callable[[str], None], account: Account | None = None
    ) -> None:
        self._account = account
        self._access = access
        self._trust_vmm = trust_vmm
        self._slow = slow
        self._budget = MappingBudget()

    def make(self, iova: int, size: int, fd: int | None, offset: int, writable: bool) -> Region:
        """Return the region of a map; `fd` stays the caller's.

        Raises:
            PeerError: the range is outside the file, the descriptor lacks the right, or the kernel refuses.
        """
        if fd is None:
            # ROMs and a display's memory have no file, so this is nothing to report.
            return MessageRegion(iova, size, self._access, writable)
        try:
            return self._with_file(iova, size, fd, offset, writable)
        except OSError as error:
            raise PeerError(f"DMA map of a file that cannot be used: {error}", error.errno or 22) from error

    def _with_file(self, iova: int, size: int, fd: int, offset: int, writable: bool) -> Region:
        if self._trust_vmm or keeps_its_pages(fd):
            try:
                return MappedRegion(iova, size, fd, offset, writable, self._budget)
            except AddressSpaceFull as error:
                self._slow(str(error))
        elif has_huge_pages(fd):
            self._slow("the guest's memory has huge pages, which are mapped with --trust-vmm only")
            return MessageRegion(iova, size, self._access, writable)
        else:
            self._slow("the guest's memory file is not sealed (memory-backend-memfd is): it is not mapped")
        file_size = status_of(fd).size
        if file_size < offset + size:
            raise PeerError(f"DMA map ends at offset {offset + size} of a file of {file_size} bytes")
        return FileRegion(iova, size, os.dup(fd), offset, writable, self._account)
