"""The dice: a number in [0, 1) that is a pure function of (seed, choice, position), and the draw made with it.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011): Philox turns a counter into random bits under a
key, so there is no state to keep, to save or to rewind.
"""

from __future__ import annotations

from secrets import randbits

import numpy as np

from byhand.sampling.order import Survivors
from byhand.types import Draw


def fresh_seed() -> int:
    """A random 32-bit seed, for a run that names none: short enough to read out, and kept in the record."""
    return randbits(32)


def throw(seed: int, choice: int, position: int) -> float:
    """The dice of one place: Philox4x64-10, key (seed, choice), counter `position`; the top 53 of the first 64 bits."""
    key = np.array([seed % 2**64, choice], dtype=np.uint64)
    raw = int(np.random.Philox(key=key, counter=position).random_raw())
    return (raw >> 11) * 2.0**-53


def draw(alive: Survivors, u: float) -> tuple[int, Draw]:
    """The token whose share of the bar holds `u`.

    The bar is laid from the best logit down, ties by the lower id, each share a token's softmax probability. It is
    laid only as far as `u` reaches, and where it lies does not depend on how far that is.
    """
    reached, bar = alive.reach(alive.values, u, beyond=True)
    last = len(reached) - 1
    if bar[last] <= u:
        # Rounding left the bar a hair short of 1: its end belongs to the last token that has any share.
        last = int(np.flatnonzero(alive.probs(reached))[-1])
        bar[last] = 1.0
    low = float(bar[last - 1]) if last else 0.0
    return int(alive.ids[reached[last]]), Draw(u=u, low=low, high=min(float(bar[last]), 1.0))
