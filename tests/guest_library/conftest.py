from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "guest_library" and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(60))


@pytest.fixture
def folder():
    """A short path for sockets."""
    with tempfile.TemporaryDirectory(prefix="vs-") as path:
        yield Path(path)


@pytest.fixture
def dice():
    """Random bytes that are the same in every run."""
    return random.Random(7).randbytes
