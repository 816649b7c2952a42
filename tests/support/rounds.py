"""How often a test does again what one round shows: VIRTSERIAL_SLOW=1 makes it more."""

from __future__ import annotations

import os

LONG_RUN = bool(os.environ.get("VIRTSERIAL_SLOW"))


def rounds(gate, long_run):
    """The number for this run: rounds, seconds, bytes."""
    return long_run if LONG_RUN else gate
