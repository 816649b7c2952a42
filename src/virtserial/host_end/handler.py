"""The moving half of a handler class: between its callbacks and the port."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from typing import TYPE_CHECKING

from virtserial.errors import BackendError
from virtserial.handler import PortHandler
from virtserial.host_end.base import HostEnd
from virtserial.host_end.buffers import move_into

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from virtserial.channel.connections import HandlerCode, HandlerConnection
    from virtserial.loop import EventLoop

PENDING_MAX = 65536
"""Bytes a handler may have written that the guest has not taken yet; the memory of a port is bounded."""

logger = logging.getLogger("virtserial.chardev.handler")


def load_module(code: HandlerCode) -> ModuleType:
    """Import a handler's code once: a confined worker cannot read it again."""
    path = code.path
    if not path:
        return importlib.import_module(code.module)
    name = f"virtserial_handler_{abs(hash(path)):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def load_handler(connection: HandlerConnection) -> PortHandler:
    """Make the handler that a connection names.

    Raises:
        BackendError: its code cannot be imported, or has no such subclass of PortHandler, or that cannot be made.
    """
    name, attribute = connection.name, connection.attribute
    try:
        handler = getattr(load_module(connection.code), attribute)()
    except Exception as error:
        logger.exception("%s: cannot make a %s", name, attribute)
        raise BackendError(f"{name}: cannot make a {attribute}: {error!r}") from error
    if not isinstance(handler, PortHandler):
        raise BackendError(f"{name}: {attribute} is not a subclass of virtserial.chardev.handler.PortHandler")
    return handler


class HandlerHostEnd(HostEnd):
    """A PortHandler's HostEnd."""

    def __init__(self, loop: EventLoop, name: str, handler: PortHandler) -> None:
        super().__init__(name)
        self._loop = loop
        self._handler = handler
        self._pending = bytearray()
        self._guest_is_open = False
        self._was_full = False
        self._throttled = False
        self._blocked = False
        self._host_closing = False
        self._closed = False
        handler.port = HandlerPort(self)

    # What the port does

    def start(self) -> None:
        self._call(self._handler.started)
        if self._handler.open_at_start:
            self.open_host()

    def writev(self, buffers: Sequence[memoryview]) -> int:
        if not self.connected or self._host_closing:
            count = sum(buffer.nbytes for buffer in buffers)
            self.output_discarded += count
            return count
        taken = 0
        for buffer in buffers:
            if self._throttled or not self.connected:
                break
            consumed = self._have_data(buffer)
            taken += consumed
            if consumed < buffer.nbytes:
                self._throttled = True
        self._blocked = taken == 0
        return taken

    def _have_data(self, buffer: memoryview) -> int:
        # The view is released afterwards, so that a handler cannot keep it and read guest memory later.
        with buffer.cast("B") as view:
            try:
                consumed = self._handler.have_data(view)
            except Exception as error:
                raise self._broken("have_data", error) from error
        if not isinstance(consumed, int) or not 0 <= consumed <= buffer.nbytes:
            wrong = ValueError(f"{consumed!r} is not a number of bytes from 0 to {buffer.nbytes}")
            raise self._broken("have_data", wrong)
        return consumed

    def readv(self, buffers: Sequence[memoryview]) -> int:
        given = move_into(buffers, self._pending)
        self.readable = bool(self._pending)
        if given and self._was_full:
            self._tell_writable_soon()
        if self._host_closing and not self._pending:
            self._loop.add_turn(self._close_towards_guest)
        return given

    def guest_opened(self) -> None:
        self._guest_is_open = True
        self._call(self._handler.guest_open)
        if self._was_full:
            self._tell_writable_soon()

    def guest_closed(self) -> None:
        self._guest_is_open = False
        self.input_discarded += len(self._pending)
        self._pending.clear()
        self.readable = False
        self._call(self._handler.guest_close)
        if self._host_closing:
            self._loop.add_turn(self._close_towards_guest)

    def guest_ready(self) -> None:
        self._call(self._handler.guest_ready)

    def close(self) -> None:
        if not self._closed:
            self._call(self._handler.stopped)
            self._closed = True
            self.connected = False

    # What the handler does, by HandlerPort

    def open_host(self) -> None:
        if self._host_closing:
            self._close_towards_guest()
        if not self.connected and not self._closed and not self.ended:
            self.connected = True
            self.input_discarded = self.output_discarded = 0
            self.listener.host_opened()

    def close_host(self) -> None:
        """What was accepted is delivered first, if the guest has the port open."""
        if self.connected and not self._host_closing:
            self._host_closing = True
            if not self._pending:
                self._loop.add_turn(self._close_towards_guest)

    def write_to_guest(self, buffer: bytes | bytearray | memoryview) -> int:
        with memoryview(buffer) as view, view.cast("B") as octets:
            accepted = min(octets.nbytes, self.room())
            if accepted < octets.nbytes:
                self._was_full = True
            self._pending += octets[:accepted]
        if accepted and not self.readable:
            self.readable = True
            self._loop.add_turn(self._announce_readable)
        return accepted

    def room(self) -> int:
        if not self._guest_is_open or not self.connected or self._host_closing:
            return 0
        return PENDING_MAX - len(self._pending)

    def throttle(self, on: bool) -> None:
        self._throttled = on
        if not on and self._blocked:
            self._blocked = False
            self._loop.add_turn(self._announce_writable)

    # What the loop does

    def _tell_writable_soon(self) -> None:
        self._was_full = False
        self._loop.add_turn(self._tell_writable)

    def _tell_writable(self) -> None:
        if not self._closed and not self.ended:
            self._call(self._handler.guest_writable)

    def _announce_readable(self) -> None:
        if self.readable and not self._closed:
            self.listener.host_readable()

    def _announce_writable(self) -> None:
        if not self._closed and not self.ended:
            self.listener.host_writable()

    def _close_towards_guest(self) -> None:
        if self._host_closing and not self._closed:
            self._host_closing = self._throttled = self._blocked = False
            self.connected = False
            self.listener.host_closed()

    def _deliver_closed(self) -> None:
        if not self._closed:
            self.listener.host_closed()

    # Faults of the handler

    def _call(self, callback: Callable[[], None]) -> None:
        if self.ended:
            return
        try:
            callback()
        except Exception as error:
            self._broken(callback.__name__, error)
            self._loop.add_turn(self._deliver_closed)

    def _broken(self, callback: str, error: Exception) -> BackendError:
        logger.error("%s: %s failed", self.name, callback, exc_info=error)
        self.connected = False
        self.ended = True
        self.readable = False
        self._host_closing = False
        return BackendError(f"{self.name}: {callback} of the handler failed: {error!r}")


class HandlerPort:
    """The `port` of a PortHandler (virtserial.handler.Port)."""

    def __init__(self, end: HandlerHostEnd) -> None:
        self._end = end

    def open(self) -> None:
        self._end.open_host()

    def close(self) -> None:
        self._end.close_host()

    def write(self, buffer: bytes | bytearray | memoryview) -> int:
        return self._end.write_to_guest(buffer)

    def guest_ready(self) -> int:
        return self._end.room()

    def throttle(self, on: bool) -> None:
        self._end.throttle(on)
