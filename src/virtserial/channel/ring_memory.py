"""The ring of a chardev ringbuf: a memfd that keeper and worker share.

The memfd is a page with the two positions, then the bytes.  Positions count bytes for ever, as QEMU's `prod` and
`cons`.  A record lock (fcntl) keeps the two processes apart during a copy.  `read` and `write` only try the lock; the
kernel releases it when its holder dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HEADER_SIZE = mmap.PAGESIZE
SIZE, PRODUCED, CONSUMED = range(3)
"""Fields of the header, 64 bits each."""

LOCK_TRY_SECONDS = 0.001
"""Between two tries."""
MAX_BUFFERS = 512
"""Half of UIO_MAXIOV: a piece that wraps adds one."""


class RingMemory:
    """One process's view of a ring.  Takes ownership of `fd`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map = mmap.mmap(fd, HEADER_SIZE)
        self._header = memoryview(self._map).cast("Q")
        self.size = self._header[SIZE]

    @classmethod
    def create(cls, size: int) -> RingMemory:
        """A new ring for `size` bytes, a power of two."""
        fd = os.memfd_create("virtserial-ringbuf", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, HEADER_SIZE + size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            os.pwrite(fd, size.to_bytes(8, "little"), 8 * SIZE)
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    def fileno(self) -> int:
        return self._fd

    def duplicate_fd(self) -> int:
        return os.dup(self._fd)

    @property
    def count(self) -> int:
        """Bytes that can be read."""
        return self._header[PRODUCED] - self._header[CONSUMED]

    def write(self, buffers: Sequence[memoryview]) -> int:
        """Append; the oldest bytes make room.  Takes at most `size` bytes of at most 512 buffers in a call.

        Raises:
            BlockingIOError: the other process holds the lock.
        """
        with self._lock():
            produced = self._header[PRODUCED]
            start = produced % self.size
            before_wrap, after_wrap, count = [], [], 0
            for buffer in buffers[:MAX_BUFFERS]:
                piece = buffer[: self.size - count]
                room = max(0, self.size - start - count)
                before_wrap.append(piece[:room])
                after_wrap.append(piece[room:])
                count += piece.nbytes
                if count == self.size:
                    break
            # Give up the bytes that are overwritten first: a death in between loses them, but shows no mixture.
            self._header[CONSUMED] = max(self._header[CONSUMED], produced + count - self.size)
            os.pwritev(self._fd, before_wrap, HEADER_SIZE + start)
            if start + count > self.size:
                os.pwritev(self._fd, after_wrap, HEADER_SIZE)
            self._header[PRODUCED] = produced + count
            return count

    def read(self, limit: int) -> bytes:
        """Take up to `limit` of the oldest bytes.

        Raises:
            BlockingIOError: the other process holds the lock.
        """
        with self._lock():
            consumed = self._header[CONSUMED]
            start = consumed % self.size
            count = min(limit, self._header[PRODUCED] - consumed)
            data = os.pread(self._fd, min(count, self.size - start), HEADER_SIZE + start)
            data += os.pread(self._fd, count - len(data), HEADER_SIZE)
            self._header[CONSUMED] = consumed + count
            return data

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise BlockingIOError(errno.EAGAIN, "the ring is locked") from error
            raise
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        self._header.release()
        self._map.close()
        os.close(self._fd)
