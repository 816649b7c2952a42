"""Medians, ratios of pairs and their intervals."""

from __future__ import annotations

import random

import pytest

from ratios import Summary, paired_ratio, summarize


def test_summary_is_median_and_range():
    assert summarize([5.0, 1.0, 3.0, 100.0]) == Summary(4.0, 1.0, 100.0)


def test_ratio_is_taken_within_rounds():
    # The machine is ten times slower in every second round; a pair feels it alike.
    theirs = [100.0, 10.0, 100.0, 10.0, 100.0]
    ratio = paired_ratio([2 * figure for figure in theirs], theirs)
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.0)


def test_interval_holds_the_median_and_lies_within_the_rounds():
    ratio = paired_ratio([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [1.0] * 7)
    assert ratio.median == 4.0
    assert 1.0 < ratio.low < 4.0 < ratio.high < 7.0


def test_interval_is_the_same_every_time():
    ours = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    assert paired_ratio(ours, [2.0] * 7) == paired_ratio(ours, [2.0] * 7)


def test_interval_covers_the_true_ratio_about_nine_times_in_ten():
    chance = random.Random(1)
    covered = 0
    for _ in range(100):
        ours = [chance.lognormvariate(0, 0.3) * 1.5 for _ in range(11)]
        interval = paired_ratio(ours, [1.0] * 11)
        covered += interval.low <= 1.5 <= interval.high
    assert 80 <= covered <= 98


def test_pairs_must_be_whole():
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="at least one pair"):
        paired_ratio([], [])
