"""What monitors do to the machine, for QMP and HMP alike: checks and texts of QEMU, then the keeper acts."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from virtserial.daemon.saved_state import continue_controller, restore_controller, save_controller
from virtserial.errors import ConfigError
from virtserial.machine.model import Controller, Port
from virtserial.monitor.descriptors import DescriptorSets
from virtserial.monitor.qmp import DEVICE_NOT_FOUND, QmpError

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.chardev.base import Chardev
    from virtserial.chardev.ringbuf import RingbufChardev
    from virtserial.daemon.keeper.keeper import Keeper
    from virtserial.monitor.events import Events
    from virtserial.options.device_options import DeviceOptions

PERIPHERAL = "/machine/peripheral"
ANONYMOUS = "/machine/peripheral-anon"


class Operations:
    """The machine as monitors see it.

    Args:
        keeper: acts.
        events: hears of what was done.
        stop: ends the process.
    """

    def __init__(self, keeper: Keeper, events: Events, stop: Callable[[], None]) -> None:
        self.keeper = keeper
        self.events = events
        self.descriptor_sets = DescriptorSets()
        self.has_quit = False
        self._stop = stop

    # Devices

    def path_of(self, device: Controller | Port) -> str:
        """The canonical path of a device, as QEMU's object model has it."""
        if device.id is not None:
            return f"{PERIPHERAL}/{device.id}"
        if isinstance(device, Port):
            return f"{ANONYMOUS}/port[{device.serial}]"
        return f"{ANONYMOUS}/device[{device.index}]"

    def devices(self) -> list[Controller | Port]:
        """Every device, controllers first."""
        return [*self.keeper.machine.controllers, *self.keeper.machine.ports()]

    def find_device(self, name: str) -> Controller | Port:
        """Return the device of an id or path.

        Raises:
            QmpError: there is none.
        """
        for device in self.devices():
            if name in (device.id, self.path_of(device)):
                return device
        raise QmpError(f"Device '{name}' not found", DEVICE_NOT_FOUND)

    def add_device(self, options: DeviceOptions) -> None:
        """Plug in a device.

        Raises:
            ConfigError: it cannot be.
        """
        self.keeper.hotplug.plug(options)

    def delete_device(self, name: str) -> None:
        """Unplug a port, or a controller with its ports.

        Raises:
            QmpError: there is no such device, or it is a controller whose VMM is there: that cannot lose its device
                from this side.
        """
        device = self.find_device(name)
        gone = [device]
        if isinstance(device, Controller):
            if self.keeper.hotplug.has_vmm(device):
                raise QmpError(
                    f"Device '{name}' is in use by the VMM at {device.socket}: "
                    "delete its vfio-user-pci device there first"
                )
            gone = [*device.ports.values(), device]
        named = [self.names_of(one) for one in gone]
        self.keeper.hotplug.unplug(device)

        def tell() -> None:
            for names in named:
                self.events.emit("DEVICE_DELETED", names)

        # Once the command has been answered, as with QEMU.
        self.keeper.loop.add_turn(tell)

    def names_of(self, device: Controller | Port) -> dict[str, object]:
        """What DEVICE_DELETED says of a device."""
        named: dict[str, object] = {"device": device.id} if device.id is not None else {}
        return {**named, "path": self.path_of(device)}

    # A controller's state

    def save_state(self, name: str | None, fd: int) -> None:
        """Have a controller stand still and write its state to a file.

        Raises:
            ConfigError, QmpError: it cannot be; the controller runs on.
        """
        save_controller(self.keeper, self._controller(name), fd)

    def restore_state(self, name: str | None, fd: int) -> None:
        """Have a controller, before a driver uses it, go on with the state in a file.

        Raises:
            ConfigError, QmpError: it cannot be.
        """
        restore_controller(self.keeper, self._controller(name), fd)

    def continue_device(self, name: str | None) -> None:
        """Have a controller run that stands still since it was saved.

        Raises:
            ConfigError, QmpError: it cannot be.
        """
        continue_controller(self.keeper, self._controller(name))

    def _controller(self, name: str | None) -> Controller:
        """The controller of an id or path; without one the only controller there is."""
        if name is None:
            controllers = self.keeper.machine.controllers
            if len(controllers) != 1:
                raise QmpError(f"Parameter 'id' is missing: there are {len(controllers)} controllers")
            return controllers[0]
        device = self.find_device(name)
        if not isinstance(device, Controller):
            raise QmpError(f"Device '{name}' is no controller")
        return device

    # Chardevs

    def add_chardev(self, chardev_id: str, make: Callable[[], Chardev]) -> Chardev:
        """Make and open a chardev.

        Raises:
            ConfigError, QmpError: it cannot be.
        """
        if chardev_id in self.keeper.chardevs:
            raise QmpError(f"Chardev with id '{chardev_id}' already exists")
        chardev = make()
        self._set_paths(chardev)
        self.keeper.hotplug.add_chardev(chardev)
        return chardev

    def change_chardev(self, chardev_id: str, make: Callable[[], Chardev]) -> Chardev:
        """Put another back end in a chardev's place, under a port that is in use too.

        Raises:
            ConfigError, QmpError: it cannot be; the present one stays.
        """
        if chardev_id not in self.keeper.chardevs:
            raise QmpError(f"Chardev '{chardev_id}' does not exist")
        if chardev_id in self.keeper.sinks:
            raise QmpError("Chardev user does not support chardev hotswap")
        chardev = make()
        self._set_paths(chardev)
        self.keeper.hotplug.change_chardev(chardev)
        return chardev

    def remove_chardev(self, chardev_id: str) -> None:
        """Close and forget a chardev.

        Raises:
            QmpError: there is none, or it is in use.
        """
        self.find_chardev(chardev_id)
        if self.keeper.hotplug.is_busy(chardev_id):
            raise QmpError(f"Chardev '{chardev_id}' is busy")
        self.keeper.hotplug.remove_chardev(chardev_id)

    def find_chardev(self, chardev_id: str) -> Chardev:
        """Return a chardev.

        Raises:
            QmpError: there is none.
        """
        chardev = self.keeper.chardevs.get(chardev_id)
        if chardev is None:
            raise QmpError(f"Chardev '{chardev_id}' not found")
        return chardev

    def send_break(self, chardev_id: str) -> None:
        """A break signal; of the back ends there are, none can carry one, and QEMU's take it silently as well.

        Raises:
            QmpError: there is no such chardev.
        """
        self.find_chardev(chardev_id)

    def find_ringbuf(self, chardev_id: str) -> RingbufChardev:
        """Return a ringbuf.

        Raises:
            QmpError: there is none of that id, or it is of another kind.
        """
        from virtserial.chardev.ringbuf import RingbufChardev

        chardev = self.keeper.chardevs.get(chardev_id)
        if chardev is None:
            raise QmpError(f"Device '{chardev_id}' not found")
        if not isinstance(chardev.backend, RingbufChardev):
            raise QmpError(f"{chardev_id} is not a ringbuf device")
        return chardev.backend

    def frontend_open(self, chardev_id: str) -> bool:
        """Whether its user has a chardev open: a monitor and a console always, another port if its guest has."""
        if chardev_id in self.keeper.sinks or self.keeper.chardevs[chardev_id].fronts:
            return True
        port = self.keeper.machine.user_of(chardev_id)
        return port is not None and (port.is_console or port.guest_open)

    def chardevs(self) -> list[Chardev]:
        """Every chardev."""
        return list(self.keeper.chardevs.values())

    def _set_paths(self, chardev: Chardev) -> None:
        """Paths into descriptor sets become paths of this process's descriptors."""
        from virtserial.chardev.file import FileChardev

        backend = chardev.backend
        if isinstance(backend, FileChardev):
            backend.path = self._member_path(backend.path, os.O_WRONLY)
            if backend.input_path is not None:
                backend.input_path = self._member_path(backend.input_path, os.O_RDONLY)

    def _member_path(self, path: str, mode: int) -> str:
        matched = re.fullmatch(re.escape(DescriptorSets.PREFIX) + "([0-9]{1,9})", path)
        if matched is None:
            return path
        fd = self.descriptor_sets.find(int(matched[1]), mode)
        if fd is None:
            raise ConfigError(f"Could not open '{path}': no descriptor of that set can be used so")
        return f"/proc/self/fd/{fd}"

    # All

    def quit(self) -> None:
        """End the process."""
        self.events.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
        self.has_quit = True
        self._stop()
