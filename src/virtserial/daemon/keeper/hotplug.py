"""Devices that come and go while the guest runs.

The model accepts or refuses first (machine/), then the keeper opens what needs a name or a right; the worker gets the
messages that a new worker would get.

| change | steps, in order |
|---|---|
| port plugged | machine; Port; Connect of its back end again |
| port unplugged | machine; RemovePort; its back end's connection stays, for the next port |
| controller plugged | machine; state memory and listening socket; Controller |
| controller unplugged | machine; RemoveController; its VMM's socket is closed, with all that was held for it |
| back end added, changed, removed | see back_ends.py |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.channel.messages import RemoveController, RemovePort, Resize
from virtserial.chardev.reach import ANYWHERE
from virtserial.daemon.keeper.run_directory import run_directory
from virtserial.errors import ConfigError, StateError
from virtserial.machine.build import plug
from virtserial.machine.model import Controller

if TYPE_CHECKING:
    from virtserial.chardev.reach import Reach
    from virtserial.daemon.keeper.back_ends import BackEnds
    from virtserial.daemon.keeper.briefing import Briefing
    from virtserial.daemon.keeper.path_policy import PathPolicy
    from virtserial.daemon.keeper.vmms import Vmms
    from virtserial.machine.model import Machine, Port
    from virtserial.options.device_options import DeviceOptions


class HotPlug:
    """Changes the machine of a keeper that runs.

    Args:
        briefing: tells the worker.
        path_policy: what monitors may name; None trusts them.
    """

    def __init__(
        self,
        machine: Machine,
        vmms: Vmms,
        back_ends: BackEnds,
        briefing: Briefing,
        path_policy: PathPolicy | None,
    ) -> None:
        self._machine = machine
        self._vmms = vmms
        self._back_ends = back_ends
        self._briefing = briefing
        self._path_policy = path_policy

    def plug(self, options: DeviceOptions) -> Controller | Port:
        """Plug in a port, or a controller, which then waits for its VMM.

        Raises:
            ConfigError: it cannot be, in QEMU's words.
        """
        if options.properties.get("chardev") in self._back_ends.sinks:
            self._refuse_taken(options)
        socket = options.properties.get("socket")
        reach: Reach = ANYWHERE
        if socket is not None and self._path_policy is not None:
            self._path_policy.check([str(socket)])
            reach = self._path_policy
        device = plug(self._machine, options, self._back_ends.chardevs, run_directory())
        if isinstance(device, Controller):
            try:
                self._vmms.open(device, reach)
            except BaseException:
                self._machine.remove_controller(device)
                raise
            self._briefing.tell_controller(device)
        else:
            try:
                self._briefing.tell_port(device)
            except StateError as error:
                self._machine.remove_port(device)
                raise ConfigError(f"the worker cannot be told of this port: {error}") from error
            if device.chardev is not None:
                self._back_ends.send_again(device.chardev)
        return device

    @staticmethod
    def _refuse_taken(options: DeviceOptions) -> None:
        chardev = options.properties["chardev"]
        raise ConfigError(
            f"Property '{options.driver}.chardev' can't take value '{chardev}': chardev '{chardev}' is already in use"
        )

    def resize(self, chardev_id: str, cols: int, rows: int) -> None:
        """Tell a console's guest how large the terminal at its chardev is, in characters.

        Raises:
            ConfigError: no console uses that chardev, or no terminal is so large.
        """
        port = self._machine.user_of(chardev_id)
        if port is None or not port.is_console:
            raise ConfigError(f"No console uses chardev '{chardev_id}'")
        if not (0 < cols < 1 << 16 and 0 < rows < 1 << 16):
            raise ConfigError(f"A terminal of {cols} columns and {rows} rows")
        if (port.cols, port.rows) != (cols, rows):
            port.cols, port.rows = cols, rows
            self._briefing.send(Resize(port.controller.index, port.number, cols, rows))

    def unplug(self, device: Controller | Port) -> None:
        """Unplug a port, or a controller with its ports; a VMM that is still there finds its connection closed.

        Connections of chardevs stay open, for the next port that uses them.
        """
        if isinstance(device, Controller):
            self._machine.remove_controller(device)
            self._briefing.send(RemoveController(device.index))
            self._vmms.remove(device.index)
        else:
            self._machine.remove_port(device)
            self._briefing.send(RemovePort(device.controller.index, device.number))

    def has_vmm(self, controller: Controller) -> bool:
        """Whether a VMM is connected to a controller."""
        return self._vmms.is_there(controller.index)

    def port_state(self, port: Port) -> dict[str, bool]:
        """What is known here of a port's two ends: the guest's, and the host's (a connection that was handed over)."""
        connected = port.chardev is not None and self._back_ends.is_connected(port.chardev)
        return {"guest": port.guest_open, "host": connected}
