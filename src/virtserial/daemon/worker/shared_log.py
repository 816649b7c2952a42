"""The log of written pages that a vhost-user front end shares: a bit for each page, which several processes set.

Bits are set by FUTEX_WAKE_OP: the kernel's own atomic OR on a word of shared memory, the only one that Python can reach
without code in C.  If the front end cuts the file the call fails, where a store would be SIGBUS.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

from virtserial.errors import PeerError
from virtserial.memory.dirty_log import LOGGED_PAGE_SIZE, DirtyLog

MAX_LOG_SIZE: Final = 1 << 30
"""Bytes: a bit for each page of 32 TiB."""
_SYS_FUTEX: Final = 202
_FUTEX_WAKE_OP: Final = 5
_OR_BIT: Final = (2 | 8) << 28
"""FUTEX_OP_OR with FUTEX_OP_ARG_SHIFT: the argument is the number of a bit."""
_ONES: Final = b"\xff" * 65536
PIECE: Final = 1 << 20
"""Bytes marked in one turn: a whole log takes a second."""


class SharedLog(DirtyLog):
    """A log whose bits are a part of a file, where the front end takes them.

    Args:
        fd: the file, owned from here on.
        offset, size: of the log in it, in bytes.

    Raises:
        PeerError: it cannot be mapped.
    """

    def __init__(self, fd: int, offset: int, size: int) -> None:
        import ctypes  # a start without a log does not need it; the sandbox has imported it before it closes

        super().__init__()
        self._fd = fd
        self._offset = offset
        self._size = size
        self._marked = size
        try:
            if not 0 < size <= MAX_LOG_SIZE or offset % mmap.PAGESIZE or offset + size >= 1 << 63:
                raise PeerError(f"log of {size} bytes at {offset}: at most {MAX_LOG_SIZE}, from the start of a page")
            self._memory = mmap.mmap(fd, size, offset=offset)
        except (OSError, ValueError) as error:
            os.close(fd)
            raise PeerError(f"the log cannot be mapped: {error}") from error
        except PeerError:
            os.close(fd)
            raise
        self._anchor = ctypes.c_char.from_buffer(self._memory)
        self._address = ctypes.addressof(self._anchor)
        self._syscall = ctypes.CDLL(None).syscall
        self._pointer = ctypes.c_void_p

    def mark(self, address: int, length: int) -> None:
        """Note a write to [address, address + length); what the log has no bit for is left out."""
        if length <= 0:
            return
        last = min((address + length - 1) // LOGGED_PAGE_SIZE, 8 * (self._size & ~3) - 1)
        for page in range(address // LOGGED_PAGE_SIZE, last + 1):
            word = self._pointer(self._address + (page >> 5 << 2))
            self._syscall(_SYS_FUTEX, word, _FUTEX_WAKE_OP, 0, None, word, _OR_BIT | (page & 31) << 12)

    def mark_everything(self) -> None:
        """Count every page as written, by calls of `mark_on`."""
        self._marked = 0

    def mark_on(self) -> bool:
        """Mark the next PIECE of everything; returns whether there are more.

        A pipe or a file that was cut is its giver's loss.
        """
        for start in range(self._marked, self._size, len(_ONES))[: PIECE // len(_ONES)]:
            try:
                os.pwrite(self._fd, _ONES[: self._size - start], self._offset + start)
            except OSError:
                self._marked = self._size
                break
            self._marked = start + len(_ONES)
        return self._marked < self._size

    def close(self) -> None:
        """Unmap and close it."""
        del self._anchor
        self._memory.close()
        os.close(self._fd)
