"""Positions in a packed ring, against a model that counts descriptors without end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from virtserial.virtio.ring.packed.layout import (
    START,
    advance,
    available_flags,
    distance,
    event_needed,
    used_flags,
)

SIZES = st.sampled_from((1, 2, 3, 7, 16, 100, 32768))


def position(count, size):
    """Where a ring of `size` stands after `count` descriptors."""
    return count % size | (START if count // size % 2 == 0 else 0)


@given(SIZES, st.integers(0, 1 << 20), st.data())
def test_positions_advance_and_differ_as_counts_do(size, count, data):
    more = data.draw(st.integers(0, size))
    assert advance(position(count, size), more, size) == position(count + more, size)
    far = data.draw(st.integers(0, 2 * size - 1))
    assert distance(position(count + far, size), position(count, size), size) == far


@given(SIZES, st.integers(0, 1 << 20), st.data())
def test_an_event_is_needed_if_its_descriptor_is_passed(size, old, data):
    new = old + data.draw(st.integers(0, size))
    event = old + data.draw(st.integers(0, size - 1))
    wanted = event_needed(position(event, size), position(new, size), position(old, size), size)
    assert wanted is (event < new)


def test_any_event_of_a_driver_is_lived_with():
    for event in range(0, 0x10000, 251):
        assert event_needed(event, 0x8003, 0x8001, 8) in (True, False)


def test_flags_tell_available_from_used_in_each_lap():
    flags = {(available_flags(at), used_flags(at)) for at in (0x8000, 0x8005, 0, 5)}
    assert flags == {(0x0080, 0x8080), (0x8000, 0)}
