"""Our devices and chardevs in QEMU's object model: paths and properties."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.machine.model import Controller, Port
from virtserial.monitor.operations import ANONYMOUS, PERIPHERAL
from virtserial.monitor.qmp import DEVICE_NOT_FOUND, QmpError
from virtserial.options.device_options import VHOST_USER

if TYPE_CHECKING:
    from virtserial.chardev.base import Chardev
    from virtserial.monitor.operations import Operations

CHARDEVS = "/chardevs"
CONTROLLER_DRIVER = "virtio-serial-pci"

Properties = dict[str, tuple[str, object]]
"""Name: (type, value); a child's value is its path."""


def driver_of(device: Controller | Port) -> str:
    """QEMU's name of a device's type."""
    if isinstance(device, Port):
        return device.driver
    return VHOST_USER if device.vhost_user else CONTROLLER_DRIVER


def list_properties(operations: Operations, path: str) -> list[dict[str, str]]:
    """What qom-list returns.

    Raises:
        QmpError: there is no such object.
    """
    return [{"name": name, "type": kind} for name, (kind, _) in _object(operations, path).items()]


def get_property(operations: Operations, path: str, name: str) -> object:
    """What qom-get returns.

    Raises:
        QmpError: there is no such object or property.
    """
    properties = _object(operations, path)
    if name not in properties:
        raise QmpError(f"Property '{properties['type'][1]}.{name}' not found")
    return properties[name][1]


def device_properties(operations: Operations, device: Controller | Port) -> Properties:
    """A device's own properties, as device-list-properties has them."""
    if isinstance(device, Controller):
        return {
            "max_ports": ("uint32", device.max_ports),
            "vectors": ("uint32", device.vectors),
            "unplug": ("str", "on" if device.unplug else "off"),
            "disable-legacy": ("OnOffAuto", "off" if device.legacy else "on"),
            "disable-modern": ("bool", not device.modern),
            "page-per-vq": ("bool", device.page_per_vq),
            "iommu_platform": ("bool", device.iommu_platform),
            "event_idx": ("bool", device.event_idx),
            "indirect_desc": ("bool", device.indirect_desc),
            "packed": ("bool", device.packed),
            "in_order": ("bool", device.in_order),
            "queue_reset": ("bool", device.queue_reset),
            "emergency-write": ("bool", device.emergency_write),
            "resize-order": ("str", "rows-cols" if device.resize_rows_first else "cols-rows"),
            "socket": ("str", device.socket),
        }
    return {
        "chardev": ("str", device.chardev or ""),
        "nr": ("uint32", device.number),
        "name": ("str", device.name or ""),
    }


def _object(operations: Operations, path: str) -> Properties:
    if not path:
        raise QmpError("Path '' is ambiguous")
    trimmed = "/" + path.strip("/") if path.startswith("/") else path
    containers = _containers(operations)
    if trimmed in containers:
        return containers[trimmed]
    chardev = operations.keeper.chardevs.get(trimmed.removeprefix(f"{CHARDEVS}/"))
    if chardev is not None:
        return _chardev(chardev)
    device = next(
        (device for device in operations.devices() if trimmed in (device.id, operations.path_of(device))), None
    )
    if device is None:
        raise QmpError(f"Device '{path}' not found", DEVICE_NOT_FOUND)
    return _device(operations, device)


def _containers(operations: Operations) -> dict[str, Properties]:
    peripheral: Properties = {"type": ("string", "container")}
    anonymous: Properties = dict(peripheral)
    for device in operations.devices():
        holder = peripheral if device.id is not None else anonymous
        path = operations.path_of(device)
        holder[path.rpartition("/")[2]] = (f"child<{driver_of(device)}>", path)
    chardevs: Properties = {"type": ("string", "container")}
    for chardev in operations.chardevs():
        chardevs[chardev.id] = (f"child<{_type_of(chardev)}>", f"{CHARDEVS}/{chardev.id}")
    return {
        "/": {
            "type": ("string", "container"),
            "machine": ("child<virtserial-machine>", "/machine"),
            "chardevs": ("child<container>", CHARDEVS),
        },
        "/machine": {
            "type": ("string", "virtserial-machine"),
            "peripheral": ("child<container>", PERIPHERAL),
            "peripheral-anon": ("child<container>", ANONYMOUS),
        },
        PERIPHERAL: peripheral,
        "peripheral": peripheral,
        ANONYMOUS: anonymous,
        CHARDEVS: chardevs,
        "chardevs": chardevs,
    }


def _device(operations: Operations, device: Controller | Port) -> Properties:
    parent = "/machine" if isinstance(device, Controller) else operations.path_of(device.controller)
    bus = device.controller.bus if isinstance(device, Port) else "peripheral"
    return {
        "type": ("string", driver_of(device)),
        "parent_bus": ("link<bus>", f"{parent}/{bus}"),
        "realized": ("bool", True),
        "hotpluggable": ("bool", isinstance(device, Port)),
        **device_properties(operations, device),
    }


def _chardev(chardev: Chardev) -> Properties:
    properties: Properties = {"type": ("string", _type_of(chardev))}
    connected = getattr(chardev, "connected", None)
    if isinstance(connected, bool):
        properties["connected"] = ("bool", connected)
    return properties


def _type_of(chardev: Chardev) -> str:
    return f"chardev-{chardev.kind}"
