"""What of QEMU's migration cannot be right with a controller of ours, and is refused before anything stops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from virtserial.monitor.qmp import QmpError
from virtserial.monitor.qmp_client import Ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.monitor.steps import Steps

PAUSE: Final = "pause-before-switchover"
EVENTS: Final = "events"
REFUSED_CAPABILITIES: Final = {
    "postcopy-ram": "the guest would run before its memory has come, which virtserial reaches past QEMU",
    "background-snapshot": "the guest would run while its memory is written, which virtserial reaches past QEMU",
    "x-colo": "the device's state is not kept the same on two hosts",
    "x-ignore-shared": "guest memory is shared with virtserial, so none of it would be in the stream",
}
NORMAL_MODE: Final = "normal"
VIOMMUS: Final = ("intel-iommu", "amd-iommu", "virtio-iommu-pci", "virtio-iommu-device", "arm-smmuv3")
CONTAINERS: Final = ("/machine/peripheral", "/machine/peripheral-anon")


def query() -> Steps[dict[str, bool]]:
    """Which capabilities are on."""
    listed = cast("Sequence[dict[str, Any]]", (yield Ask("query-migrate-capabilities", {})))
    return {entry["capability"]: entry["state"] for entry in listed}


def set_some(capabilities: dict[str, bool]) -> Steps[None]:
    """Switch capabilities on or off."""
    wanted = [{"capability": name, "state": state} for name, state in capabilities.items()]
    yield Ask("migrate-set-capabilities", {"capabilities": wanted})


def check(command: str, capabilities: dict[str, bool]) -> Steps[None]:
    """Whether a machine with a controller of ours can be moved the way that is asked for.

    Raises:
        QmpError: it cannot; the text names the capability.
    """
    for name, why in REFUSED_CAPABILITIES.items():
        if capabilities.get(name):
            raise QmpError(f"{command} with capability {name} is not supported by virtserial: {why}")
    parameters = cast("dict[str, Any]", (yield Ask("query-migrate-parameters", {})))
    if (mode := parameters.get("mode", NORMAL_MODE)) != NORMAL_MODE:
        raise QmpError(
            f"{command} in mode {mode} is not supported by virtserial: QEMU would hand its connections to its successor"
        )
    for path in CONTAINERS:
        devices = cast("Sequence[dict[str, Any]]", (yield Ask("qom-list", {"path": path})))
        for device in devices:
            kind = device["type"].removeprefix("child<").removesuffix(">")
            if kind in VIOMMUS:
                raise QmpError(
                    f"{command} with {kind} is not supported by virtserial: what it wrote by addresses that the guest "
                    "has taken away again could not be marked dirty"
                )
