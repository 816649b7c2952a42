"""Medians, and ratios pair by pair with a bootstrap interval."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 4000
SEED = 20  # the interval of the same figures is the same every time


@dataclass(frozen=True)
class Summary:
    """Median and range of some figures."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Ratio:
    """Median of the ratios of pairs, with the bounds of its 90 % interval."""

    median: float
    low: float
    high: float


def summarize(figures: Sequence[float]) -> Summary:
    """Median and range of at least one figure."""
    return Summary(statistics.median(figures), min(figures), max(figures))


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """ours/theirs of each round, and a percentile bootstrap of the median over rounds.

    A pair was measured within seconds, so what slows the machine for a while falls out of its ratio.

    Raises:
        ValueError: not as many of one as of the other, or none.
    """
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    chance = random.Random(SEED)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return Ratio(statistics.median(ratios), medians[RESAMPLES // 20], medians[-RESAMPLES // 20])
