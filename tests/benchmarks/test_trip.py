"""The calls of a round trip: figures that are the same on every machine, and must not grow unnoticed."""

from __future__ import annotations

import pytest

from trip import count

AT_MOST = {"system": 7, "python": 50, "c": 24}


@pytest.mark.parametrize("size", [1, 64])
def test_a_round_trip_takes_no_more_calls_than_it_did(size):
    calls, _ = count(size, 40)
    assert calls.system <= AT_MOST["system"], calls
    assert calls.python <= AT_MOST["python"], calls
    assert calls.c <= AT_MOST["c"], calls
