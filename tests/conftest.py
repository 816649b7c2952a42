"""What every test may use: folders with a short path, and a limit of time for each room's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.folders import short_folder

LIMITS = {"cli": 30, "client": 120, "daemon": 45, "driver": 60, "guest_library": 60}
"""Seconds that a test of a room may take, where pyproject.toml's limit (for the real guests) is too long to wait."""
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        limit = LIMITS.get(item.path.relative_to(HERE).parts[0])
        if limit is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(limit))


@pytest.fixture
def folder():
    """A folder of the test's own, with a short path."""
    with short_folder() as path:
        yield path


@pytest.fixture(scope="module")
def module_folder():
    """The same, for what all tests of a module share."""
    with short_folder() as path:
        yield path
