"""Which pages were written, against a model that is a set of page numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from virtserial.memory import dirty_log
from virtserial.memory.dirty_log import DirtyLog

PAGE = 4096
CHUNK = 8192 * PAGE
addresses = st.one_of(st.integers(0, 50 * PAGE), st.integers(CHUNK - 5 * PAGE, CHUNK + 5 * PAGE))


def pages(bitmap, address, page_size):
    bits = int.from_bytes(bitmap, "little")
    return {address + index * page_size for index in range(8 * len(bitmap)) if bits >> index & 1}


@given(
    writes=st.lists(st.tuples(addresses, st.integers(0, 5 * PAGE)), max_size=20),
    start=st.integers(0, 30),
    count=st.integers(1, 9000),
    scale=st.sampled_from([1, 2, 16]),
)
def test_what_was_written_is_told_once_and_nothing_else_is(writes, start, count, scale):
    log, model = DirtyLog(), set()
    for address, length in writes:
        log.mark(address, length)
        model |= {page * PAGE for page in range(address // PAGE, -(-(address + length) // PAGE)) if length}
    assert [page * PAGE for page in log.written()] == sorted(model)
    address, length, unit = start * PAGE, count * PAGE, scale * PAGE
    inside = {page for page in model if address <= page < address + length}
    told = log.take(address, length, unit)
    assert len(told) == (-(-length // unit) + 63) // 64 * 8
    assert pages(told, address, unit) == {address + (page - address) // unit * unit for page in inside}
    assert not any(log.take(address, length, unit))
    assert pages(log.take(0, 2 * CHUNK, PAGE), 0, PAGE) == model - inside


def test_a_log_that_would_grow_without_end_counts_everything_as_written(monkeypatch):
    monkeypatch.setattr(dirty_log, "MAX_CHUNKS", 3)
    log = DirtyLog()
    for chunk in range(4):
        log.mark(chunk * CHUNK, 1)
    assert log.written() is None
    assert log.take(1 << 40, 3 * PAGE, PAGE) == (7).to_bytes(8, "little")
    assert log.take(1 << 40, 3 * PAGE, PAGE) == (7).to_bytes(8, "little")
    log.mark(0, 1 << 62)
