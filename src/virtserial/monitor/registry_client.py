"""The clients of a keeper's registry socket: QMP for each, which may ask, and do what people's programs need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.channel.connections import SocketConnection
from virtserial.chardev.base import Chardev
from virtserial.closing import close_foreign
from virtserial.monitor.events import Events
from virtserial.monitor.line import MonitorLine
from virtserial.monitor.operations import Operations
from virtserial.monitor.qmp import no_such_command
from virtserial.monitor.server import LocalBackend
from virtserial.options.monitor_options import MonitorOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtserial.daemon.keeper.keeper import Keeper
    from virtserial.monitor.descriptors import Client
    from virtserial.monitor.qmp import Request

MAX_CLIENTS: Final = 32
"""At once: more are turned away."""
ALLOWED: Final = frozenset(
    ("query-chardev", "query-status", "query-version", "query-commands", "qom-list", "qom-get", "x-virtserial-query",
     "x-virtserial-query-clients", "x-virtserial-inventory", "x-virtserial-restart", "x-virtserial-disconnect",
     "x-virtserial-resize")
)  # fmt: skip
"""Nothing that changes which devices there are: under virtserial-qemu, QEMU has to know of that."""


class RegistryClients:
    """
    Args:
        keeper: what they ask about.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._loop = keeper.loop
        self._backend = _Backend(Operations(keeper, Events(keeper.loop, _tell_nobody), keeper.loop.stop))
        self._lines: dict[_Visit, MonitorLine] = {}

    def add(self, fd: int) -> None:
        """Serve a client; its socket is owned."""
        if len(self._lines) >= MAX_CLIENTS:
            close_foreign(fd)
            return
        visit = _Visit(self._leave)
        line = self._lines[visit] = MonitorLine(self._loop, self._backend, MonitorOptions(visit.id, "control", False))
        line.connection_opened(visit, SocketConnection("a client of the registry"), (fd,))

    def _leave(self, visit: _Visit) -> None:
        self._lines.pop(visit, None)

    def close(self) -> None:
        """Let all go."""
        for line in list(self._lines.values()):
            line.close()
        self._lines.clear()


class _Visit(Chardev):
    """What a monitor line takes for its chardev: one connection, after which it is forgotten."""

    def __init__(self, leave: Callable[[_Visit], None]) -> None:
        super().__init__("registry")
        self._leave = leave

    def connection_ended(self) -> None:
        self._leave(self)


class _Backend(LocalBackend):
    def run(self, client: Client, request: Request, answer: Callable[[object], None]) -> None:
        if request.command in ALLOWED:
            super().run(client, request, answer)
        else:
            answer(no_such_command(request.command))


def _tell_nobody(_name: str, _data: Mapping[str, object] | None) -> None:
    """Events are for monitors."""
