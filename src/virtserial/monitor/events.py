"""Events for every QMP client, and QEMU's limit on those that a guest can cause (monitor/monitor.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtserial.loop import Timer

EVENTS: Final = ("DEVICE_DELETED", "SHUTDOWN", "VSERPORT_CHANGE")
INTERVAL: Final = 1.0
"""Seconds between two VSERPORT_CHANGE of one id.  QEMU's number."""


class Clock(Protocol):
    """A clock with timers (loop.EventLoop)."""

    def now(self) -> float: ...
    def call_at(self, due: float, callback: Callable[[], None]) -> Timer: ...


class Events:
    """Sends events; VSERPORT_CHANGE at most once a second per port: the last change in a second is sent at its end.

    Args:
        clock: times them.
        send: sends an event (its name and data) to all clients.
    """

    def __init__(self, clock: Clock, send: Callable[[str, Mapping[str, object] | None], None]) -> None:
        self._clock = clock
        self._send = send
        self._waiting: dict[str, Mapping[str, object] | None] = {}

    def emit(self, name: str, data: Mapping[str, object] | None = None) -> None:
        """Send an event at once."""
        self._send(name, data)

    def port_changed(self, port_id: str, is_open: bool) -> None:
        """VSERPORT_CHANGE: the guest has opened or closed a port."""
        data: dict[str, object] = {"id": port_id, "open": is_open}
        if port_id in self._waiting:
            self._waiting[port_id] = data
        else:
            self._send("VSERPORT_CHANGE", data)
            self._rest(port_id)

    def send_waiting(self) -> None:
        """Send what waits for its second to end, before this process ends."""
        for data in self._waiting.values():
            if data is not None:
                self._send("VSERPORT_CHANGE", data)

    def _rest(self, port_id: str) -> None:
        self._waiting[port_id] = None
        self._clock.call_at(self._clock.now() + INTERVAL, lambda: self._rested(port_id))

    def _rested(self, port_id: str) -> None:
        data = self._waiting.pop(port_id)
        if data is not None:
            self._send("VSERPORT_CHANGE", data)
            self._rest(port_id)
