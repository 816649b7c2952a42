"""`-device DRIVER,...`: from its text to checked properties of a controller or a port."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.errors import ConfigError
from virtserial.named_tuple import NamedTuple
from virtserial.options import keyval

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping


class Property(NamedTuple):
    """One property of a driver.

    Attributes:
        type: as QEMU names it in -device DRIVER,help.
        default: the value if not given; None where the machine decides.
        role: USED; PASSED_BY: of the VMM's side of the device, accepted and ignored here.
    """

    type: str
    default: object
    role: str
    description: str = ""


USED, PASSED_BY = "used", "passed by"


class DeviceOptions(NamedTuple):
    """The content of one -device.

    Attributes:
        driver: QEMU's name, aliases resolved ("virtio-serial-pci", "virtserialport", "virtconsole").
        id: or None.
        bus: as given, or None.
        properties: all USED properties of the driver, by QEMU's names, given or default.
    """

    driver: str
    id: str | None
    bus: str | None
    properties: dict[str, object]

    @property
    def is_controller(self) -> bool:
        return self.driver in CONTROLLERS or self.driver == VHOST_USER

    @property
    def is_console(self) -> bool:
        return self.driver == "virtconsole"


CONTROLLERS = ("virtio-serial-pci", "virtio-serial-pci-transitional", "virtio-serial-pci-non-transitional")

VHOST_USER = "vhost-user-serial"
"""A controller whose VMM has the PCI function and speaks vhost-user; QEMU has no device of this name."""

ALIASES = {"virtio-serial": "virtio-serial-pci", "virtioconsole": "virtconsole"}
"""`virtio-serial` is QEMU's alias; Fedora's page writes `virtioconsole`, which QEMU refuses."""

NOT_YET = ("virtio-serial-device", "virtio-serial-ccw")

INTERRUPTS_BY_MESSAGES = ("x86_64", "i386")
"""Guests' architectures, in QEMU's words, on which unplug=on works: whose interrupts' addresses pci/msix.py knows."""

PORT_PROPERTIES: Mapping[str, Property] = {
    "chardev": Property("str", None, USED, "ID of a chardev to use as a backend"),
    "name": Property("str", None, USED, "what the guest calls the port"),
    "nr": Property("uint32", None, USED, "port number; the next free one if not given"),
}

CONSOLE_PROPERTIES: Mapping[str, Property] = {
    "cols": Property("uint32", 0, USED, "columns of the console's window; 0: the guest is not told"),
    "rows": Property("uint32", 0, USED, "rows of the console's window"),
}

_QEMU_HOST_SIDE = (
    *(("addr", "str", None), ("acpi-index", "uint32", 0), ("aer", "bool", False), ("any_layout", "bool", True)),
    *(("busnr", "str", None), ("class", "uint32", 0), ("ats", "bool", False)),
    *(("failover_pair_id", "str", None), ("ioeventfd", "bool", True), ("modern-pio-notify", "bool", False)),
    *(("multifunction", "bool", False), ("notify_on_empty", "bool", True), ("rombar", "int32", -1)),
    *(("romfile", "str", None), ("romsize", "uint32", None), ("sriov-pf", "str", None)),
    *(("use-disabled-flag", "bool", True), ("use-started", "bool", True)),
    *(("virtio-pci-bus-master-bug-migration", "bool", False), ("x-ats-page-aligned", "bool", True)),
    *(("x-disable-legacy-check", "bool", False), ("x-max-bounce-buffer-size", "size", 4096)),
    *(("x-pcie-ari-nextfn-1", "bool", False), ("x-pcie-err-unc-mask", "bool", True)),
    *(("x-pcie-ext-tag", "bool", True), ("x-pcie-flr-init", "bool", True)),
    *(("x-pcie-lnksta-dllla", "bool", True), ("x-pcie-pm-no-soft-reset", "bool", False)),
)

