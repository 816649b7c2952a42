"""chardev null: takes everything, gives nothing, and is not connected (QEMU's chardev/char-null.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.chardev.base import Chardev, Connection
from virtserial.host_end.base import HostEnd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.chardev.base import ConnectionSink
    from virtserial.loop import EventLoop


class NullChardev(Chardev):
    kind = "null"

    def _open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        sink.connection_opened(self, Connection("null", (), {"name": f"chardev '{self.id}'"}))


class NullHostEnd(HostEnd):
    """A console writes to it all the same: consoles count as connected whenever they have a chardev."""

    def start(self) -> None:
        pass

    def writev(self, buffers: Sequence[memoryview]) -> int:
        return sum(buffer.nbytes for buffer in buffers)

    def readv(self, buffers: Sequence[memoryview]) -> int:
        return 0

    def close(self) -> None:
        pass
