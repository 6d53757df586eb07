"""The stages of the chain, one small pure function each: (history, logits, params) -> logits.

Logits are a float32 vector over the vocabulary; -inf means removed. A stage leaves its input as it is, and returns
that very input where it has nothing to do. The order in which they run is in chain.py; formulas and sources of each
are in docs/sampling.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, log

import numpy as np
from numpy.typing import NDArray

from byhand.errors import BadRequest
from byhand.sampling.constraints import Grammars, constraint_of
from byhand.sampling.order import Ids, Logits, best, exp_moments, survivors
from byhand.sampling.params import SamplingParams


@dataclass(frozen=True, slots=True)
class History:
    """What was read and written so far: prompt and continuation in `ids`, the ids that end a sequence, the grammars."""

    ids: Sequence[int]
    prompt_length: int
    eos_ids: frozenset[int]
    grammars: Grammars | None = None  # needed only where a constraint is on

    @property
    def generated(self) -> Sequence[int]:
        """The continuation."""
        return self.ids[self.prompt_length :]


def _array(ids: Iterable[int]) -> Ids:
    return np.fromiter(ids, dtype=np.int64)


def _without(logits: Logits, ids: Ids) -> Logits:
    kept = logits.copy()
    kept[ids] = -np.inf
    return kept


def _at_least(logits: Logits, floor: float) -> Logits:
    kept = logits.copy()
    kept[logits < floor] = -np.inf
    return kept


def _only(logits: Logits, ids: Ids) -> Logits:
    kept = np.full_like(logits, -np.inf)
    kept[ids] = logits[ids]
    return kept


def logit_bias(history: History, logits: Logits, params: SamplingParams) -> Logits:
    """logit + bias, for the tokens that have one."""
    biased = logits.copy()
    biased[_array(params.logit_bias)] += np.fromiter(params.logit_bias.values(), dtype=np.float32)
    return biased


def repetition_penalty(history: History, logits: Logits, params: SamplingParams) -> Logits:
    """Of tokens seen anywhere: logit / penalty where positive, logit * penalty where negative."""
    seen = _array(set(history.ids))
    penalty = np.float32(params.repetition_penalty)
    penalized = logits.copy()
    penalized[seen] = np.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
    return penalized


def frequency_penalty(history: History, logits: Logits, params: SamplingParams) -> Logits:
    """logit - penalty * count, where count is how often the token was generated."""
    counts = Counter(history.generated)
    penalized = logits.copy()
    penalized[_array(counts)] -= np.float32(params.frequency_penalty) * np.fromiter(counts.values(), dtype=np.float32)
    return penalized


def presence_penalty(history: History, logits: Logits, params: SamplingParams) -> Logits:
    """logit - penalty, for tokens generated at least once."""
    penalized = logits.copy()
    penalized[_array(set(history.generated))] -= np.float32(params.presence_penalty)
    return penalized


def no_repeat_ngram_size(history: History, logits: Logits, params: SamplingParams) -> Logits:
    """Removes each token that would complete an n-gram that already occurred."""
    size = params.no_repeat_ngram_size
    if len(history.ids) < size:
        return logits
    ids = _array(history.ids)
    windows = np.lib.stride_tricks.sliding_window_view(ids, size)  # (len(ids) - size + 1, size)
    prefix = ids[len(ids) + 1 - size :]
    return _without(logits, windows[(windows[:, :-1] == prefix).all(axis=1), -1])


def min_tokens(history: History, logits: Logits, params: SamplingParams) -> Logits:
    """Removes the ids that would end the run, until enough tokens are generated."""
    if len(history.generated) >= params.min_tokens:
        return logits
    ends = set(params.stop_ids) | (set() if params.ignore_eos else history.eos_ids)
    return _without(logits, _array(token for token in ends if token < len(logits)))


def allowed_ids(history: History, logits: Logits, params: SamplingParams) -> Logits:
    """Removes every token that is not allowed."""
    return _only(logits, _array(params.allowed_ids or ()))


def banned_ids(history: History, logits: Logits, params: SamplingParams) -> Logits:
    """Removes the banned tokens."""
    return _without(logits, _array(params.banned_ids))


def _constrained(history: History, logits: Logits, params: SamplingParams) -> Logits:
    """Removes every token that would leave the constraint."""
    key = constraint_of(params)
    assert key is not None
    if history.grammars is None:
        raise BadRequest(f"`{key[0]}` needs a vocabulary, and none was given", param=key[0])
    mask = history.grammars.mask(key, history.generated)
    kept = logits.copy()
    kept[~mask] = -np.inf
    if not (kept > -np.inf).any():
        raise history.grammars.dead_end(key, history.generated, _removing(mask, history, params))
    return kept


def _removing(mask: NDArray[np.bool_], history: History, params: SamplingParams) -> list[str]:
    """The settings before the constraint that take away what it would allow."""
    level = np.zeros(len(mask), np.float32)
    removers = {
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "min_tokens": min_tokens,
        "allowed_ids": allowed_ids,
        "banned_ids": banned_ids,
    }
    on = {name: stage for name, stage in removers.items() if getattr(params, name)}
    return [name for name, stage in on.items() if (stage(history, level, params)[mask] < 0).any()]


json_schema = json_object = regex = choices = _constrained


def temperature(history: History, logits: Logits, params: SamplingParams) -> Logits:
    """logit / temperature."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        scaled: Logits = logits / np.float32(params.temperature)
        if isfinite(scaled.max()):
            return scaled
        # So cold that float32 overflows: the distances to the best logit say the same and cannot.
        distances = logits.astype(np.float64) - float(logits.max())
        return (distances / params.temperature).astype(np.float32)


def top_k(history: History, logits: Logits, params: SamplingParams) -> Logits:
    """Keeps the logits that are at least the k-th best: more than k where they tie."""
    alive = np.flatnonzero(logits > -np.inf)
    if params.top_k >= len(alive):
        return logits.copy()
    worst = logits[alive[best(logits[alive], params.top_k)[-1]]]
    return _at_least(logits, float(worst))


def top_p(history: History, logits: Logits, params: SamplingParams) -> Logits:
    """Keeps the best tokens until their probabilities reach p; ties by the lower id."""
    alive = survivors(logits)
    reached, _ = alive.reach(alive.values, params.top_p)
    return _only(logits, alive.ids[reached])


def min_p(history: History, logits: Logits, params: SamplingParams) -> Logits:
    """Keeps prob >= min_p * best prob, which is logit >= best logit + log(min_p)."""
    return _at_least(logits, float(logits.max()) + log(params.min_p))


def typical_p(history: History, logits: Logits, params: SamplingParams) -> Logits:
    """Keeps the tokens whose surprise -log(prob) is nearest the entropy, until their probabilities reach the mass."""
    alive = survivors(logits)
    _, moment = exp_moments(alive.values, alive.peak)
    entropy = log(alive.total) - moment / alive.total
    nearness = -np.abs(np.subtract(alive.log_normalizer - entropy, alive.values, dtype=np.float64))
    reached, _ = alive.reach(nearness, params.typical_p)
    return _only(logits, alive.ids[nearness >= nearness[reached[-1]]])
