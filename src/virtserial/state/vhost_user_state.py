"""The part of a saved state that a vhost-user front adds: none but its name, for the VMM has the registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtserial.console.device import ConsoleDevice
    from virtserial.state.fields import Fields


class VhostUserState:
    """Saves and loads nothing (state.device_state.FrontState)."""

    size_limit = 64

    def __init__(self, console: ConsoleDevice) -> None:
        self._console = console

    def reset(self) -> None:
        self._console.reset()

    def save(self) -> dict[str, object]:
        return {"vhost_user": True}

    def check(self, state: Fields) -> None:
        if not state.flag("vhost_user", default=False):
            raise state.refuse("vhost_user", "is missing: it is that of a controller with a PCI function of its own")

    def load(self, state: Fields) -> None:
        """The VMM has set the rest."""
