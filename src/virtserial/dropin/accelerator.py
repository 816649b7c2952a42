"""What runs the guest's processors, and what that decides: whether controllers can be unplugged by default.

unplug=on costs little where QEMU emulates the processors.  With KVM an eventfd reaches the guest without QEMU, a
message does not, so there it is off unless it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.dropin.command_line import arguments_of
from virtserial.errors import ConfigError
from virtserial.options import keyval
from virtserial.options.device_options import INTERRUPTS_BY_MESSAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.dropin.command_line import Option
    from virtserial.options.device_options import DeviceOptions


def is_emulated(options: Sequence[Option]) -> bool:
    """Whether the first accelerator that is asked for is TCG, which is always there and QEMU's default."""
    if any(option.name == "enable-kvm" for option in options):
        return False
    asked = [dict(keyval.key_values(value, "accel")).get("accel", "") for _, value in arguments_of(options, "accel")]
    for _, value in arguments_of(options, "machine", "M"):
        asked += dict(keyval.key_values(value, "type")).get("accel", "").split(":")
    return next((name for name in asked if name), "tcg") == "tcg"


def choose_unplug(device: DeviceOptions, options: Sequence[Option], architecture: str) -> None:
    """Decide unplug=auto of a controller of the command line.

    Raises:
        ConfigError: unplug=on on an architecture where it does not work.
    """
    properties = device.properties
    works = architecture in INTERRUPTS_BY_MESSAGES
    if properties["unplug"] == "on" and not works:
        raise ConfigError(f"unplug=on works on {' and '.join(INTERRUPTS_BY_MESSAGES)} only, not on {architecture}")
    if properties["unplug"] == "auto":
        properties["unplug"] = "on" if works and is_emulated(options) else "off"
