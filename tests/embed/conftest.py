"""A program's own device, once for each test."""

from __future__ import annotations

import pytest
from support.places import REGISTRY


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Processes of tests are not listed among the machine's own."""
    monkeypatch.setenv("VIRTSERIAL_REGISTRY", REGISTRY)
