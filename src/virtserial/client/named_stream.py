"""The host's end of a port of a VM that runs here: a HostStream that also hears from the VM's keeper."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from virtserial.client.host_stream import HostStream
from virtserial.client.names import VmPort, ports_of
from virtserial.errors import BusyError, PeerError, VirtserialError

if TYPE_CHECKING:
    from virtserial.client.monitor import Monitor

QUICK = 1.0
"""Seconds for an answer while a person types."""
TAKE_TIME = 3.0
LOOK_AGAIN = 0.05
MORE = "a -chardev with clients=N serves several, and with watch=PATH others look on"


class _State(NamedTuple):
    guest_open: bool
    is_plugged: bool
    is_running: bool
    is_ours: bool


LINES = (
    ("the guest has opened the port", "the guest has closed the port"),
    ("the port is plugged in again", "the port has been unplugged"),
    ("the device is back", "the device is gone"),
    ("the port is ours", "another client has the port; waiting for it"),
)
"""What is said when a part of a _State becomes true, and false."""


class NamedStream(HostStream):
    """
    Args:
        port: where to connect, and whom to ask.
    """

    news_interval = 0.5

    def __init__(self, port: VmPort, only_watch: bool = False) -> None:
        self._port = port
        self._monitor: Monitor | None = None
        self._told = _State(port.guest_open, True, True, True)
        self._size: tuple[int, int] | None = None
        super().__init__((only_watch and port.watch_address) or port.address)

    def set_terminal_size(self, rows: int, columns: int) -> None:
        """Set a pseudo-terminal's size; with the next news() the keeper tells the guest: it asks no terminal."""
        super().set_terminal_size(rows, columns)
        if self._port.console:
            self._size = rows, columns

    def news(self) -> list[str]:
        """See PortStream.news."""
        try:
            monitor = self._monitor = self._monitor or self._port.vm.connect(QUICK)
            self._send_size(monitor)
            ports = ports_of(self._port.vm, monitor.execute("x-virtserial-inventory"))
        except VirtserialError:
            self._forget_monitor()
            is_there = os.path.exists(f"/proc/{self._port.vm.pid}")
            return self._tell(self._told._replace(is_running=is_there))
        now = next((port for port in ports if self._is_ours(port)), None)
        if now is None:
            return self._tell(self._told._replace(is_plugged=False, is_running=True))
        is_ours = now.max_clients > 1 or now.client_pid in (0, os.getpid())
        return self._tell(_State(now.guest_open, True, True, is_ours))

    def _send_size(self, monitor: Monitor) -> None:
        if self._size is not None:
            rows, columns = self._size
            monitor.execute("x-virtserial-resize", {"id": self._port.chardev, "cols": columns, "rows": rows})
            self._size = None

    def _is_ours(self, port: VmPort) -> bool:
        return (port.controller, port.number, port.chardev) == (
            self._port.controller, self._port.number, self._port.chardev,
        )  # fmt: skip

    def _tell(self, state: _State) -> list[str]:
        before, self._told = self._told, state
        changed = zip(before, state, LINES, strict=True)
        return [line[0] if now else line[1] for old, now, line in changed if old != now]

    def _forget_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def close(self) -> None:
        """See HostStream.close."""
        self._forget_monitor()
        super().close()


def open_free(port: VmPort, force: bool = False, only_watch: bool = False) -> NamedStream:
    """Connect to a port that has room for a client; with `force` one that uses it is sent away.

    Args:
        only_watch: nothing will be sent: a place among the watchers will do.

    Raises:
        BusyError: it has no free place.
        ConfigError: it cannot be connected to.
        PeerError: the VM does not answer.
    """
    if only_watch and port.watch:
        return NamedStream(port, only_watch=True)
    # What is no socket has no client to wait for: its address tells why nobody can connect to it.
    is_busy = port.kind == "socket" and (port.clients or 0) >= port.max_clients
    if is_busy and not force:
        served = "one client" if port.max_clients == 1 else f"{port.max_clients} clients"
        raise BusyError(
            f"port '{port.full_name}' is busy: {_who(port.client_pid)} uses it, and it serves {served} at a time",
            f"`virtserial console --force` takes it away from that client; {MORE}",
        )
    if not is_busy:
        return NamedStream(port)
    stream = NamedStream(port)
    try:
        # Others may have waited before us: their turn comes first, and ends as soon.
        deadline = time.monotonic() + TAKE_TIME
        with port.vm.connect() as monitor:
            while True:
                now = next((each for each in ports_of(port.vm, monitor.execute("x-virtserial-inventory"))
                            if each.chardev == port.chardev), None)  # fmt: skip
                if now is None or now.client_pid in (0, os.getpid()) or (now.clients or 0) < now.max_clients:
                    return stream
                with contextlib.suppress(VirtserialError):
                    monitor.execute("x-virtserial-disconnect", {"id": port.chardev})
                if port.max_clients > 1:
                    return stream
                if time.monotonic() > deadline:
                    raise PeerError(f"port '{port.full_name}': {_who(now.client_pid)} does not let it go")
                time.sleep(LOOK_AGAIN)
    except BaseException:
        stream.close()
        raise


def _who(pid: int) -> str:
    if not pid:
        return "another client"
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"process {pid} ({file.read().strip()})"
    except OSError:
        return f"process {pid}"
