"""The peer (peer.c) as a static program that runs in the guest and on the host, compiled once and kept in the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from virtserial.rig.cache import RigUnavailable, build_once

SOURCE = Path(__file__).with_name("peer.c")
OPTIONS = ("-O2", "-static", "-Wall", "-Wextra", "-Werror")
DEBIAN_PACKAGES = ("gcc", "libc6-dev")


@cache
def peer_program(*, may_install: bool = True) -> Path:
    """The compiled program's path.

    Args:
        may_install: whether to install Debian's compiler where there is none and this is root.

    Raises:
        RigUnavailable: no C compiler here and none can be installed, or it cannot link a static program.
    """
    compiler = find_compiler() or (may_install and _install_compiler())
    if not compiler:
        raise RigUnavailable("no C compiler for the benchmark's peer: install gcc and libc6-dev, or set CC")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256(SOURCE.read_bytes() + repr((version, OPTIONS)).encode()).hexdigest()[:12]
    return build_once(f"benchmark-peer-{key}", lambda folder: _compile(compiler, folder)) / "peer"


def find_compiler() -> str | None:
    """A C compiler: $CC, or the first of cc, gcc and clang on PATH."""
    chosen = os.environ.get("CC")
    if chosen and not shutil.which(chosen):
        raise RigUnavailable(f"CC={chosen} is not a program")
    return (
        shutil.which(chosen)
        if chosen
        else next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    )


def _install_compiler() -> str | None:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return None
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *DEBIAN_PACKAGES]):
        subprocess.run(["apt-get", "-qq", *command], env=environment, capture_output=True, check=False)
    return shutil.which("gcc")


def _compile(compiler: str, folder: Path) -> None:
    done = subprocess.run(
        [compiler, *OPTIONS, "-o", str(folder / "peer"), str(SOURCE)], capture_output=True, text=True
    )
    if done.returncode:
        raise RigUnavailable(f"{compiler} cannot build the benchmark's peer: {done.stderr.strip()}")
