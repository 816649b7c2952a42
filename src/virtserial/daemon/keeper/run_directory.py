"""Where sockets go when nobody says where, and where running processes are listed."""

from __future__ import annotations

import os

REGISTRY = "VIRTSERIAL_REGISTRY"


def run_directory() -> str:
    """Return $XDG_RUNTIME_DIR/virtserial, or /run/virtserial for root and where there is none."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.geteuid() != 0:
        return os.path.join(runtime, "virtserial")
    return "/run/virtserial"


def registry_directory() -> str:
    """Return the folder of the entries of what runs here: $VIRTSERIAL_REGISTRY, or `vms` in `run_directory`."""
    return os.environ.get(REGISTRY) or os.path.join(run_directory(), "vms")
