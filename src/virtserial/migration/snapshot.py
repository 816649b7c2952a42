"""Snapshots: savevm, loadvm and the jobs snapshot-save and snapshot-load, with our state in QEMU's stream.

| step | saving | loading |
|---|---|---|
| 1 | the guest is stopped | the guest is stopped |
| 2 | the controllers stand still, our state is put ready | the controllers stand still |
| 3 | QEMU saves, and asks for our state | QEMU resets the machine, loads, and gives us our state |
| 4 | the controllers run | PCI registers are set up, the controllers run and signal every queue |
| 5 | the guest runs, if it ran | the guest runs, if it ran; not if QEMU has refused the snapshot, as in QEMU |

QEMU itself stops and starts the guest in 3; here it does not run already, so that events come once and in QEMU's order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from virtserial.errors import VirtserialError
from virtserial.migration import pci_access
from virtserial.migration.machine import log
from virtserial.monitor.qmp import QmpError
from virtserial.monitor.qmp_client import Ask
from virtserial.monitor.steps import Until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtserial.migration.machine import MovingMachine
    from virtserial.monitor.steps import Steps, T

JOB_OVER: Final = ("concluded", "null")


class Snapshots:
    """Snapshots of one machine, one at a time."""

    def __init__(self, machine: MovingMachine) -> None:
        self._machine = machine
        self._busy = False
        self._job: str | None = None
        self._job_is_over: Callable[[object], None] | None = None

    def save(self, command: str, forwarded: Steps[T]) -> Steps[T]:
        """savevm.

        Raises:
            QmpError: it is refused.
        """
        if not self._machine.devices.controllers:
            return (yield from forwarded)
        running = yield from self._begin(command)
        try:
            yield from self._prepare_to_save()
            return (yield from forwarded)
        finally:
            yield from self._end(running)

    def load(self, command: str, forwarded: Steps[T]) -> Steps[T]:
        """loadvm.

        Raises:
            QmpError: it is refused, or what was loaded cannot run.
        """
        if not self._machine.devices.controllers:
            return (yield from forwarded)
        running = yield from self._begin(command)
        try:
            self._machine.is_loading = True
            self._machine.pause()
            result = yield from forwarded
            yield from self._machine.set_up()
        except VirtserialError:
            yield from self._end(running=False)
            raise
        yield from self._end(running)
        return result

    def job(self, command: str, job_id: str, forwarded: Steps[T], *, loads: bool) -> Steps[T]:
        """snapshot-save and snapshot-load: the answer comes when the job has begun.

        Raises:
            QmpError: it is refused.
        """
        if not self._machine.devices.controllers:
            return (yield from forwarded)
        running = yield from self._begin(command)
        try:
            if loads:
                self._machine.is_loading = True
                self._machine.pause()
            else:
                yield from self._prepare_to_save()
            self._job = job_id
            result = yield from forwarded
        except VirtserialError:
            self._job = None
            yield from self._end(running)
            raise
        self._machine.run(self._finish_job(running, loads=loads), _tell)
        return result

    def _finish_job(self, running: bool, *, loads: bool) -> Steps[None]:
        if self._job is not None:
            yield Until(self._await_job)
        try:
            if loads:
                # A job that has failed leaves the machine stopped, as in QEMU.
                running &= (yield from self._machine.set_up()) is not None
        except VirtserialError as error:
            log.error("the virtual machine cannot go on with the snapshot: %s", error)
            running = False
        yield from self._end(running)

    def _await_job(self, call: Callable[[object], None]) -> None:
        self._job_is_over = call

    def event(self, event: Mapping[str, object]) -> None:
        """QEMU tells of something, on the connection that no client uses."""
        if event["event"] != "JOB_STATUS_CHANGE" or self._job is None:
            return
        data = cast("dict[str, object]", event["data"])
        if data["id"] == self._job and data["status"] in JOB_OVER:
            self._job = None
            if self._job_is_over is not None:
                call, self._job_is_over = self._job_is_over, None
                call(None)

    def _begin(self, command: str) -> Steps[bool]:
        """Stop the guest; return whether it ran."""
        if self._busy:
            raise QmpError(f"{command}: another snapshot is under way")
        yield from pci_access.probe()
        yield from self._machine.ensure_object(command)
        status = cast("dict[str, Any]", (yield Ask("query-status", {})))
        if status["running"]:
            yield Ask("stop", {})
        self._busy = True
        self._machine.running = status["running"]
        return bool(status["running"])

    def _prepare_to_save(self) -> Steps[None]:
        machine = self._machine
        yield from machine.prepare(touch=False)
        if isinstance(machine.outgoing, str):
            raise QmpError(f"the state of the virtio-serial controllers cannot be saved: {machine.outgoing}")

    def _end(self, running: bool) -> Steps[None]:
        self._busy = self._machine.is_loading = False
        self._machine.outgoing = "nobody has asked virtserial to save its state"
        self._machine.resume()
        if running:
            yield Ask("cont", {})


def _tell(result: object) -> None:
    if isinstance(result, VirtserialError):
        log.warning("after a snapshot: %s", result)
