"""Debian 11's Python 3.9, unpacked and run through its own loader: the oldest that the guest library is run on."""

from __future__ import annotations

from virtserial.rig.cache import build_once
from virtserial.rig.debian import PackageSet, unpack

PACKAGES = PackageSet(release="bullseye", wanted=("python3.9-minimal", "libpython3.9-stdlib"))
LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


def python39():
    """The words that start it, and what its environment needs.

    Raises:
        RigUnavailable: the packages cannot be had.
    """
    root = build_once("python-bullseye", lambda folder: unpack(PACKAGES, folder))
    libraries = ":".join(str(root / folder) for folder in LIBRARY_FOLDERS)
    # What lib64 has is a link to an absolute path.
    (loader,) = (root / "lib/x86_64-linux-gnu").glob("ld-[0-9]*.so")
    command = [str(loader), "--library-path", libraries, str(root / "usr/bin/python3.9")]
    return command, {"PYTHONHOME": str(root / "usr"), "PYTHONDONTWRITEBYTECODE": "1"}