CONTROLLER_PROPERTIES: Mapping[str, Property] = {
    "max_ports": Property("uint32", 31, USED, "ports the guest can see, 1 to 511"),
    "vectors": Property("uint32", None, USED, "MSI-X vectors; 0: INTx; max_ports + 1 if not given"),
    "unplug": Property("str", "auto", USED, "on: device_del works, MSI-X by messages; off: by eventfds; on, off, auto"),
    "iommu_platform": Property("bool", None, USED, "offer VIRTIO_F_ACCESS_PLATFORM; on if not given"),
    "event_idx": Property("bool", True, USED, "offer VIRTIO_F_EVENT_IDX"),
    "indirect_desc": Property("bool", True, USED, "offer VIRTIO_F_INDIRECT_DESC"),
    "packed": Property("bool", False, USED, "offer VIRTIO_F_RING_PACKED"),
    "in_order": Property("bool", False, USED, "offer VIRTIO_F_IN_ORDER"),
    "queue_reset": Property("bool", True, USED, "offer VIRTIO_F_RING_RESET"),
    "emergency-write": Property("bool", True, USED, "offer VIRTIO_CONSOLE_F_EMERG_WRITE"),
    "socket": Property("str", None, USED, "path of the vfio-user socket to listen on"),
    "resize-order": Property("str", "cols-rows", USED, "fields of RESIZE: cols-rows or rows-cols"),
    "page-per-vq": Property("bool", False, USED, "a page of 4096 bytes for each queue's doorbell"),
    **{name: Property(kind, default, PASSED_BY) for name, kind, default in _QEMU_HOST_SIDE},
}

INTERFACE_PROPERTIES: Mapping[str, Property] = {
    "disable-legacy": Property("str", "auto", USED, "no legacy interface; on, off, auto (interfaces.py)"),
    "disable-modern": Property("bool", False, USED, "the legacy interface alone"),
}

INTERFACES_OF_DRIVER: Mapping[str, Mapping[str, object]] = {
    "virtio-serial-pci-transitional": {"disable-legacy": "off", "disable-modern": False},
    "virtio-serial-pci-non-transitional": {"disable-legacy": "on", "disable-modern": False},
    VHOST_USER: {
        "disable-legacy": "on", "disable-modern": False, "page-per-vq": False, "vectors": 0, "unplug": "off",
        "iommu_platform": False, "queue_reset": False,
    },
}
"""Controllers whose names say what they have: they have no such properties."""

_VHOST_USER_PROPERTIES: Mapping[str, Property] = {
    "max_ports": Property("uint32", 31, USED, "ports the guest can see, 1 to 511"),
    "socket": Property("str", None, USED, "path of the vhost-user socket to listen on"),
    **{
        name: CONTROLLER_PROPERTIES[name]
        for name in ("event_idx", "indirect_desc", "packed", "in_order", "emergency-write", "resize-order")
    },
}

DRIVERS: Mapping[str, Mapping[str, Property]] = {
    **dict.fromkeys(CONTROLLERS, CONTROLLER_PROPERTIES),
    "virtio-serial-pci": {**CONTROLLER_PROPERTIES, **INTERFACE_PROPERTIES},
    VHOST_USER: _VHOST_USER_PROPERTIES,
    "virtserialport": PORT_PROPERTIES,
    "virtconsole": {**PORT_PROPERTIES, **CONSOLE_PROPERTIES},
}

NOT_QEMU_S = ("socket", "unplug", "resize-order", "cols", "rows")
"""Properties that QEMU's devices of these names have not."""

CHOICES = {
    "resize-order": ("cols-rows", "rows-cols"),
    "disable-legacy": ("on", "off", "auto"),
    "unplug": ("on", "off", "auto"),
}


