"""The monitors of `virtserial serve`: every request is answered here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from virtserial.errors import ConfigError
from virtserial.monitor.commands import execute
from virtserial.monitor.events import Events
from virtserial.monitor.hmp import candidates, run_line
from virtserial.monitor.line import MonitorLine
from virtserial.monitor.operations import Operations
from virtserial.monitor.qmp import QmpError, greeting, internal_error
from virtserial.options.monitor_options import MonitorOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from virtserial.chardev.base import Put, Take
    from virtserial.daemon.keeper.keeper import Keeper
    from virtserial.machine.model import Port
    from virtserial.monitor.descriptors import Client
    from virtserial.monitor.qmp import Request

PARTING_SECONDS = 0.2


class Monitors:
    """All monitors of a machine.

    Args:
        keeper: the machine that they act on.
        monitors: the keeper's chardevs that they use, and whether they speak QMP or HMP.
    """

    def __init__(self, keeper: Keeper, monitors: Sequence[MonitorOptions]) -> None:
        self._keeper = keeper
        self.events = Events(keeper.loop, self._send_event)
        self.operations = Operations(keeper, self.events, keeper.loop.stop)
        self._backend = LocalBackend(self.operations)
        self._lines: list[MonitorLine] = []
        for monitor in monitors:
            line = MonitorLine(keeper.loop, self._backend, monitor)
            self._lines.append(line)
            attach(keeper, line, monitor, len(self._lines))
        keeper.guest_open_listener = self._guest_open_changed

    def hand_over(self, put: Put) -> dict[str, object]:
        """Return what a successor needs (`take_over`)."""
        self.events.send_waiting()
        return {
            "lines": [[*line.options, line.hand_over(put)] for line in self._lines],
            "descriptor_sets": self.operations.descriptor_sets.hand_over(put),
        }

    @classmethod
    def take_over(cls, keeper: Keeper, saved: Mapping[str, Any], take: Take) -> Monitors:
        """Take over the monitors of a predecessor, before the keeper starts its worker."""
        monitors = cls(keeper, ())
        monitors.operations.descriptor_sets.take_over(saved["descriptor_sets"], take)
        for chardev_id, mode, pretty, client in saved["lines"]:
            line = MonitorLine(keeper.loop, monitors._backend, MonitorOptions(chardev_id, mode, pretty))
            monitors._lines.append(line)
            chardev = keeper.chardevs[chardev_id]
            if not chardev.mux:
                keeper.back_ends.add_sink(chardev_id, line)
            line.take_over(keeper, chardev, _name(len(monitors._lines)), client, take)
        return monitors

    def _guest_open_changed(self, port: Port) -> None:
        if port.id is not None:
            self.events.port_changed(port.id, port.guest_open)

    def _send_event(self, name: str, data: Mapping[str, object] | None) -> None:
        for line in self._lines:
            line.send_event(name, data)

    def ended_by_signal(self) -> None:
        """The loop has stopped: by a signal, unless a client said quit."""
        if not self.operations.has_quit:
            self.events.emit("SHUTDOWN", {"guest": False, "reason": "host-signal"})

    def close(self) -> None:
        """Send clients their last output and close."""
        flush_and_close(self._keeper, self._lines)
        self.operations.descriptor_sets.close()


def attach(keeper: Keeper, line: MonitorLine, options: MonitorOptions, number: int) -> None:
    """Connect a monitor to its chardev; `number` tells it from others there.

    Raises:
        ConfigError: the chardev has as many users as it can have.
    """
    chardev = keeper.chardevs[options.chardev]
    if chardev.mux:
        line.share(keeper, chardev, _name(number))
    elif chardev.is_shared:
        raise ConfigError(f"chardev '{chardev.id}' has several clients, and a monitor serves one")
    else:
        keeper.back_ends.add_sink(chardev.id, line)


def _name(number: int) -> str:
    """A monitor's name among the users of a multiplexed chardev."""
    return f"monitor{number}"


def flush_and_close(keeper: Keeper, lines: Sequence[MonitorLine]) -> None:
    """Send clients their last output, for at most PARTING_SECONDS, and close their connections."""
    deadline = time.monotonic() + PARTING_SECONDS
    while any(line.unsent for line in lines) and time.monotonic() < deadline:
        keeper.loop.run_once(0.01)
    for line in lines:
        line.close()


class LocalBackend:
    """Runs every command here, at once (conversation.Backend)."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def when_ready(self, callback: Callable[[], None]) -> None:
        callback()

    def greeting(self) -> Mapping[str, object]:
        return greeting()

    def run(self, client: Client, request: Request, answer: Callable[[object], None]) -> None:
        try:
            result = execute(self._operations, client, request)
        except QmpError as error:
            result = error
        except Exception as error:
            result = internal_error(error, f"command {request.command}")
        answer(result)

    def run_line(self, client: Client, line: str, answer: Callable[[str], None]) -> None:
        answer(run_line(self._operations, client, line))

    def candidates(self, text: str) -> tuple[Sequence[str], int]:
        return candidates(self._operations, text)

    def client_left(self) -> None:
        pass
