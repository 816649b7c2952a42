"""Debian as mmdebstrap installs it, kept in the cache: a root to build packages in, and one to install them in."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess

from virtserial.rig import RigUnavailable
from virtserial.rig.cache import build_once
from virtserial.rig.debian import choose_mirror, machine_sources
from virtserial.rig.programs import RELEASE


def installed_debian(*packages):
    """The folder of a minimal Debian with these packages and all they depend on.

    Raises:
        RigUnavailable: it cannot be had.
    """
    if not shutil.which("mmdebstrap") or os.geteuid() != 0:
        raise RigUnavailable("mmdebstrap is needed, and root: apt-get install mmdebstrap")
    mirror = choose_mirror(machine_sources(), os.environ.get("VIRTSERIAL_DEBIAN_MIRROR"))
    digest = hashlib.sha256(" ".join((RELEASE, *packages)).encode()).hexdigest()[:8]

    def install(folder):
        include = f"--include={','.join(packages)}"
        source = f"deb {mirror.archive} {RELEASE} main"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", include, RELEASE, str(folder), source]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RigUnavailable(f"mmdebstrap failed: {done.stderr.strip().splitlines()[-1:]}")

    return build_once(f"debian-{RELEASE}-{digest}", install)
