"""The moving half of chardev null; it also stands in while a chardev with a logfile has no connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.host_end.base import HostEnd

if TYPE_CHECKING:
    from collections.abc import Sequence


class NullHostEnd(HostEnd):
    """Takes everything, gives nothing, is never connected.

    A console writes to it all the same: consoles count as connected whenever they have a chardev."""


    def start(self) -> None:
        pass

    def writev(self, buffers: Sequence[memoryview]) -> int:
        return sum(buffer.nbytes for buffer in buffers)

    def readv(self, buffers: Sequence[memoryview]) -> int:
        return 0

    def close(self) -> None:
        pass