def parse_device(text: str, ids_in_use: Container[str] = ()) -> DeviceOptions:
    """Parse the argument of -device; the machine checks bus, number and chardev.

    Raises:
        ConfigError: in QEMU's words.
    """
    options = keyval.parse_options(text, "driver")
    is_json = text.startswith("{")
    driver = options.pop("driver", None)
    if not isinstance(driver, str) or not driver:
        raise ConfigError("Parameter 'driver' is missing")
    device_id = options.pop("id", None)
    if device_id is not None:
        device_id = keyval.check_identifier(device_id)
        if device_id in ids_in_use:
            raise ConfigError(f"Duplicate ID '{device_id}' for device")
    return make_device(driver, device_id, options, typed=is_json)


def make_device(
    driver: str, device_id: str | None, options: Mapping[str, object], *, typed: bool
) -> DeviceOptions:
    """Check the properties of a device.  `typed`: the values have JSON's types, so a string is not a number or bool.

    Raises:
        ConfigError: in QEMU's words.
    """
    driver = ALIASES.get(driver, driver)
    known = DRIVERS.get(driver)
    if known is None:
        if driver in NOT_YET:
            raise ConfigError(f"'{driver}' is not supported by virtserial yet")
        hint = keyval.did_you_mean(driver, (*DRIVERS, *ALIASES))
        raise ConfigError(f"'{driver}' is not a valid device model name", hint)
    remaining = dict(options)
    bus = remaining.pop("bus", None)
    bus = keyval.to_string("bus", bus) if bus is not None else None
    properties = {name: spec.default for name, spec in known.items() if spec.role == USED}
    properties |= INTERFACES_OF_DRIVER.get(driver, {})
    for name, value in remaining.items():
        spec = known.get(name)
        if spec is None:
            raise ConfigError(f"Property '{driver}.{name}' not found", keyval.did_you_mean(name, (*known, "id", "bus")))
        checked = _checked(name, spec, value, typed=typed)
        _check_choice(driver, name, checked)
        if spec.role == USED:
            properties[name] = checked
    return DeviceOptions(driver, device_id, bus, properties)


def _checked(name: str, spec: Property, value: object, *, typed: bool) -> object:
    if typed and spec.type == "bool" and not isinstance(value, bool):
        raise ConfigError(f"Invalid parameter type for '{name}', expected: boolean")
    if typed and spec.type in ("uint32", "size", "int32") and isinstance(value, str):
        raise ConfigError(f"Parameter '{name}' expects uint64")
    if spec.type == "int32" and value in (-1, "-1"):
        return -1
    return _CONVERT[spec.type](name, value)


def _check_choice(driver: str, name: str, value: object) -> None:
    if name == "disable-legacy" and value not in CHOICES[name]:
        raise ConfigError(f"Parameter '{name}' does not accept value '{value}'")
    if name in CHOICES and value not in CHOICES[name]:
        hint = f"{name}= takes {', '.join(CHOICES[name])}"
        raise ConfigError(f"Property '{driver}.{name}' doesn't take value '{value}'", hint)


_CONVERT: Mapping[str, Callable[[str, object], object]] = {
    "bool": keyval.to_bool,
    "uint32": keyval.to_uint32,
    "int32": keyval.to_uint32,
    "size": keyval.to_size,
    "str": keyval.to_string,
}


def device_help(driver: str) -> str:
    """The text of `-device DRIVER,help`: the properties that have an effect.

    Raises:
        ConfigError: no such driver.
    """
    driver = ALIASES.get(driver, driver)
    if driver not in DRIVERS:
        hint = keyval.did_you_mean(driver, (*DRIVERS, *ALIASES)) or "`-device help` lists the devices"
        raise ConfigError(f"'{driver}' is not a valid device model name", hint)
    lines = [f"{driver} options:"]
    for name, spec in sorted(DRIVERS[driver].items()):
        if spec.role == USED:
            shown = ("off", "on")[spec.default] if isinstance(spec.default, bool) else spec.default
            default = "" if spec.default is None else f" (default: {shown})"
            lines.append(f"  {name}=<{spec.type}>".ljust(25) + f" - {spec.description}{default}")
    return "\n".join(lines) + "\n"
