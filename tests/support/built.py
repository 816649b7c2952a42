"""What ./scripts/build builds, built for tests."""

from __future__ import annotations

import shutil
import subprocess
import sys

from support.places import ROOT

NOT_SHIPPED = (".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", ".coverage*")


def build_pyz(folder):
    """virtserial.pyz in a folder."""
    target = folder / "virtserial.pyz"
    subprocess.run([sys.executable, ROOT / "packaging/pyz.py", target], check=True)
    return target


def build_wheels(tree, folder):
    """Build the wheel and the source archive of a project into a folder; their paths, the wheel first."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", folder]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    return *folder.glob("*.whl"), *folder.glob("*.tar.gz")


def copy_tree(target):
    """A copy of this source tree, without what was built in it."""
    shutil.copytree(ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
