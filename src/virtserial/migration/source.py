"""A machine leaves: QEMU's `migrate`, with our state in its stream.

| step | what is done | undone when QEMU says no, the migration fails or is cancelled |
|---|---|---|
| migrate | capabilities are checked, PCI access is probed | nothing was done |
| | pages that we write are noted from here on | they are no more |
| | `events` and `pause-before-switchover` are switched on | they become what the user had |
| | QEMU starts to copy memory | |
| pre-switchover | (the guest is stopped) the controllers stand still | they run again |
| | pages that we have written are marked dirty, our state is put ready | |
| | QEMU goes on, unless the user wanted to be asked | |
| device | QEMU asks for our state; a `prepare` that went wrong is told now, and fails the migration | |
| completed | the controllers stand still until somebody lets this machine run again | |

The user sees the events, the status and the capabilities that he has asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from virtserial.errors import VirtserialError
from virtserial.migration import capabilities, pci_access
from virtserial.migration.capabilities import EVENTS, PAUSE
from virtserial.migration.machine import log
from virtserial.monitor.qmp import QmpError
from virtserial.monitor.qmp_client import Ask
from virtserial.monitor.steps import Until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtserial.migration.machine import MovingMachine
    from virtserial.monitor.steps import Steps, T

PRE_SWITCHOVER: Final = "pre-switchover"
DEVICE: Final = "device"
OURS: Final = (EVENTS, PAUSE)
"""Capabilities that we need for a while, whatever the user has."""
MIGRATION_EVENTS: Final = ("MIGRATION", "MIGRATION_PASS")


class Departures:
    """Migrations from here, one after the other.

    Attributes:
        has_left: the last one is completed, and the guest has not run here since.
        on_begin: called when one begins.
    """

    def __init__(self, machine: MovingMachine) -> None:
        self._machine = machine
        self.has_left = False
        self.on_begin: Callable[[], None] = lambda: None
        self._users: dict[str, bool] | None = None
        self._prepared = self._ending = self._switching = False
        self._waiting: list[Callable[[object], None]] = []

    # Commands

    def migrate(self, command: str, forwarded: Steps[T]) -> Steps[T]:
        """Have QEMU migrate; `forwarded` asks it to.

        Raises:
            QmpError: it is refused; then nothing has changed.
        """
        machine = self._machine
        yield from self.settled()
        if not machine.devices.controllers or self._users is not None:
            return (yield from forwarded)
        users = yield from capabilities.query()
        yield from capabilities.check(command, users)
        yield from pci_access.probe()
        yield from machine.ensure_object(command)
        status = cast("dict[str, Any]", (yield Ask("query-status", {})))
        machine.running = status["running"] or status["status"] == "suspended"
        machine.outgoing = "QEMU saves without having stopped the machine in between"
        self._users = {name: users[name] for name in OURS}
        self._prepared = self.has_left = False
        self.on_begin()
        try:
            machine.devices.log_writes(True)
            yield from capabilities.set_some(dict.fromkeys(OURS, True))
            return (yield from forwarded)
        except VirtserialError:
            yield from self._end()
            raise

    def continue_(self, forwarded: Steps[T]) -> Steps[T]:
        """`migrate-continue`: not before we are ready."""
        while self._users is not None and self._users[PAUSE] and not self._prepared:
            yield Until(self._waiting.append)
        return (yield from forwarded)

    def cancel(self, forwarded: Steps[T]) -> Steps[T]:
        """`migrate_cancel`: not while we work on PCI registers, which is for a stopped guest; QEMU would start it."""
        while self._switching:
            yield Until(self._waiting.append)
        return (yield from forwarded)

    def settled(self) -> Steps[None]:
        """Wait until the last migration has given the user his capabilities back; not while one is under way."""
        while self._users is not None and self._ending:
            yield Until(self._waiting.append)

    def over(self) -> Steps[None]:
        """Wait until no migration is under way."""
        while self._users is not None:
            yield Until(self._waiting.append)

    def refuse_change(self, command: str) -> None:
        """Whether devices may come and go.

        Raises:
            QmpError: the machine is about to leave.
        """
        if self._users is not None:
            raise QmpError(f"{command} not allowed while migrating")

    def users_view(self, listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What query-migrate-capabilities returns, as the user has chosen it."""
        users = self._users or {}
        return [{**entry, "state": users.get(entry["capability"], entry["state"])} for entry in listed]

    def users_status(self, status: dict[str, Any]) -> dict[str, Any]:
        """What query-migrate returns, for a user who has not asked for a pause."""
        if self._hides_pause and status.get("status") == PRE_SWITCHOVER:
            return {**status, "status": DEVICE}
        return status

    # Events

    @property
    def _hides_pause(self) -> bool:
        return self._users is not None and not self._users[PAUSE]

    def shows(self, event: Mapping[str, object]) -> bool:
        """Whether a client gets an event."""
        if self._users is None or event["event"] not in MIGRATION_EVENTS:
            return True
        data = cast("dict[str, object]", event.get("data", {}))
        return self._users[EVENTS] and not (self._hides_pause and data.get("status") == PRE_SWITCHOVER)

    def event(self, event: Mapping[str, object]) -> None:
        """QEMU tells of something, on the connection that no client uses."""
        if event["event"] == "RESUME":
            self.has_left = False
        if self._users is None:
            return
        if event["event"] == "STOP":
            self._machine.run(self._note_stop(), _ignore)
        elif event["event"] == "MIGRATION":
            status = cast("dict[str, object]", event["data"])["status"]
            if status == PRE_SWITCHOVER:
                self._machine.run(self._switch_over(), _tell)
            elif status in ("completed", "failed", "cancelled"):
                self._ending = True
                stays = status != "completed"
                self.has_left = not stays
                self._machine.run(self._end(stays=stays), _tell)

    def _note_stop(self) -> Steps[None]:
        """QEMU has stopped the guest, to let it go or for another reason."""
        status = cast("dict[str, Any]", (yield Ask("query-status", {})))
        self._machine.running &= status["status"] == "finish-migrate"

    def _switch_over(self) -> Steps[None]:
        self._switching = True
        try:
            status = cast("dict[str, Any]", (yield Ask("query-status", {})))
            if status["running"]:
                return  # It was cancelled the moment before.
            yield from self._machine.prepare(touch=True)
        finally:
            self._switching, self._prepared = False, True
            self._wake()
        if self._hides_pause:
            yield Ask("migrate-continue", {"state": PRE_SWITCHOVER})

    def _end(self, *, stays: bool = True) -> Steps[None]:
        """The migration is over, or was not to be."""
        users = self._users
        if users is None:
            return
        self._machine.outgoing = "nobody has asked virtserial to save its state"
        try:
            if stays:
                self._machine.resume()
            self._machine.devices.log_writes(False)
        except VirtserialError as error:
            log.warning("after a migration: %s", error)
        yield from capabilities.set_some(users)
        self._users, self._ending = None, False
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call(None)


def _tell(result: object) -> None:
    if isinstance(result, VirtserialError):
        log.warning("during a migration: %s", result)


def _ignore(_: object) -> None:
    return None
