"""A machine arrives: QEMU's `-incoming` and `migrate-incoming`, with our state in its stream.

| step | what is done | if it fails |
|---|---|---|
| start | QEMU holds the guest (-S), whatever the user wants; the bus listens | |
| loading | QEMU reads the stream, and our state to us; the controllers take it, paused | QEMU's load fails, QEMU ends |
| loaded | (QEMU is no longer `inmigrate`) PCI registers and MSI-X tables are set up | one line, and QEMU ends |
| | host ends are taken from the other side, if that was asked for (hosts.py) | others are opened |
| | every queue is looked at, and signalled once | |
| | the guest runs, if it ran on the source and the user has not asked for -S | |

`cont` and `stop` of the user say, until it is loaded, whether the guest shall run; as in QEMU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from virtserial.errors import VirtserialError
from virtserial.migration import capabilities, pci_access
from virtserial.migration.machine import log
from virtserial.monitor.qmp_client import Ask, MonitorGoneError
from virtserial.monitor.steps import Until

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.migration.machine import MovingMachine
    from virtserial.monitor.steps import Steps, T

INMIGRATE: Final = "inmigrate"
SELDOM: Final = 0.1
OFTEN: Final = 0.002
"""Seconds between two looks whether QEMU has loaded the stream, before and after it has given us our state."""


class Arrival:
    """What comes by a stream to a QEMU that waits for one.

    Args:
        autostart: whether the guest shall run when it is there.
        take_hosts: called when it is there and does not run yet.
    """

    def __init__(self, machine: MovingMachine, take_hosts: Callable[[], None], *, autostart: bool) -> None:
        self._machine = machine
        self._take_hosts = take_hosts
        self._autostart = autostart
        self._wake: Callable[[object], None] | None = None
        self._landing = False
        self._over = False
        self._waiting: list[Callable[[object], None]] = []
        machine.on_load = self._loaded
        machine.is_loading = True

    def begin(self) -> None:
        """QEMU answers: watch it."""
        self._machine.run(self._watch(), self._end)

    def _watch(self) -> Steps[None]:
        machine = self._machine
        while (yield from _status()) == INMIGRATE:
            yield Until(self._look_again_later)
        self._landing = True
        arrived = yield from machine.set_up(self._take_hosts)
        if self._autostart and (arrived is None or arrived.running):
            yield Ask("cont", {})

    def _look_again_later(self, call: Callable[[object], None]) -> None:
        def look() -> None:
            if self._wake is not None:
                wake, self._wake = self._wake, None
                wake(None)

        self._wake = call
        self._machine.loop.call_later(OFTEN if self._machine.arrived is not None else SELDOM, look)

    def _loaded(self) -> None:
        """QEMU has given us our state."""
        if self._wake is not None:
            wake, self._wake = self._wake, None
            self._machine.loop.add_turn(lambda: wake(None))

    def _end(self, result: object) -> None:
        self._over = True
        self._machine.is_loading = False
        if isinstance(result, VirtserialError) and not isinstance(result, MonitorGoneError):
            log.error("the virtual machine cannot go on here: %s", result)
            self._machine.run(_quit(), lambda _: None)
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call(None)

    # Commands

    def cont(self, forwarded: Steps[T]) -> Steps[T | None]:
        """The user's `cont`; None: that is noted."""
        if not self._over and not self._landing:
            self._autostart = True
            return None
        while not self._over:
            yield Until(self._waiting.append)
        return (yield from forwarded)

    def stop(self, forwarded: Steps[T]) -> Steps[T]:
        """The user's `stop`."""
        if not self._over:
            self._autostart = False
        return (yield from forwarded)

    def users_status(self, status: dict[str, Any]) -> dict[str, Any]:
        """What query-status returns: a machine that is not set up is not loaded, noticed or not."""
        if not self._over and not status["running"]:
            return {**status, "status": INMIGRATE}
        return status

    def incoming(self, command: str, forwarded: Steps[T]) -> Steps[T]:
        """`migrate-incoming`.

        Raises:
            QmpError: it is refused.
        """
        if self._machine.devices.controllers:
            yield from capabilities.check(command, (yield from capabilities.query()))
            yield from pci_access.probe()
        return (yield from forwarded)


def _status() -> Steps[str]:
    return str(cast("dict[str, Any]", (yield Ask("query-status", {})))["status"])


def _quit() -> Steps[object]:
    return (yield Ask("quit", {}))
