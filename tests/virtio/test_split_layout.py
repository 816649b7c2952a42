"""Sizes of the areas, and the wrap-safe comparison of 2.7.10."""

import pytest

from virtserial.virtio.ring.split import layout as split_ring


def test_areas_have_the_sizes_of_the_specification():
    assert split_ring.descriptor_table_size(128) == 2048
    assert split_ring.avail_ring_size(128) == 262
    assert split_ring.used_ring_size(128) == 1030


@pytest.mark.parametrize(
    ("event", "new", "old", "needed"),
    [
        (0, 1, 0, True),
        (1, 1, 0, False),
        (0, 0, 0, False),
        (0xFFFF, 0, 0xFFFF, True),
        (0xFFFE, 2, 0xFFFF, False),
        (1, 2, 0xFFFF, True),
        (2, 2, 0xFFFF, False),
        (0x8000, 0, 0, False),
    ],
)
def test_event_needed_is_wrap_safe(event, new, old, needed):
    assert split_ring.event_needed(event, new, old) is needed


def test_event_needed_is_membership_of_the_moved_range():
    for old in (0, 1, 0x7FFF, 0xFFFD):
        for moved in (0, 1, 3, 200):
            new = (old + moved) & 0xFFFF
            passed = {(old + k) & 0xFFFF for k in range(moved)}
            for event in (*range(8), *range(0x7FFC, 0x8004), *range(0xFFF8, 0x10000)):
                assert split_ring.event_needed(event, new, old) is (event in passed)
