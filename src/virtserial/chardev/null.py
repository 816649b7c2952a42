"""chardev null: takes everything, gives nothing, and is not connected (QEMU's chardev/char-null.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.channel.connections import NullConnection
from virtserial.chardev.base import Chardev

if TYPE_CHECKING:
    from virtserial.chardev.base import ConnectionSink
    from virtserial.loop import EventLoop


class NullChardev(Chardev):
    kind = "null"

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        sink.connection_opened(self, NullConnection(f"chardev '{self.id}'"), ())
