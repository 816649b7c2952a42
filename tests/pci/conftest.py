from __future__ import annotations

import pytest
from support.console_function import build_function


@pytest.fixture
def function():
    built, _ = build_function()
    yield built
    built.interrupts.close()
