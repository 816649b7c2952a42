"""The moving half of chardev hub: what the guest writes goes to every back end, what any of them sends to the guest."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from virtserial.errors import BackendError
from virtserial.host_end.base import HostEnd
from virtserial.host_end.buffers import front_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.loop import EventLoop

MAX_OUTPUT = 32 << 10
"""Bytes taken from the guest at once, and kept for a back end that is slower than the others."""

logger = logging.getLogger("virtserial.chardev.hub")


class HubHostEnd(HostEnd):
    """Connected while any part is; the slowest connected part holds back the guest.  It never ends by itself."""

    def __init__(self, loop: EventLoop, name: str) -> None:
        super().__init__(name)
        self._loop = loop
        self._parts: dict[str, _Part] = {}
        self._blocked = False

    # Parts

    def join(self, part_id: str, end: HostEnd, over: Callable[[], None]) -> None:
        """Take a part's connection in place of its last; `over` is called when it has ended and is closed."""
        self.leave(part_id)
        part = _Part(self, part_id, end, over)
        self._parts[part_id] = part
        end.wants_input = self._wants_input
        end.start()

    def leave(self, part_id: str) -> bool:
        """Close a part's connection; return False if it has none."""
        part = self._parts.pop(part_id, None)
        if part is None:
            return False
        part.end.close()
        self._connected_changed()
        return True

    def part_opened(self) -> None:
        self._connected_changed()

    def part_closed(self, part: _Part) -> None:
        part.behind.clear()
        self.input_discarded += part.end.input_discarded
        self.output_discarded += part.end.output_discarded
        part.end.input_discarded = part.end.output_discarded = 0
        if part.end.ended and self._parts.get(part.id) is part:
            del self._parts[part.id]
            part.end.close()
            part.over()
        self.part_writable()
        self._connected_changed()

    def part_readable(self) -> None:
        self.readable = True
        self.listener.host_readable()

    def part_writable(self) -> None:
        if self._blocked:
            self._blocked = False
            self.listener.host_writable()

    def part_failed(self, part: _Part, error: BackendError) -> None:
        logger.error("%s", error)
        self._loop.add_turn(part.host_closed)

    def _connected_changed(self) -> None:
        connected = any(part.end.connected for part in self._parts.values())
        if connected and not self.connected:
            self.connected = True
            self.listener.host_opened()
        elif self.connected and not connected:
            self.connected = self.readable = self._blocked = False
            self.listener.host_closed()

    # HostEnd

    def _wants_input_changed(self) -> None:
        for part in self._parts.values():
            part.end.wants_input = self._wants_input

    def start(self) -> None:
        pass

    def writev(self, buffers: Sequence[memoryview]) -> int:
        connected = [part for part in self._parts.values() if part.end.connected]
        if [part for part in connected if not part.catch_up()]:
            self._blocked = True
            return 0
        front = front_of(buffers, MAX_OUTPUT)
        for part in connected:
            part.write(front)
        return sum(buffer.nbytes for buffer in front)

    def wait_writable(self) -> bool:
        waiting = [part for part in self._parts.values() if part.behind and part.end.wait_writable()]
        self._blocked = bool(waiting)
        return self._blocked

    def readv(self, buffers: Sequence[memoryview]) -> int:
        for part_id, part in list(self._parts.items()):
            try:
                count = part.end.readv(buffers)
            except BackendError as error:
                self.part_failed(part, error)
                continue
            if count:
                # The others have their turn first.
                self._parts[part_id] = self._parts.pop(part_id)
                return count
        self.readable = False
        return 0

    def log_unconnected(self, buffers: Sequence[memoryview]) -> None:
        for part in self._parts.values():
            part.end.log_unconnected(buffers)

    @property
    def backlog_size(self) -> int:
        return max((part.end.backlog_size for part in self._parts.values()), default=0)

    def read_backlog(self, most: int) -> bytes:
        """All parts have had the same output."""
        longest = max(self._parts.values(), key=lambda part: part.end.backlog_size)
        return longest.end.read_backlog(most)

    def restore_backlog(self, backlog: bytes) -> None:
        for part in self._parts.values():
            part.end.restore_backlog(backlog)

    def guest_opened(self) -> None:
        for part in self._parts.values():
            part.end.guest_opened()

    def guest_closed(self) -> None:
        for part in self._parts.values():
            part.end.guest_closed()

    def guest_ready(self) -> None:
        for part in self._parts.values():
            part.end.guest_ready()

    def close(self) -> None:
        self.connected = False
        for part in self._parts.values():
            part.end.close()
        self._parts.clear()


class _Part:
    """A back end of a hub, with the bytes that it has not taken yet; the listener of its host end."""

    def __init__(self, hub: HubHostEnd, part_id: str, end: HostEnd, over: Callable[[], None]) -> None:
        self.id = part_id
        self.end = end
        self.over = over
        self.behind = bytearray()
        self._hub = hub
        end.listener = self

    def write(self, buffers: Sequence[memoryview]) -> None:
        """Write, and keep what was not taken."""
        try:
            taken = self.end.writev(buffers)
        except BackendError as error:
            self._hub.part_failed(self, error)
            return
        for buffer in buffers:
            self.behind += buffer[min(taken, buffer.nbytes) :]
            taken -= min(taken, buffer.nbytes)

    def catch_up(self) -> bool:
        """Write what was kept; return whether all is taken."""
        while self.behind and self.end.connected:
            with memoryview(bytes(self.behind)) as waiting:
                try:
                    taken = self.end.writev([waiting])
                except BackendError as error:
                    self._hub.part_failed(self, error)
                    break
            if not taken:
                return False
            del self.behind[:taken]
        self.behind.clear()
        return True

    # HostListener

    def host_opened(self) -> None:
        self._hub.part_opened()

    def host_closed(self) -> None:
        self._hub.part_closed(self)

    def host_readable(self) -> None:
        self._hub.part_readable()

    def host_writable(self) -> None:
        self._hub.part_writable()
