"""What the rig fetches or builds once and keeps outside the source tree.

The folder is $VIRTSERIAL_CACHE, else $XDG_CACHE_HOME/virtserial, else ~/.cache/virtserial.  An entry's name carries the
versions it was made from, so a new pin makes a new entry and nothing has to be invalidated.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from virtserial.errors import VirtserialError

if TYPE_CHECKING:
    from collections.abc import Callable


class RigUnavailable(VirtserialError):
    """The rig cannot be had on this machine; the text is a one-line reason.  Tests skip on it (in CI they fail)."""


def cache_root() -> Path:
    """The cache's folder, by the environment; it need not exist."""
    if chosen := os.environ.get("VIRTSERIAL_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "virtserial"


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """Return the cached entry NAME; call build(folder) to make it if it is missing.

    The build works in a temporary folder that takes the entry's name only when it is whole, under a lock: of two
    runs in parallel one builds and the other waits, and an interrupted build leaves nothing that could be taken for
    an entry.

    Raises:
        RigUnavailable: the cache's folder cannot be written; whatever build raises passes through.
    """
    root = cache_root()
    entry = root / name
    if entry.is_dir():
        return entry
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RigUnavailable(f"the cache {root} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not entry.is_dir():
            for stale in root.glob(f".{name}.new-*"):
                shutil.rmtree(stale, ignore_errors=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{name}.new-", dir=root))
            try:
                build(unfinished)
                unfinished.rename(entry)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    finally:
        os.close(lock)
    return entry
