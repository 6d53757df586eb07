"""What a row of raw logits says, before any chain: the best k, log-probabilities, ranks, entropy, margin, tail mass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, log
from operator import mul
from typing import NamedTuple

import numpy as np
import torch

from byhand.errors import NotFinite
from byhand.sampling.order import Logits, best, exp_moments


class Scored(NamedTuple):
    """A candidate by id. `logprob` (natural log) and `rank` (1 = best) are raw; `prob` is after the chain."""

    id: int
    logprob: float
    rank: int
    prob: float
    removed_by: str | None = None


# The best k ids, falling, ties by the lower id, and their logits; and over all other tokens the sums of
# w = exp(logit - highest) and of w · (logit - highest). A backend's kernel makes one of each row of (rows, vocab) and
# its k, or None where it cannot.
TopkLse = tuple[list[int], list[float], float, float]
TopkLseKernel = Callable[[torch.Tensor, Sequence[int]], list[TopkLse | None]]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of raw logits, measured over the whole vocabulary in float64.

    `entropy` is in nats; `margin` is best minus second in nats, infinite where the vocabulary has one token;
    `tail_mass` is the probability outside `top_ids`, summed there and not subtracted from 1.
    """

    logits: Logits
    top_ids: list[int]
    top_logits: list[float]
    log_normalizer: float
    entropy: float
    margin: float
    tail_mass: float

    def logprob(self, token: int) -> float:
        """The natural logarithm of the token's softmax probability."""
        return float(self.logits[token]) - self.log_normalizer

    def rank(self, token: int) -> int:
        """1 + the tokens with a larger logit + those with the same logit and a lower id."""
        logit = self.logits[token]
        return 1 + int((self.logits > logit).sum()) + int((self.logits[:token] == logit).sum())


@dataclass(frozen=True, slots=True)
class Look:
    """What the model predicts after one position: the best k, and how the token that really comes next stands."""

    top: tuple[Scored, ...]
    entropy: float
    margin: float
    tail_mass: float
    actual: Scored | None


def vector(logits: torch.Tensor) -> Logits:
    """A row of logits, (vocab,), as float32 on the CPU; the same memory where it lies there already."""
    if logits.is_cpu and logits.dtype == torch.float32 and not logits.requires_grad:
        return logits.numpy()  # as a rule; and calls that do nothing cost as much as what is done here
    return logits.detach().to("cpu", torch.float32).numpy()


def _check_finite(logits: Logits, peak: float) -> None:
    if not (isfinite(peak) and isfinite(float(logits.min()))):
        bad = int(np.count_nonzero(~np.isfinite(logits)))
        raise NotFinite(
            f"the model produced {bad} logits out of {len(logits)} that are not finite, so no token can be chosen",
            hint="its weights may be damaged, or their dtype too narrow for it",
        )


def topk_lse(logits: Logits, k: int) -> TopkLse:
    """The best k of finite logits, and the mass and the moment of the others: the plain way."""
    peak = float(logits.max())
    _check_finite(logits, peak)
    top = best(logits, k)
    others = logits.copy()
    others[top] = np.finfo(np.float32).min  # so far down that its weight is 0
    return top.tolist(), logits[top].tolist(), *exp_moments(others, peak)


def measure(logits: Logits, k: int, found: TopkLse | None = None) -> Row:
    """Measure a row of finite logits; `k` tokens make the top. `found`: what a kernel told of it."""
    ids, values, tail, tail_moment = found or topk_lse(logits, k)
    peak = values[0]
    # Without numpy, which for ten numbers costs ten times as much as they do.
    distances = [value - peak for value in values]
    weights = [exp(distance) for distance in distances]
    moment = sum(map(mul, weights, distances))
    total = sum(weights) + tail
    second = values[1:2] if k > 1 else logits[best(logits, 2)[1:]].tolist()
    return Row(
        logits=logits,
        top_ids=ids,
        top_logits=values,
        log_normalizer=peak + log(total),
        entropy=max(log(total) - (moment + tail_moment) / total, 0.0),
        margin=peak - second[0] if second else inf,
        tail_mass=tail / total,
    )


def scored(row: Row, token: int, rank: int) -> Scored:
    """A candidate without a chain: its prob is the model's own."""
    logprob = row.logprob(token)
    return Scored(token, logprob, rank, exp(logprob))


def _look_at_row(logits: Logits, k: int, actual: int | None, found: TopkLse | None) -> Look:
    row = measure(logits, k, found)
    top = tuple(scored(row, token, rank) for rank, token in enumerate(row.top_ids, 1))
    follows = None if actual is None else scored(row, actual, row.rank(actual))
    return Look(top, row.entropy, row.margin, row.tail_mass, follows)


def look(
    logits: torch.Tensor,
    k: int = 10,
    actual_ids: Sequence[int | None] | None = None,
    found: Sequence[TopkLse | None] | None = None,
) -> list[Look]:
    """Look at every row of (rows, vocab): the same numbers as `choose` gives, without a chain.

    `actual_ids` names the token that really follows each row, None where none does; `found` is what a kernel told.
    Rows are taken one by one: each is a few passes over memory that stays in the processor's cache, and gives the
    same bits in any batch.
    """
    rows = logits.detach().to("cpu", torch.float32)
    nothing = [None] * len(rows)
    lines = zip(rows, actual_ids or nothing, found or nothing, strict=True)
    return [_look_at_row(row.numpy(), k, actual, found) for row, actual, found in lines]
