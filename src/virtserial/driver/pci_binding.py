"""Binds a PCI function to vfio-pci, and back to another driver.

Source: Linux, Documentation/ABI/testing/sysfs-bus-pci.

`driver_override` makes one driver match one function, so no other function of the same kind changes its driver.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from virtserial.errors import ConfigError

VFIO_PCI: Final = "vfio-pci"
MODULES: Final = ("vfio-pci", "vfio_iommu_type1")
_ADDRESS: Final = re.compile(r"(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE)


def full_address(text: str) -> str | None:
    """Return `0000:00:05.0` for `0000:00:05.0` or `00:05.0`; None if `text` is not a PCI address."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        return None
    domain, bus, device, function = match.groups(default="0000")
    return f"{domain}:{bus}:{device}.{function}".lower()


class PciBinding:
    """The driver of one PCI function.

    Args:
        address: its full address.
        bus: the bus's folder in sysfs.

    Raises:
        ConfigError: there is no such function.
    """

    def __init__(self, address: str, bus: Path = Path("/sys/bus/pci")) -> None:
        self.address = address
        self._bus = bus
        self._function = bus / "devices" / address
        if not self._function.is_dir():
            raise ConfigError(f"{address}: there is no such PCI function")

    @property
    def driver(self) -> str | None:
        """The name of its driver; None if it has none."""
        try:
            return os.path.basename(os.readlink(self._function / "driver"))
        except FileNotFoundError:
            return None

    def bind(self) -> str | None:
        """Bind it to vfio-pci; return its previous driver, None if that was vfio-pci or none.

        Raises:
            ConfigError: vfio-pci or an IOMMU is missing, or permission is denied; the driver stays.
        """
        before = self.driver
        if before == VFIO_PCI:
            return None
        if not (self._function / "iommu_group").exists():
            raise ConfigError(f"{self.address}: there is no IOMMU that keeps its DMA to one process's memory")
        self._load_modules()
        try:
            self._move(VFIO_PCI)
            if self.driver != VFIO_PCI:
                raise ConfigError(f"{self.address}: vfio-pci does not take it (its kernel log says why)")
        except ConfigError:
            with contextlib.suppress(ConfigError):
                self._move("")
            raise
        return before

    def unbind(self) -> str | None:
        """Unbind it from vfio-pci, let the system choose a driver, and return that driver.

        Raises:
            ConfigError: another driver has it, or permission is denied.
        """
        before = self.driver
        if before not in (VFIO_PCI, None):
            raise ConfigError(f"{self.address}: {before} has it, not vfio-pci")
        self._move("")
        return self.driver

    def _move(self, driver: str) -> None:
        """Unbind its driver, and bind `driver`, or whichever matches."""
        self._write(self._function / "driver_override", driver + "\n")
        if self.driver is not None:
            # The kernel waits here while a process has the function open.
            self._write(self._function / "driver" / "unbind", self.address)
        self._write(self._bus / "drivers_probe", self.address)

    def _load_modules(self) -> None:
        driver = self._bus / "drivers" / VFIO_PCI
        modprobe = shutil.which("modprobe") or "/sbin/modprobe"
        for module in () if driver.is_dir() else MODULES:
            # modprobe may be missing; the check below finds out whether the driver exists.
            with contextlib.suppress(OSError):
                subprocess.run([modprobe, module], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if not driver.is_dir():
            raise ConfigError(f"{self.address}: this kernel has no driver vfio-pci")

    def _write(self, path: Path, text: str) -> None:
        try:
            path.write_text(text)
        except OSError as error:
            raise ConfigError(f"{self.address}: {path}: {error.strerror}") from error
