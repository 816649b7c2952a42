"""The fixed load of the busy arena."""

from __future__ import annotations

import os

import pytest
from support.waiting import wait_until

from busy import one_busy_core
from cpu_time import thread_seconds


def test_one_core_is_busy_as_long_as_it_is_asked_for():
    last = max(os.sched_getaffinity(0))
    with one_busy_core() as pid:
        wait_until(lambda: os.sched_getaffinity(pid) == {last})
        before = sum(thread_seconds(pid).values())
        wait_until(lambda: sum(thread_seconds(pid).values()) > before + 0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
