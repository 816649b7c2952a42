"""This package for inside a guest: files to add to the image, and how a guest starts programs of it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import virtserial

FOLDER: Final = "/usr/lib/virtserial"
PROGRAM: Final = f"env PYTHONPATH={FOLDER} python3 -m virtserial"
ROOMS: Final = ("memory", "virtio", "console", "pci", "vfio_user", "chardev", "daemon", "driver", "cli")
PLAIN_FILES: Final = ("__init__.py", "__main__.py", "errors.py", "loop.py")


def package_files() -> dict[str, bytes]:
    """What the guest driver and its command line need: absolute guest path -> content."""
    source = Path(virtserial.__file__).parent
    paths = [source / name for name in PLAIN_FILES]
    for room in ROOMS:
        paths += sorted((source / room).glob("*.py"))
    return {f"{FOLDER}/virtserial/{path.relative_to(source)}": path.read_bytes() for path in paths}
