"""What the rig fetches for these tests."""

from __future__ import annotations

import os

import pytest

from virtserial.rig import RigUnavailable


def had(fetch, *arguments):
    """What `fetch` returns; where it cannot be had, the test is skipped, in CI it fails."""
    try:
        return fetch(*arguments)
    except RigUnavailable as reason:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the rig is not available: {reason}")
        pytest.skip(f"the rig is not available: {reason}")
