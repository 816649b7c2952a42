"""Devices of a machine that QEMU and we share: whose each is; how controllers are added and deleted."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from virtserial.errors import ConfigError, VirtserialError
from virtserial.machine.model import Controller, Port
from virtserial.monitor.operations import PERIPHERAL
from virtserial.monitor.qmp import QmpError
from virtserial.monitor.qmp_client import Ask, MonitorGoneError
from virtserial.options.device_options import (
    ALIASES,
    CONTROLLERS,
    DRIVERS,
    INTERRUPTS_BY_MESSAGES,
    NOT_YET,
    VHOST_USER,
    make_device,
)
from virtserial.options.interfaces import EXPRESS_PORTS, choose_legacy
from virtserial.options.values import Values
from virtserial.options.vfio_user_device import vfio_user_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from virtserial.monitor.operations import Operations
    from virtserial.monitor.steps import Steps

NO_BUS: Final = "No 'virtio-serial-bus' bus found"


class JoinedDevices:
    """Knows the owner of each device and bus.

    Args:
        run_directory: folder for the sockets of new controllers.
        newest_is_qemus: the last virtio-serial controller so far is QEMU's: ports without `bus=` go there.
    """

    def __init__(self, operations: Operations, run_directory: str, *, newest_is_qemus: bool) -> None:
        self._operations = operations
        self._run_directory = run_directory
        self._newest_is_qemus = newest_is_qemus
        self._sockets = 0

    @property
    def _controllers(self) -> list[Controller]:
        return self._operations.keeper.machine.controllers

    # device_add

    @staticmethod
    def is_controller(arguments: Mapping[str, object]) -> bool:
        """Whether a new device is a controller for us."""
        return _driver(arguments) in CONTROLLERS

    def is_port_of_ours(self, arguments: Mapping[str, object]) -> bool:
        """Whether a new device is a port for a bus of ours."""
        if _driver(arguments) not in DRIVERS or _driver(arguments) in (*CONTROLLERS, VHOST_USER):
            return False
        bus = arguments.get("bus")
        if bus is None:
            return bool(self._controllers) and not self._newest_is_qemus
        return any(controller.bus == bus for controller in self._controllers)

    def qemus_refusal_is_final(self, arguments: Mapping[str, object], refusal: str) -> bool:
        """Whether QEMU's refusal of a device stands; not if it has no bus for a port and we have one."""
        if "bus" not in arguments and self._controllers and NO_BUS in refusal:
            self._newest_is_qemus = False
            return False
        return True

    def qemu_has_added(self, arguments: Mapping[str, object]) -> None:
        """QEMU has a new device."""
        if _driver(arguments) in (*NOT_YET, *CONTROLLERS):
            self._newest_is_qemus = True

    def refuse_id_of_ours(self, arguments: Mapping[str, object]) -> None:
        """Check the id of a device for QEMU.

        Raises:
            QmpError: a device of ours has it.
        """
        device_id = arguments.get("id")
        if device_id is not None and any(device.id == device_id for device in self._operations.devices()):
            raise QmpError(f"Duplicate device ID '{device_id}'")

    @staticmethod
    def refuse_id_of_qemus(arguments: Mapping[str, object]) -> Steps[None]:
        """Check the id of a device for us.

        Raises:
            QmpError: a device of QEMU's has it.
        """
        device_id = arguments.get("id")
        if device_id is not None:
            listed = yield Ask("qom-list", {"path": PERIPHERAL})
            if any(entry["name"] == device_id for entry in listed):
                raise QmpError(f"Duplicate device ID '{device_id}'")

    def add_controller(self, arguments: Mapping[str, object], *, typed: bool) -> Steps[None]:
        """Add a controller: our device, and QEMU's PCI device for it.

        QEMU can delete it unless its words say otherwise: QEMU 11.1 aborts when it deletes a vfio-user device that it
        saw MSI-X on, so this one sends its MSI-X messages itself (pci/msix.py), or has INTx where it cannot.

        Raises:
            QmpError: one of the two failed; the other is undone.
        """
        given = {name: value for name, value in arguments.items() if name not in ("driver", "id")}
        driver, device_id = _driver(arguments), Values(arguments).text("id")
        self._sockets += 1
        socket = os.path.join(self._run_directory, f"added{self._sockets}.sock")
        words = {**given, "socket": socket}
        architecture = str((yield Ask("query-target", {}))["arch"])
        if given.get("unplug", "auto") == "auto":
            works = architecture in INTERRUPTS_BY_MESSAGES
            words |= {"unplug": "on"} if works else {"unplug": "off", "vectors": given.get("vectors", 0)}
        qemu_device = vfio_user_device(driver, device_id, given, socket, typed=typed)
        options = make_device(driver, device_id, words, typed=typed)
        on_express_port = yield from _is_express_port(options.bus)
        choose_legacy(options, on_express_port=on_express_port, architecture=architecture)
        controller = self._operations.keeper.hotplug.plug(options)
        try:
            yield Ask("device_add", qemu_device)
        except QmpError as error:
            self._operations.keeper.hotplug.unplug(controller)
            if isinstance(error, MonitorGoneError):
                raise
            raise QmpError(str(error).replace("vfio-user-pci", driver), error.error_class) from None
        self._newest_is_qemus = False

    # device_del

    def find(self, name: str) -> Controller | Port | None:
        """Return our device of an id or path; not a controller without an id: its path is that of QEMU's half."""
        with contextlib.suppress(VirtserialError):
            device = self._operations.find_device(name)
            if isinstance(device, Port) or device.id is not None:
                return device
        return None

    def is_port(self, name: str) -> bool:
        """Whether an id or path names a port of ours."""
        return isinstance(self.find(name), Port)

    def check_deletion(self, name: str) -> Steps[None]:
        """Check that QEMU may delete a device that is no port of ours.

        Raises:
            QmpError: QEMU would abort, or half a controller would stay.
        """
        device = self.find(name)
        if isinstance(device, Controller):
            if device.vectors and not device.unplug:
                raise QmpError(
                    f"Device '{name}' has MSI-X (vectors={device.vectors}), and QEMU aborts the virtual machine when a "
                    "vfio-user device with MSI-X is deleted; add unplug=on to its -device, then it can be deleted"
                )
            return
        if name.startswith("/") and any(controller.id is None for controller in self._controllers):
            kind = yield Ask("qom-get", {"path": name, "property": "type"})
            if kind == "vfio-user-pci":
                raise QmpError(f"Device '{name}' is a controller of virtserial without an id: it cannot be deleted")

    def qemu_has_deleted(self, device_id: object) -> None:
        """QEMU has deleted its half of a controller: delete ours with its ports."""
        named = [controller for controller in self._controllers if controller.id is not None]
        controller = next((controller for controller in named if controller.id == device_id), None)
        if controller is None:
            return
        operations = self._operations
        ports = [operations.names_of(port) for port in controller.ports.values()]
        operations.keeper.hotplug.unplug(controller)
        for names in ports:
            operations.events.emit("DEVICE_DELETED", names)


def _is_express_port(bus: str | None) -> Steps[bool]:
    """Whether a bus is that of a PCI Express port; the port has its name."""
    if bus is None:
        return False
    try:
        kind = yield Ask("qom-get", {"path": f"{PERIPHERAL}/{bus}", "property": "type"})
    except QmpError:
        return False  # A bus that the machine or another device brings along.
    return kind in EXPRESS_PORTS


def _driver(arguments: Mapping[str, object]) -> str:
    driver = arguments.get("driver")
    if not isinstance(driver, str):
        raise ConfigError("Parameter 'driver' is missing")
    return ALIASES.get(driver, driver)
