"""What keeper and worker both have to know of a host end."""

from __future__ import annotations

MAX_FRONTS = 4
"""Users of one chardev with mux=on: QEMU's MAX_MUX."""
