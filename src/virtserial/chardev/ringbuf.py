"""chardev ringbuf (alias memory): the last `size` bytes the guest wrote, for the monitor's ringbuf-read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from virtserial.channel.connections import RingbufConnection
from virtserial.channel.ring_memory import LOCK_TRY_SECONDS, RingMemory
from virtserial.chardev.base import Chardev
from virtserial.errors import BackendError, ConfigError, StateError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from virtserial.chardev.base import ConnectionSink, Put, Take
    from virtserial.loop import EventLoop

DEFAULT_SIZE = 65536
LOCK_PATIENCE_SECONDS = 1.0


class RingbufChardev(Chardev):
    """`kind` is "ringbuf" or QEMU's older name "memory"."""


    def __init__(self, chardev_id: str, size: int = DEFAULT_SIZE, kind: str = "ringbuf") -> None:
        super().__init__(chardev_id)
        self.kind = kind
        self.size = size
        self._ring: RingMemory | None = None

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        if self.size & (self.size - 1) or not self.size:
            raise ConfigError("size of ringbuf chardev must be power of two")
        try:
            self._ring = RingMemory.create(self.size)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot make a ringbuf of {self.size} bytes: {error}") from error
        connection = RingbufConnection(f"chardev '{self.id}' (ringbuf)")
        sink.connection_opened(self, connection, (self._ring.duplicate_fd(),))

    def hand_over(self, put: Put) -> dict[str, object]:
        return {"ring": put(self._opened().fileno())}

    def take_over(self, loop: EventLoop, sink: ConnectionSink, saved: Mapping[str, Any], take: Take) -> None:
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

    def close(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = None
