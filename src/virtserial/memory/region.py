"""One region of guest memory: what a single DMA_MAP gave us, in one of three forms.

* `MappedRegion`: the file behind it cannot shrink, so it is mapped and its bytes are reached by views.
* `FileRegion`: the file may shrink.  A mapping would turn that into SIGBUS, which Python cannot catch, so every access
  is a pread or pwrite.
* `MessageRegion`: no file came with the map.  Every access is a DMA_READ or DMA_WRITE message to the VMM.

An offset below always counts from the start of the region, and the caller has checked offset and length against
`size`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import ClassVar, Protocol, TypeAlias
from weakref import WeakValueDictionary

from virtserial.accounting import Account
from virtserial.errors import AddressError, PeerError

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes to be stored (collections.abc.Buffer is newer than Python 3.11)."""

F_SEAL_SHRINK = 2


class Region(Protocol):
    """A range of guest addresses [iova, iova + size)."""

    iova: int
    size: int
    writable: bool
    view: memoryview | None
    """The region's bytes, where they are mapped."""

    def read(self, offset: int, length: int) -> bytes:
        """Return a copy of `length` bytes."""
        ...

    def write(self, offset: int, data: Buffer) -> None:
        """Store `data`."""
        ...


def cannot_shrink(fd: int) -> bool:
    """Whether the file's size is sealed against shrinking (memfd with F_SEAL_SHRINK)."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & F_SEAL_SHRINK)
    except OSError:
        return False


class _FileMapping:
    """A whole file mapped once, however many regions lie in it; unmapped when the last of them is gone."""

    _shared: ClassVar[WeakValueDictionary[tuple[int, int, bool], _FileMapping]] = WeakValueDictionary()

    def __init__(self, fd: int, length: int, writable: bool) -> None:
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.length = length
        self.view = memoryview(mmap.mmap(fd, length, mmap.MAP_SHARED, prot))

    @classmethod
    def of(cls, fd: int, end: int, writable: bool) -> _FileMapping:
        status = os.fstat(fd)
        if end > status.st_size:
            raise PeerError(f"DMA map ends at offset {end} of a file of {status.st_size} bytes")
        key = (status.st_dev, status.st_ino, writable)
        mapping = cls._shared.get(key)
        if mapping is None or mapping.length < end:
            try:
                mapping = cls(fd, status.st_size, writable)
            except OSError as error:
                raise PeerError(f"DMA map cannot be mapped: {error.strerror}", error.errno or 22) from error
            cls._shared[key] = mapping
        return mapping


class MappedRegion:
    """Guest memory in a file that cannot shrink: reached by views, without a system call."""

    def __init__(self, iova: int, size: int, fd: int, offset: int, writable: bool = True) -> None:
        self.iova = iova
        self.size = size
        self.writable = writable
        self._mapping = _FileMapping.of(fd, offset + size, writable)
        self.view: memoryview | None = self._mapping.view[offset : offset + size]

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
        """Raises AddressError where the file does not reach any more: a pwrite would grow it."""
        length = len(memoryview(data))
        if os.fstat(self._fd).st_size < self._offset + offset + length:
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

    def __init__(self, iova: int, size: int, access: MessageAccess, writable: bool = True) -> None:
        self.iova = iova
        self.size = size
        self.writable = writable
        self._access = access

    def read(self, offset: int, length: int) -> bytes:
        return self._access.dma_read(self.iova + offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        self._access.dma_write(self.iova + offset, data)
