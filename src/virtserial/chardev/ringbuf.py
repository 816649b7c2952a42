"""chardev ringbuf (alias memory): the last `size` bytes the guest wrote, for the monitor's ringbuf-read.

The ring is a memfd that keeper and worker share: a page with the two positions, then the bytes.  Positions count bytes
for ever, as QEMU's `prod` and `cons`.  A record lock (fcntl) keeps the two processes apart for the length of a copy;
it is only ever tried, never waited for, by the worker, and the kernel releases it when its holder dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import time
from typing import TYPE_CHECKING

from virtserial.accounting import account
from virtserial.chardev.base import Chardev, Connection
from virtserial.errors import BackendError, ConfigError, StateError
from virtserial.host_end.base import HostEnd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from virtserial.chardev.base import ConnectionSink, Put, Take
    from virtserial.loop import EventLoop

DEFAULT_SIZE = 65536
HEADER_SIZE = mmap.PAGESIZE
SIZE, PRODUCED, CONSUMED = range(3)
"""Fields of the header, 64 bits each."""

LOCK_TRY_SECONDS = 0.001
LOCK_PATIENCE_SECONDS = 1.0
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
            BlockingIOError: the other process is at it.
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
            # Bytes that are about to be overwritten are given up first: a death in between loses them and shows no
            # mixture.
            self._header[CONSUMED] = max(self._header[CONSUMED], produced + count - self.size)
            account.stray = True
            os.pwritev(self._fd, before_wrap, HEADER_SIZE + start)
            if start + count > self.size:
                os.pwritev(self._fd, after_wrap, HEADER_SIZE)
            self._header[PRODUCED] = produced + count
            return count

    def read(self, limit: int) -> bytes:
        """Take up to `limit` of the oldest bytes.

        Raises:
            BlockingIOError: the other process is at it.
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


class RingbufChardev(Chardev):
    """`kind` is "ringbuf" or QEMU's older name "memory"."""

    host_connected_at_start = True

    def __init__(self, chardev_id: str, size: int = DEFAULT_SIZE, kind: str = "ringbuf") -> None:
        super().__init__(chardev_id)
        self.kind = kind
        self.size = size
        self._ring: RingMemory | None = None

    def _open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        if self.size & (self.size - 1) or not self.size:
            raise ConfigError("size of ringbuf chardev must be power of two")
        try:
            self._ring = RingMemory.create(self.size)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot make a ringbuf of {self.size} bytes: {error}") from error
        params: dict[str, object] = {"name": f"chardev '{self.id}' (ringbuf)"}
        sink.connection_opened(self, Connection("ringbuf", (self._ring.duplicate_fd(),), params))

    def _hand_over(self, put: Put) -> dict[str, object]:
        return {"ring": put(self._opened().fileno())}

    def _resume(self, loop: EventLoop, sink: ConnectionSink, saved: Mapping[str, Any], take: Take) -> None:
        self._ring = RingMemory(take(saved["ring"]))

    @property
    def count(self) -> int:
        """How many bytes `read` could give."""
        return self._ring.count if self._ring is not None else 0

    def read(self, limit: int) -> bytes:
        """Take up to `limit` of the oldest bytes (ringbuf-read).

        Raises:
            BackendError: the worker has held the ring for more than a second (it is stopped).
            StateError: it is not open.
        """
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
        while True:
            try:
                return self._opened().read(limit)
            except BlockingIOError:
                self._wait_for_lock(deadline)

    def write(self, data: bytes) -> None:
        """Append (ringbuf-write).

        Raises:
            BackendError, StateError: as `read`.
        """
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._opened().write([rest]) :]
            except BlockingIOError:
                self._wait_for_lock(deadline)

    def _opened(self) -> RingMemory:
        if self._ring is None:
            raise StateError(f"chardev '{self.id}' is not open")
        return self._ring

    def _wait_for_lock(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise BackendError(
                f"chardev '{self.id}': the other process has held the ring for {LOCK_PATIENCE_SECONDS:g} s"
            )
        time.sleep(LOCK_TRY_SECONDS)

    def _close(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = None


class RingbufHostEnd(HostEnd):
    """Takes everything, gives nothing: ringbuf-write puts bytes into the ring, not to the guest, as with QEMU."""

    def __init__(self, loop: EventLoop, name: str, fd: int) -> None:
        super().__init__(name)
        self._loop = loop
        self._ring = RingMemory(fd)
        self._closed = False

    def start(self) -> None:
        self.connected = True
        self.listener.host_opened()

    def writev(self, buffers: Sequence[memoryview]) -> int:
        try:
            return self._ring.write(buffers)
        except BlockingIOError:
            self._loop.call_later(LOCK_TRY_SECONDS, self._try_again)
            return 0
        except OSError as error:
            self.ended = True
            self.connected = False
            raise BackendError(f"{self.name}: cannot write: {error.strerror}") from error

    def _try_again(self) -> None:
        if not self._closed:
            self.listener.host_writable()

    def readv(self, buffers: Sequence[memoryview]) -> int:
        return 0

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.connected = False
            self._ring.close()
