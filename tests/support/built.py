"""What ./scripts/build builds, built for tests."""

from __future__ import annotations

import shutil
import subprocess
import sys

from support.places import ROOT

SHIPPED = ("CHANGELOG.md", "LICENSE", "README.md", "docs", "examples", "guest", "man", "packaging",
           "pyproject.toml", "scripts", "src")  # fmt: skip


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
    """Copy what packages are built from."""
    target.mkdir()
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
