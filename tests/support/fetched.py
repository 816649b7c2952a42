"""Programs and packages that the rig fetches for tests."""

from __future__ import annotations

import os

import pytest

from virtserial.rig import RigUnavailable


def fetch_or_skip(fetch, *arguments):
    """Return what `fetch` returns; if it is not available, skip the test, or fail it in CI."""
    try:
        return fetch(*arguments)
    except RigUnavailable as reason:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the rig is not available: {reason}")
        pytest.skip(f"the rig is not available: {reason}")
