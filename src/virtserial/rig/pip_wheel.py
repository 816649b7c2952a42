"""pip for a Debian Python that has none: `python3 -m virtserial.rig.pip_wheel` prints the path of its wheel.

Debian ships the wheel that `python3 -m venv` would use in a package of its own; fetching that needs no root.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from virtserial.rig.cache import RigUnavailable, build_once
from virtserial.rig.debian import PackageSet, unpack

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = PackageSet(release="bookworm", wanted=("python3-pip-whl",))
WHEELS = "usr/share/python-wheels"


def pip_wheel() -> Path:
    """The wheel as a file; `python3 WHEEL/pip` runs it.

    Raises:
        RigUnavailable: the package cannot be had.
    """
    folder = build_once("pip-wheel-bookworm", lambda folder: unpack(PACKAGES, folder))
    wheels = sorted((folder / WHEELS).glob("pip-*.whl"))
    if not wheels:
        raise RigUnavailable(f"no wheel of pip in {folder}")
    return wheels[-1]


if __name__ == "__main__":
    try:
        print(pip_wheel())
    except RigUnavailable as error:
        sys.exit(f"pip: {error}")
