"""Builds virtserial.pyz: the whole program in one file that any Python 3.11 or newer runs, on a machine without pip.

    python3 packaging/pyz.py dist/virtserial.pyz

It is the source tree in a zip archive (zipapp, PEP 441), which Python imports from: nothing is unpacked.  Called by
another name, as by a link `virtserial-qemu`, it is that program.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
FIRST_LINE = b"#!/usr/bin/env python3\n"
ONE_DATE = (2026, 1, 1, 0, 0, 0)
"""Of every file: equal sources give equal archives."""
MAIN = """\
import sys
from pathlib import Path

if sys.version_info < (3, 11):
    sys.exit("virtserial: Python 3.11 or newer is needed (Debian 12, Ubuntu 24.04)")
name = Path(sys.argv[0]).stem
if name == "virtserial-qemu":
    from virtserial.cli.qemu import main
elif name == "virtserial-vhost-user":
    from virtserial.cli.vhost_user import main
else:
    from virtserial.cli.main import main
sys.exit(main())
"""


def contents() -> dict[str, bytes]:
    """Every file of the package, by its name in the archive; src/virtserial/guest is a link to a folder."""
    files = {}
    for folder in (SOURCE / "virtserial", SOURCE / "virtserial" / "guest"):
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files[path.relative_to(SOURCE).as_posix()] = path.read_bytes()
    return files


def build(target: Path) -> None:
    """Write the archive."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        file.write(FIRST_LINE)
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in sorted({**contents(), "__main__.py": MAIN.encode()}.items()):
                archive.writestr(zipfile.ZipInfo(name, ONE_DATE), data, zipfile.ZIP_DEFLATED)
    target.chmod(0o755)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    build(Path(sys.argv[1]))
