"""QEMU's half of a controller: the vfio-user-pci device for our socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.options import keyval
from virtserial.options.device_options import DRIVERS

if TYPE_CHECKING:
    from collections.abc import Mapping

PCI_PROPERTIES = frozenset(
    (
        *("bus", "addr", "acpi-index", "multifunction", "rombar", "romfile", "romsize", "failover_pair_id", "busnr"),
        *("sriov-pf", "x-max-bounce-buffer-size", "x-pcie-ext-tag", "x-pcie-lnksta-dllla", "x-pcie-ari-nextfn-1"),
        "x-pcie-err-unc-mask",
    )
)
"""Properties of all PCI devices: those of a controller go to QEMU's half."""


def vfio_user_device(
    driver: str, device_id: str | None, properties: Mapping[str, object], socket: str, *, typed: bool
) -> dict[str, object]:
    """Return the vfio-user-pci device for a controller, with device_add's JSON types.

    Args:
        driver: the controller's, aliases resolved.
        properties: the given ones; those of our half are left out.
        socket: the path of the controller's socket.
        typed: the values have JSON's types already.

    Raises:
        ConfigError: a value has the wrong type.
    """
    device: dict[str, object] = {"driver": "vfio-user-pci"}
    if device_id is not None:
        device["id"] = device_id
    for name, value in properties.items():
        if name in PCI_PROPERTIES:
            device[name] = value if typed else typed_value(driver, name, str(value))
    device["socket"] = {"type": "unix", "path": socket}
    return device


def typed_value(driver: str, name: str, text: str) -> object:
    """Return the JSON value of a property given as text.

    Raises:
        ConfigError: it has the wrong type.
    """
    spec = DRIVERS[driver].get(name)
    kind = spec.type if spec is not None else "str"
    if kind == "bool":
        return keyval.to_bool(name, text)
    if kind == "int32":
        return -1 if text == "-1" else keyval.to_uint32(name, text)
    if kind == "uint32":
        return keyval.to_uint32(name, text)
    return keyval.to_size(name, text) if kind == "size" else text
