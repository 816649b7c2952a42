"""What rides in QEMU's stream: each controller's state, and what QEMU had emulated for it.

The form is that of a saved state (state/envelope.py): magic, version, checksum, JSON.  Who may write a stream may make
a device do what its guest's driver may, and nothing else: every value is checked, the states by the worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from virtserial.errors import ConfigError
from virtserial.migration.dbus import MAX_STATE
from virtserial.pci.layout import MAX_VECTORS, PCI_CONFIG_SPACE_SIZE
from virtserial.state.envelope import seal, unseal
from virtserial.state.fields import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CONTROLLERS: Final = 256
MAX_NAME: Final = 256


@dataclass(frozen=True, slots=True)
class MovedController:
    """A controller as it leaves.

    Attributes:
        bus: the name of its bus, by which the destination knows it.
        configuration: its PCI configuration space.
        msix_table: what QEMU has in the function's MSI-X table; empty: it could not be told, or there is none.
        state: the saved state of the device.
    """

    bus: str
    configuration: bytes
    msix_table: bytes
    state: bytes


@dataclass(frozen=True, slots=True)
class Payload:
    """
    Attributes:
        running: whether the machine ran when it was stopped to leave.
    """

    running: bool
    controllers: tuple[MovedController, ...]


def pack(payload: Payload) -> bytes:
    """Return the bytes for QEMU's stream.

    Raises:
        ConfigError: they are more than QEMU takes.
    """
    data = seal(
        {
            "running": payload.running,
            "controllers": [
                {
                    "bus": controller.bus,
                    "configuration": encode(controller.configuration),
                    "msix_table": encode(controller.msix_table),
                    "state": encode(controller.state),
                }
                for controller in payload.controllers
            ],
        }
    )
    if len(data) > MAX_STATE:
        raise ConfigError(f"the state of the virtio-serial controllers has {len(data)} bytes, QEMU takes {MAX_STATE}")
    return data


def unpack(data: bytes) -> Payload:
    """Read what a stream brings.

    Raises:
        ConfigError: it makes no sense; the text says where.
    """
    fields = unseal(data, MAX_STATE)
    controllers: list[MovedController] = []
    for entry in fields.groups("controllers", MAX_CONTROLLERS):
        configuration = entry.data("configuration", PCI_CONFIG_SPACE_SIZE)
        if len(configuration) != PCI_CONFIG_SPACE_SIZE:
            raise entry.refuse("configuration", f"has {len(configuration)} bytes, not {PCI_CONFIG_SPACE_SIZE}")
        table = entry.data("msix_table", 16 * MAX_VECTORS)
        if len(table) % 16:
            raise entry.refuse("msix_table", f"has {len(table)} bytes, no multiple of 16")
        bus = entry.text_or_none("bus")
        if bus is None or len(bus) > MAX_NAME:
            raise entry.refuse("bus", "is no name")
        controllers.append(MovedController(bus, configuration, table, entry.data("state", MAX_STATE)))
    return Payload(fields.flag("running"), tuple(controllers))


def check_buses(payload: Payload, buses: Sequence[str]) -> None:
    """Whether a stream brings exactly the controllers that are here.

    Raises:
        ConfigError: it does not.
    """
    theirs = sorted(controller.bus for controller in payload.controllers)
    if theirs != sorted(buses):
        raise ConfigError(
            f"the stream has virtio-serial controllers with the buses {_listed(theirs)}, here are {_listed(buses)}"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name[:64] for name in sorted(names)) or "(none)"
