"""What each command of a monitor checks and does, once for QMP and HMP, with QEMU's texts; the keeper acts."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from virtserial.chardev.file import FileChardev
from virtserial.chardev.ringbuf import RingbufChardev
from virtserial.daemon.keeper.saved_state import restore_controller, resume_controller, save_controller
from virtserial.errors import ConfigError
from virtserial.machine.model import Controller, Port
from virtserial.monitor.descriptors import DescriptorSets
from virtserial.monitor.qmp import DEVICE_NOT_FOUND, QmpError
from virtserial.options.chardev_options import import_kinds

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.chardev.base import Chardev
    from virtserial.daemon.keeper.keeper import Keeper
    from virtserial.monitor.events import Events
    from virtserial.options.device_options import DeviceOptions

MAX_READ = 1 << 20
"""Bytes of one read of a ringbuf; the rest waits for the next."""
PERIPHERAL = "/machine/peripheral"
ANONYMOUS = "/machine/peripheral-anon"


class Operations:
    """The machine as monitors see it.

    Args:
        keeper: acts.
        events: sends the events of what was done.
        stop: ends the process.
    """

    def __init__(self, keeper: Keeper, events: Events, stop: Callable[[], None]) -> None:
        self.keeper = keeper
        self.events = events
        self.descriptor_sets = DescriptorSets()
        self.has_quit = False
        self._stop = stop
        keeper.workers.read_ahead.append(import_kinds)

    # Devices

    def path_of(self, device: Controller | Port) -> str:
        """The canonical path of a device, as QEMU's object model has it."""
        if device.id is not None:
            return f"{PERIPHERAL}/{device.id}"
        if isinstance(device, Port):
            return f"{ANONYMOUS}/port[{device.serial}]"
        return f"{ANONYMOUS}/device[{device.index}]"

    def devices(self) -> list[Controller | Port]:
        """All devices, controllers first."""
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
            ConfigError: in QEMU's words.
        """
        self.keeper.hotplug.plug(options)

    def delete_device(self, name: str) -> None:
        """Unplug a port, or a controller with its ports.

        Raises:
            QmpError: there is no such device, or its VMM is connected: only the VMM can give up a controller then.
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

        # After the command's answer, as QEMU does.
        self.keeper.loop.add_turn(tell)

    def names_of(self, device: Controller | Port) -> dict[str, object]:
        """The data of a device's DEVICE_DELETED."""
        named: dict[str, object] = {"device": device.id} if device.id is not None else {}
        return {**named, "path": self.path_of(device)}

    # A controller's state

    def save_state(self, name: str | None, fd: int) -> None:
        """Pause a controller and write its state to a file.

        Raises:
            ConfigError, QmpError: that failed; the controller is not paused.
        """
        save_controller(self.keeper.workers, self._controller(name), fd)

    def restore_state(self, name: str | None, fd: int) -> None:
        """Load a controller's state from a file, before a driver uses the controller.

        Raises:
            ConfigError, QmpError: that failed.
        """
        restore_controller(self.keeper.workers, self._controller(name), fd)

    def continue_device(self, name: str | None) -> None:
        """Resume a controller that save_state paused.

        Raises:
            ConfigError, QmpError: that failed.
        """
        resume_controller(self.keeper.workers, self._controller(name))

    def _controller(self, name: str | None) -> Controller:
        """The controller of an id or path; without a name the only one."""
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

    def add_chardev(self, chardev: Chardev) -> Chardev:
        """Open a chardev, whose id is free, and return it.

        Raises:
            ConfigError: it cannot be opened.
        """
        self._set_paths(chardev)
        self.keeper.back_ends.add(chardev)
        return chardev

    def change_chardev(self, chardev_id: str, make: Callable[[], Chardev]) -> Chardev:
        """Replace a chardev's back end, also while a port uses it.

        Raises:
            ConfigError, QmpError: that failed; the present one stays.
        """
        if chardev_id not in self.keeper.chardevs:
            raise QmpError(f"Chardev '{chardev_id}' does not exist")
        if chardev_id in self.keeper.back_ends.sinks:
            raise QmpError("Chardev user does not support chardev hotswap")
        chardev = make()
        self._set_paths(chardev)
        self.keeper.back_ends.change(chardev)
        return chardev

    def remove_chardev(self, chardev_id: str) -> None:
        """Close and forget a chardev.

        Raises:
            QmpError: there is none, or it is in use.
        """
        self._find_chardev(chardev_id)
        if self.keeper.back_ends.is_busy(chardev_id):
            raise QmpError(f"Chardev '{chardev_id}' is busy")
        self.keeper.back_ends.remove(chardev_id)

    def _find_chardev(self, chardev_id: str) -> None:
        if chardev_id not in self.keeper.chardevs:
            raise QmpError(f"Chardev '{chardev_id}' not found")

    def query_clients(self) -> list[dict[str, object]]:
        """What x-virtserial-query-clients returns."""
        return self.keeper.back_ends.clients()

    def send_break(self, chardev_id: str) -> None:
        """Send a break: none of our back ends can carry one, and QEMU's ignore it as silently.

        Raises:
            QmpError: there is no such chardev.
        """
        self._find_chardev(chardev_id)

    def disconnect(self, chardev_id: str) -> None:
        """Shut a socket's connection down, as if its peer had: what it has sent is still read.

        Raises:
            QmpError: there is no such chardev, or nobody whom it could send away.
        """
        self._find_chardev(chardev_id)
        if not self.keeper.back_ends.shut_down(chardev_id):
            raise QmpError(f"Chardev '{chardev_id}' has no client that can be sent away")

    def resize(self, chardev_id: str, cols: int, rows: int) -> None:
        """Tell the guest of a console how large the terminal at its chardev is, in characters.

        Raises:
            ConfigError: no console uses that chardev, or no terminal is so large.
        """
        self.keeper.hotplug.resize(chardev_id, cols, rows)

    def read_ringbuf(self, chardev_id: str, size: int) -> bytes:
        """Take up to `size` bytes out of a ringbuf, at most MAX_READ.

        Raises:
            QmpError: there is no ringbuf of that id, or the size is not positive.
        """
        ringbuf = self._ringbuf(chardev_id)
        if size <= 0:
            raise QmpError("size must be greater than zero")
        return ringbuf.read(min(size, MAX_READ))

    def write_ringbuf(self, chardev_id: str, data: bytes) -> None:
        """Put bytes into a ringbuf; the oldest are overwritten.

        Raises:
            QmpError: there is no ringbuf of that id.
        """
        self._ringbuf(chardev_id).write(data)

    def _ringbuf(self, chardev_id: str) -> RingbufChardev:
        chardev = self.keeper.chardevs.get(chardev_id)
        if chardev is None:
            raise QmpError(f"Device '{chardev_id}' not found")
        if not isinstance(chardev.backend, RingbufChardev):
            raise QmpError(f"{chardev_id} is not a ringbuf device")
        return chardev.backend

    def query_chardev(self) -> list[dict[str, object]]:
        """What query-chardev returns and `info chardev` prints."""
        return [
            {"label": label, "filename": filename, "frontend-open": self._frontend_open(chardev.id)}
            for chardev in self.chardevs()
            for label, filename in chardev.listing()
        ]

    def _frontend_open(self, chardev_id: str) -> bool:
        """Whether a chardev's user has it open: monitors and consoles always, other ports if the guest has."""
        if chardev_id in self.keeper.back_ends.sinks or self.keeper.chardevs[chardev_id].fronts:
            return True
        port = self.keeper.machine.user_of(chardev_id)
        return port is not None and (port.is_console or port.guest_open)

    def chardevs(self) -> list[Chardev]:
        """All chardevs."""
        return list(self.keeper.chardevs.values())

    def _set_paths(self, chardev: Chardev) -> None:
        """Replace paths into descriptor sets by paths of this process's descriptors."""
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
            raise ConfigError(f"Could not open '{path}': no descriptor of that set has this access")
        return f"/proc/self/fd/{fd}"

    # The process

    def restart(self, *, with_keeper: bool) -> None:
        """Begin to replace the worker, or both processes, by the code that is installed now.

        Raises:
            ConfigError: that is not possible; the present processes stay.
        """
        self.keeper.restart(with_keeper=with_keeper)

    def quit(self) -> None:
        """End the process."""
        self.events.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
        self.has_quit = True
        self._stop()
