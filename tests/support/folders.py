"""Folders for sockets."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_folder():
    """A folder with a short path, removed afterwards: the path of a unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vs-") as path:
        yield Path(path)
