"""The -device options of virtio-serial: controllers, ports, which controller each port is on, and whose each is.

QEMU plugs in devices given as key=value first, then those given as JSON (qemu_create_cli_devices in system/vl.c); the
bus of a port without `bus=` depends on that order.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from virtserial.dropin.command_line import arguments_of
from virtserial.dropin.drivers import ARCHITECTURES_WITHOUT_PCI_ALIAS, PORTS, is_virtio_serial, resolve
from virtserial.errors import ConfigError
from virtserial.options import keyval
from virtserial.options.device_options import (
    CONTROLLERS,
    DRIVERS,
    NOT_YET,
    DeviceOptions,
    make_device,
)
from virtserial.options.vfio_user_device import typed_value, vfio_user_device
from virtserial.options.way_out import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from virtserial.dropin.command_line import Option

GLOBAL_DRIVERS: Mapping[str, tuple[str, ...]] = {
    "virtserialport": ("virtserialport", "virtio-serial-port"),
    "virtconsole": ("virtconsole", "virtserialport", "virtio-serial-port"),
    "virtio-serial-pci": ("virtio-serial-pci", "virtio-serial-device", "virtio-pci", "virtio-device", "pci-device"),
}
"""By driver: the type names by which -global sets its properties, in QEMU's object model."""


class Device:
    """A controller or port of the command line.

    Attributes:
        driver: QEMU's own name of it.
        properties: those given, with -set and -global applied; without driver and id.
        typed: the values have JSON's types.
        bus: the name of a controller's bus.
        ports: the ports on a controller.
        controller: a port's controller, or a controller itself.
        settings: the -set options that change it.
        kept: why a controller stays QEMU's, or None.
    """

    def __init__(self, option: Option, driver: str, given: Mapping[str, object], *, typed: bool) -> None:
        self.option = option
        self.driver = driver
        self.typed = typed
        self.properties = dict(given)
        device_id = self.properties.pop("id", None)
        self.id = None if device_id is None else str(device_id)
        self.bus = ""
        self.ports: list[Device] = []
        self.controller: Device | None = None
        self.settings: list[Option] = []
        self.kept: str | None = None

    @property
    def is_port(self) -> bool:
        return self.driver in PORTS

    @property
    def chardev(self) -> str | None:
        """The id of a port's chardev."""
        chardev = self.properties.get("chardev")
        return chardev if isinstance(chardev, str) else None

    def error(self, error: Exception | str) -> ConfigError:
        """An error about this option, in QEMU's form."""
        error = error if isinstance(error, ConfigError) else ConfigError(str(error))
        return refusal(f"-{self.option.name}", self.option.value or "", error)

    def options(self, bus: str | None = None) -> DeviceOptions:
        """Return the checked options; `bus`: the name of a port's bus.

        Raises:
            ConfigError: in QEMU's words.
        """
        properties = dict(self.properties)
        if bus is not None:
            properties["bus"] = bus
        if self.id is not None:
            keyval.check_identifier(self.id)
        return make_device(self.driver, self.id, properties, typed=self.typed)

    def qemu_argument(self, socket: str) -> str:
        """Return the -device argument of QEMU's half of a controller: JSON, since `socket` is an object."""
        device = vfio_user_device(self.driver, self.id, self.properties, socket, typed=self.typed)
        return json.dumps(device, separators=(",", ":"))


def collect(options: Sequence[Option], architecture: str) -> tuple[list[Device], dict[str, str]]:
    """Return the virtio-serial devices in the order QEMU plugs them in, and all other devices' ids and drivers.

    Raises:
        ConfigError: an id is used twice, or JSON is invalid.
    """
    by_text: list[Device] = []
    by_json: list[Device] = []
    others: dict[str, str] = {}
    for option, value in arguments_of(options, "device"):
        try:
            given = keyval.parse_options(value, "driver")
        except ConfigError as error:
            raise refusal("-device", value, error) from None
        driver = resolve(str(given.pop("driver", "")))
        if architecture in ARCHITECTURES_WITHOUT_PCI_ALIAS and driver == "virtio-serial-pci":
            driver = "virtio-serial-ccw"
        if not is_virtio_serial(driver):
            if "id" in given:
                others[str(given["id"])] = driver
            continue
        typed = value.startswith("{")
        (by_json if typed else by_text).append(Device(option, driver, given, typed=typed))
    return [*by_text, *by_json], others


def apply_set(options: Sequence[Option], devices: Sequence[Device]) -> None:
    """Apply `-set device.ID.PROPERTY=VALUE`."""
    by_id = {device.id: device for device in devices if device.id is not None and not device.typed}
    for option, value in arguments_of(options, "set"):
        place, equals, text = value.partition("=")
        group, _, rest = place.partition(".")
        device_id, _, name = rest.partition(".")
        if equals and name and group == "device" and device_id in by_id:
            by_id[device_id].properties[name] = text
            by_id[device_id].settings.append(option)


def apply_global(options: Sequence[Option], devices: Sequence[Device]) -> None:
    """Apply `-global DRIVER.PROPERTY=VALUE` to devices without that property.  QEMU gets it too."""
    defaults: list[tuple[str, str, str]] = []
    for _, value in arguments_of(options, "global"):
        pairs = dict(keyval.key_values(value, "driver"))
        if "property" in pairs:
            defaults.append((pairs.get("driver", ""), pairs["property"], pairs.get("value", "")))
        else:
            place, _, text = value.partition("=")
            driver, _, name = place.partition(".")
            defaults.append((driver, name, text))
    for device in devices:
        kind = "virtio-serial-pci" if device.driver in CONTROLLERS else device.driver
        names = (device.driver, *GLOBAL_DRIVERS.get(kind, ()))
        found = {name: text for driver, name, text in defaults if driver in names and _has(device.driver, name)}
        for name, text in found.items():
            if name not in device.properties:
                device.properties[name] = typed_value(device.driver, name, text) if device.typed else text


def _has(driver: str, name: str) -> bool:
    return name in DRIVERS.get(driver, {})


def place_ports(devices: Sequence[Device]) -> list[Device]:
    """Put each port on its controller; return the controllers.

    Raises:
        ConfigError: there is no such bus.
    """
    controllers: list[Device] = []
    unnamed = 0
    for device in devices:
        if not device.is_port:
            if device.id is None:
                device.bus = f"virtio-serial-bus.{unnamed}"
                unnamed += 1
            else:
                device.bus = f"{device.id}.0"
            device.controller = device
            controllers.append(device)
            continue
        if not controllers:
            hint = "a controller comes first: -device virtio-serial"
            raise device.error(ConfigError(f"No 'virtio-serial-bus' bus found for device '{device.driver}'", hint))
        bus = device.properties.get("bus")
        found = [controller for controller in controllers if bus in (None, controller.bus)]
        if not found:
            buses = [controller.bus for controller in controllers]
            hint = keyval.did_you_mean(str(bus), buses) or keyval.there_is("bus", buses)
            raise device.error(ConfigError(f"Bus '{bus}' not found", hint))
        device.controller = found[-1]
        found[-1].ports.append(device)
    return controllers


def why_qemu_s(device: Device) -> str | None:
    """Return why a controller stays QEMU's by its driver; None if it can be ours."""
    return f"{device.driver} is not a device of virtserial" if device.driver in NOT_YET else None
