"""Which PCI interfaces a controller has, legacy, modern or both, by QEMU's words and rules (hw/virtio/virtio-pci.c).

| `disable-legacy=` | legacy interface |
|---|---|
| `on`, `virtio-serial-pci-non-transitional` | no |
| `off`, `virtio-serial-pci-transitional` | yes |
| `auto`, the default | as QEMU: not on a PCI Express port, else yes; not either where nobody knows the bus (`virtserial serve`), with `iommu_platform=on`, or for guests that may be big-endian |

`disable-modern=on` leaves the legacy interface alone.  VIRTIO_F_ACCESS_PLATFORM is bit 33, which that does not have: a
transitional controller offers it to modern drivers, unless iommu_platform= says otherwise.
"""  # noqa: E501

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.errors import ConfigError
from virtserial.named_tuple import NamedTuple

if TYPE_CHECKING:
    from virtserial.options.device_options import DeviceOptions

EXPRESS_PORTS: Final = (
    *("pcie-root-port", "ioh3420", "x3130-upstream", "xio3130-downstream"),
    *("cxl-rp", "cxl-upstream", "cxl-downstream"),
)
"""QEMU's devices whose bus, named as the device, is PCI Express and no root bus."""
LITTLE_ENDIAN: Final = ("x86_64", "i386", "aarch64", "arm", "riscv64", "riscv32", "loongarch64")
"""Guests' architectures, in QEMU's words, on which legacy fields are little-endian (virtio 1.3, 2.5.3)."""


class Interfaces(NamedTuple):
    """What a controller's function has.

    Attributes:
        iommu_platform: it offers VIRTIO_F_ACCESS_PLATFORM.
    """

    legacy: bool
    modern: bool
    iommu_platform: bool


def interfaces_of(options: DeviceOptions) -> Interfaces:
    """Return what the options of a controller ask for.

    Raises:
        ConfigError: no function can have it; in QEMU's words.
    """
    properties = options.properties
    modern = not properties["disable-modern"]
    legacy = properties["disable-legacy"] == "off" or (properties["disable-legacy"] == "auto" and not modern)
    if not legacy and not modern:
        hint = "Set either disable-modern or disable-legacy to off"
        raise ConfigError("device cannot work as neither modern nor legacy mode is enabled", hint)
    if not modern:
        # Feature bits above 31; QEMU drops them without a word.
        for name in ("packed", "in_order"):
            if properties[name]:
                raise ConfigError(f"{name}=on needs the modern interface, and disable-modern=on leaves none")
    asked = properties["iommu_platform"]
    if asked and legacy:
        raise ConfigError("VIRTIO_F_IOMMU_PLATFORM was supported by neither legacy nor transitional device")
    return Interfaces(legacy, modern, iommu_platform=modern and asked is not False)


def choose_legacy(options: DeviceOptions, *, on_express_port: bool, architecture: str) -> None:
    """Decide disable-legacy=auto of a controller whose place is known.

    Raises:
        ConfigError: the legacy interface is asked for where it does not work.
    """
    properties = options.properties
    works = architecture in LITTLE_ENDIAN
    if properties["disable-legacy"] == "auto":
        has_none = on_express_port or (not properties["disable-modern"] and (properties["iommu_platform"] or not works))
        properties["disable-legacy"] = "on" if has_none else "off"
    if properties["disable-legacy"] == "off" and not works:
        raise ConfigError(f"the legacy interface works for little-endian guests only, not on {architecture}")
