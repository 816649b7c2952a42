"""Public helpers for tests of devices, drivers and host back ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtserial.testing.plugin import Attach, Boot, Serve, virtserial_attach, virtserial_boot, virtserial_serve

__all__ = ["Attach", "Boot", "Serve", "virtserial_attach", "virtserial_boot", "virtserial_serve"]

if not TYPE_CHECKING:  # A type checker would take any name.

    def __getattr__(name: str) -> object:
        """Load the plugin at the first use of a name: it needs pytest, and the other helpers do not."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from virtserial.testing import plugin

        return getattr(plugin, name)
