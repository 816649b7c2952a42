"""The names of QEMU's virtio-serial drivers: controllers and ports, those we serve and those we do not."""

from __future__ import annotations

from virtserial.options.device_options import ALIASES, CONTROLLERS, NOT_YET

PORTS = ("virtserialport", "virtconsole")
ARCHITECTURES_WITHOUT_PCI_ALIAS = ("s390x",)
"""Where `virtio-serial` is another device than virtio-serial-pci."""


def resolve(driver: str) -> str:
    """Return a driver's own name for an alias."""
    return ALIASES.get(driver, driver)


def is_virtio_serial(driver: str) -> bool:
    """Whether a driver is a virtio-serial controller or a port."""
    return resolve(driver) in (*CONTROLLERS, *NOT_YET, *PORTS)
