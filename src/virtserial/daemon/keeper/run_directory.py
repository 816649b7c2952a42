"""Where sockets go when nobody says where."""

from __future__ import annotations

import os


def run_directory() -> str:
    """Return $XDG_RUNTIME_DIR/virtserial, or /run/virtserial for root and where there is none."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.geteuid() != 0:
        return os.path.join(runtime, "virtserial")
    return "/run/virtserial"
