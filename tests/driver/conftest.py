from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items):
    """A test that waits in vain must not be waited for as long as those of the real guests."""
    for item in items:
        if item.path.parent.name == "driver" and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(60))
