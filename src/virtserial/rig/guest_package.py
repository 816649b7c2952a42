"""This package for inside a guest: files to add to the image, and how a guest starts programs of it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import virtserial

FOLDER: Final = "/usr/lib/virtserial"
PROGRAM: Final = f"env PYTHONPATH={FOLDER} python3 -m virtserial"
NOT_FOR_GUESTS: Final = ("rig", "testing")


def package_files() -> dict[str, bytes]:
    """The package as a guest can use it: absolute guest path -> content."""
    source = Path(virtserial.__file__).parent
    # In a source tree `guest` is a link, which rglob does not follow.
    found = {*source.rglob("*.py"), *(source / "guest").rglob("*.py")}
    paths = [path.relative_to(source) for path in sorted(found)]
    wanted = [path for path in paths if path.parts[0] not in NOT_FOR_GUESTS]
    return {f"{FOLDER}/virtserial/{path}": (source / path).read_bytes() for path in wanted}
