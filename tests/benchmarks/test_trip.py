"""The calls of a round trip: figures that are the same on every machine, and must not grow unnoticed."""

from __future__ import annotations

import pytest

from trip import Calls, count

AT_MOST = {"vfio-user": Calls(system=7, python=42, c=24), "vhost-user": Calls(system=5, python=38, c=20)}


@pytest.mark.parametrize("front", AT_MOST)
@pytest.mark.parametrize("size", [1, 64])
def test_a_round_trip_takes_no_more_calls_than_it_did(size, front):
    calls, _ = count(size, 40, front)
    most = AT_MOST[front]
    assert calls.system <= most.system, calls
    assert calls.python <= most.python, calls
    assert calls.c <= most.c, calls
