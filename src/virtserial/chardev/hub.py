"""chardev hub: one port, up to four back ends (QEMU 10's chardev/char-hub.c); the keeper's half."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.chardev.base import Chardev
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.chardev.base import ConnectionSink
    from virtserial.loop import EventLoop


class HubChardev(Chardev):
    """Has no connection of its own: its port gets the connections of its parts (host_end/hub.py).

    Args:
        parts: its back ends; nobody else can use them until it is closed.

    Raises:
        ConfigError: a part belongs to another hub, or is a hub or multiplexer.
    """

    kind = "hub"
    is_hub = True

    def __init__(self, chardev_id: str, parts: Sequence[Chardev]) -> None:
        super().__init__(chardev_id)
        self.parts: list[Chardev] = []
        try:
            for part in parts:
                self._claim(part)
        except ConfigError:
            self.close()
            raise

    def _claim(self, part: Chardev) -> None:
        if part.mux or part.kind == HubChardev.kind:
            raise ConfigError(
                f"hub: multiplexers and hub devices can't be stacked, check chardev '{part.id}', "
                "chardev should not be a hub device or have 'mux=on' enabled"
            )
        if part.hub is not None:
            raise ConfigError(f"chardev '{part.id}' is already in use")
        part.hub = self
        self.parts.append(part)

    def with_connections(self) -> Sequence[Chardev]:
        return tuple(self.parts)

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        pass

    def close(self) -> None:
        for part in self.parts:
            part.hub = None
        self.parts = []

    def replace_part(self, part: Chardev, successor: Chardev) -> None:
        self.parts[self.parts.index(part)] = successor
        part.hub, successor.hub = None, self
