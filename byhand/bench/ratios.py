"""The arithmetic of the benchmark: medians, spreads, and ratios taken pair by pair with a bootstrap interval."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the quartiles around it."""

    median: float
    low: float
    high: float
    count: int

    def to_json(self) -> dict[str, float]:
        """As it stands in the results."""
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0], len(values))
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), low, high, len(values))


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Median of ours / theirs over bursts taken next to each other, with its bootstrap interval (percentiles).

    The pairs are drawn again with replacement; equal arguments give equal intervals.
    """
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    dice = random.Random(0)
    medians = sorted(statistics.median(dice.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    outside = round(RESAMPLES * (1 - CONFIDENCE) / 2)
    return Spread(statistics.median(ratios), medians[outside], medians[-1 - outside], len(ratios))


def gap(stamps: Sequence[float]) -> float:
    """Median time between two tokens of a burst."""
    return statistics.median(after - before for before, after in pairwise(stamps))
