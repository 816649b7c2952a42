"""The virtual machine that moves: what its two halves, QEMU and our controllers, have to know of each other meanwhile.

QEMU asks for our state by its dbus-vmstate object while it writes its stream, and gives it back while it reads one; at
both moments its main loop stands still.  So the state is put ready before (`outgoing`), and what QEMU must do for it
afterwards is done afterwards (`landed`): source.py, destination.py and snapshot.py have the order.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from virtserial.errors import ConfigError, VirtserialError
from virtserial.migration import payload, pci_access, registers
from virtserial.migration.bus import StateBus
from virtserial.migration.payload import MovedController, Payload
from virtserial.migration.start import HELPER, bus_path, object_properties
from virtserial.monitor.qmp import QmpError
from virtserial.monitor.qmp_client import Ask
from virtserial.monitor.steps import Until, run_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtserial.loop import EventLoop
    from virtserial.migration.devices import Devices
    from virtserial.migration.pci_access import Function
    from virtserial.monitor.steps import Steps

log = logging.getLogger("virtserial.migration")

RETRY: Final = 0.1
"""Seconds until a worker that has ended has a successor."""


class MovingMachine:
    """
    Args:
        ask: asks QEMU on the connection that no client uses.
        run_directory: where the bus listens.
        qemu_pid: the only process that may come to the bus; None: any of our user's.
        has_object: QEMU's command line has the dbus-vmstate object already.

    Attributes:
        running: whether the guest runs, or would if it had not been stopped to leave.
        outgoing: the state that is ready for QEMU's stream, or why there is none.
        arrived: what the last stream brought, and is not set up yet.
        is_loading: if QEMU wants anything now, it is to load.
    """

    def __init__(
        self,
        loop: EventLoop,
        devices: Devices,
        ask: Callable[[Ask, Callable[[object], None]], None],
        run_directory: str,
        qemu_pid: int | None,
    ) -> None:
        self.loop = loop
        self.devices = devices
        self.running = True
        self.outgoing: bytes | str = "nobody has asked virtserial to save its state"
        self.arrived: Payload | None = None
        self.is_loading = False
        self.on_load: Callable[[], None] = lambda: None
        self._ask = ask
        self._run_directory = run_directory
        self._qemu_pid = qemu_pid
        self._bus: StateBus | None = None
        self._has_object = False
        self._paused = False

    def run(self, steps: Steps[object], done: Callable[[object], None]) -> None:
        """Go through steps on the connection that no client uses."""
        run_steps(steps, self._ask, done)

    def sleep(self, seconds: float) -> Until:
        """A step that takes a while."""
        return Until(lambda call: _ignore(self.loop.call_later(seconds, lambda: call(None))))

    # The bus

    def open_bus(self, *, object_is_there: bool) -> None:
        """Listen for QEMU's object.

        Args:
            object_is_there: it is on QEMU's command line.

        Raises:
            ConfigError: the socket cannot be had.
        """
        if self._bus is None:
            path = bus_path(self._run_directory)
            self._bus = StateBus(self.loop, path, HELPER, self._look, self._save, self._load, self._qemu_pid)
        self._has_object |= object_is_there

    def ensure_object(self, command: str) -> Steps[None]:
        """Have QEMU ask us for our state.

        Raises:
            QmpError: it cannot.
        """
        self.open_bus(object_is_there=False)
        if self._has_object:
            return
        try:
            yield Ask("object-add", object_properties(self._run_directory))
        except QmpError as error:
            raise QmpError(f"{command} is not supported by virtserial with this QEMU: {error}") from None
        self._has_object = True

    def _look(self) -> None:
        """QEMU is about to save or load."""
        if not self.is_loading:
            self._save()

    def _save(self) -> bytes:
        if isinstance(self.outgoing, str):
            log.error("the state of the virtio-serial controllers is not saved: %s", self.outgoing)
            raise ConfigError(self.outgoing)
        return self.outgoing

    def _load(self, data: bytes) -> None:
        try:
            arrived = payload.unpack(data)
            controllers = {controller.bus: controller for controller in self.devices.controllers}
            payload.check_buses(arrived, list(controllers))
            self._paused = True
            for moved in arrived.controllers:
                try:
                    self.devices.load(controllers[moved.bus], moved.state)
                except ConfigError as error:
                    raise ConfigError(f"{controllers[moved.bus].name}: {error}") from None
        except VirtserialError as error:
            log.error("the state of the virtio-serial controllers cannot be loaded: %s", error)
            raise
        self.arrived = arrived
        self.on_load()

    # Leaving

    def pause(self) -> dict[int, bytes]:
        """Pause the controllers; return each one's PCI configuration space by its index.  Again is harmless."""
        self._paused = True
        return self.devices.pause()

    def resume(self, *, signal: bool = False) -> None:
        """Let the controllers run again, if they are paused; a worker that just ended has a successor soon."""
        if not self._paused:
            return
        try:
            self.devices.resume(signal=signal)
        except ConfigError as error:
            log.warning("the virtio-serial controllers are still paused: %s", error)
            self.loop.call_later(RETRY, partial(self.resume, signal=signal))
        else:
            self._paused = False

    def prepare(self, *, touch: bool) -> Steps[None]:
        """Put our state ready.  The guest is stopped.

        Args:
            touch: mark the pages dirty that we have written.
        """
        self.outgoing = "it could not be saved"
        try:
            self.pause()
            self.outgoing = payload.pack((yield from pci_access.borrowed(self._collect(touch))))
        except VirtserialError as error:
            # QEMU gets this for an answer when it asks for the state; then it ends in its own way what it has begun.
            self.outgoing = str(error)

    def _collect(self, touch: bool) -> Steps[Payload]:
        functions = yield from pci_access.locate(self.pause)
        spaces = {index: registers.Space(data) for index, data in self.pause().items()}
        tables: list[bytes] = []
        for controller in self.devices.controllers:
            function, space = functions[controller.index], spaces[controller.index]
            yield from registers.lower_intx(function, space)
            tables.append((yield from registers.read_table(function, space)))
            if touch:
                touch_written = partial(self.devices.touch_written, controller)
                yield from registers.with_bus_mastering(function, space, touch_written)
        moved = zip(self.devices.controllers, tables, self.devices.save_all(), strict=True)
        return Payload(
            self.running,
            tuple(
                MovedController(controller.bus, spaces[controller.index].data, table, state)
                for controller, table, state in moved
            ),
        )

    # Arriving

    def set_up(self, before_run: Callable[[], None] = lambda: None) -> Steps[Payload | None]:
        """What a stream has brought becomes the machine's, and the controllers run; None: it has brought nothing.

        Args:
            before_run: called when all is done but that.

        Raises:
            ConfigError, QmpError: it cannot be; the machine must not run.
        """
        arrived, self.arrived = self.arrived, None
        if arrived is not None:
            yield from pci_access.borrowed(self._set_up_functions(arrived))
        before_run()
        if arrived is not None:
            self.resume(signal=True)
        return arrived

    def _set_up_functions(self, arrived: Payload) -> Steps[None]:
        functions = yield from pci_access.locate(self.pause)
        controllers = {controller.bus: controller for controller in self.devices.controllers}
        for moved in arrived.controllers:
            controller = controllers[moved.bus]
            function: Function = functions[controller.index]
            store = partial(self.devices.store, controller, moved.msix_table) if moved.msix_table else None
            yield from registers.set_up(function, registers.Space(moved.configuration), store)

    # Events

    def event(self, event: Mapping[str, object]) -> None:
        """QEMU tells of something, on the connection that no client uses."""
        if event["event"] == "RESUME":
            self.running = True
            # A machine that was to leave and stays, whatever the reason.
            self.resume()

    def close(self) -> None:
        """Close the bus."""
        if self._bus is not None:
            self._bus.close()


def _ignore(_: object) -> None:
    return None
