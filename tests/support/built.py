"""What ./scripts/build builds, built for tests."""

from __future__ import annotations

import subprocess
import sys

from support.places import ROOT


def build_pyz(folder):
    """virtserial.pyz in a folder."""
    target = folder / "virtserial.pyz"
    subprocess.run([sys.executable, ROOT / "packaging/pyz.py", target], check=True)
    return target
