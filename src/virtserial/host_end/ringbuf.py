"""The moving half of chardev ringbuf."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.channel.ring_memory import LOCK_TRY_SECONDS, RingMemory
from virtserial.errors import BackendError
from virtserial.host_end.base import HostEnd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.accounting import Account
    from virtserial.loop import EventLoop


class RingbufHostEnd(HostEnd):
    """Takes everything, gives nothing: ringbuf-write puts bytes into the ring, not to the guest, as with QEMU."""

    def __init__(self, loop: EventLoop, name: str, fd: int, account: Account) -> None:
        super().__init__(name)
        self._account = account
        self._loop = loop
        self._ring = RingMemory(fd)
        self._closed = False

    def start(self) -> None:
        self.connected = True
        self.listener.host_opened()

    def writev(self, buffers: Sequence[memoryview]) -> int:
        self._account.stray = True
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
