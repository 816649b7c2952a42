"""Medians, and ratios pair by pair with a bootstrap interval."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

RESAMPLES = 4000
SEED = 20  # the same figures give the same interval every time


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
    """ours/theirs of each round: their median, and its interval by a percentile bootstrap over the rounds.

    A pair was measured within seconds, so what slows the machine for a while falls out of its ratio.

    Raises:
        ValueError: not as many of one as of the other, or none.
    """
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    if not ratios:
        raise ValueError("a ratio needs at least one pair")
    chance = random.Random(SEED)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    tail = RESAMPLES // 20
    return Ratio(statistics.median(ratios), medians[tail], medians[-1 - tail])
