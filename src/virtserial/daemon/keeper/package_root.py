"""Where a new interpreter finds this program."""

from __future__ import annotations

import os

import virtserial


def package_root() -> str:
    """Return the folder to be put into sys.path."""
    return os.path.dirname(virtserial.__path__[0])
