from __future__ import annotations

import random

import pytest


@pytest.fixture
def dice():
    """Random bytes that are the same in every run."""
    return random.Random(7).randbytes
