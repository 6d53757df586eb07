"""The dice: pinned for ever, each throw its own, fair, and the same whether all of the bar is laid or a piece of it."""

from __future__ import annotations

from math import exp, inf, nextafter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from byhand.sampling import order
from byhand.sampling.chain import choose, settled
from byhand.sampling.dice import draw, fresh_seed, throw
from byhand.sampling.order import best, survivors
from byhand.sampling.params import SamplingParams

LAST = nextafter(1.0, 0.0)  # no throw is above it

# Written down once. If these change, every recorded run and every quoted seed breaks.
PINNED = {
    (0, 0, 0): 0.011546754286331562,
    (0, 0, 1): 0.5023796042735054,
    (0, 1, 0): 0.8133540609793564,
    (1, 0, 0): 0.3035680343067586,
    (42, 0, 17): 0.4439797563407103,
    (18446744073709551615, 127, 1099511627776): 0.1546172124511318,
    (-5, 3, 2047): 0.19574580187539237,
}


@pytest.mark.parametrize(("place", "u"), PINNED.items())
def test_the_dice_never_change(place: tuple[int, int, int], u: float) -> None:
    assert throw(*place) == u


def test_the_dice_are_philox_by_the_book() -> None:
    """Philox4x64-10 written out from the paper: ten rounds of multiply, swap and xor."""
    seed, choice, position = 123456789, 5, 77
    mask, key, counter = 2**64 - 1, [seed, choice], [position + 1, 0, 0, 0]  # numpy counts up before it throws
    for _ in range(10):
        high_0, low_0 = divmod(counter[0] * 0xD2E7470EE14C6C93, 2**64)
        high_1, low_1 = divmod(counter[2] * 0xCA5A826395121157, 2**64)
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0]
        key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
    assert throw(seed, choice, position) == (counter[0] >> 11) / 2**53


def test_every_place_has_its_own_dice() -> None:
    thrown = {
        throw(seed, choice, position) for seed in (0, 1, 2**64 - 1) for choice in range(4) for position in range(200)
    }
    assert len(thrown) == 3 * 4 * 200
    assert all(0 <= u < 1 for u in thrown)
    assert throw(-1, 0, 0) == throw(2**64 - 1, 0, 0)


def test_fresh_seeds_differ() -> None:
    seeds = {fresh_seed() for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_throws_are_uniform() -> None:
    counts = np.histogram([throw(3, 0, position) for position in range(20_000)], bins=50, range=(0, 1))[0]
    chi_square = float(((counts - 400) ** 2 / 400).sum())
    assert chi_square < 85.4  # 49 degrees of freedom: 1 in 1,000 is above


def test_draws_follow_the_probabilities() -> None:
    logits = torch.linspace(0, 3, 20)
    settings = settled(SamplingParams(temperature=0.8, top_k=15), 20)
    expected = (logits / 0.8).masked_fill(logits < logits.topk(15).values.min(), -inf).softmax(0).double().numpy()
    counts = np.zeros(20)
    for position in range(4_000):
        counts[choose(logits, [], 0, settings, eos_ids=frozenset(), position=position, seed=11).id] += 1
    assert counts[expected == 0].sum() == 0
    likely = expected > 0
    chi_square = float(((counts[likely] - 4_000 * expected[likely]) ** 2 / (4_000 * expected[likely])).sum())
    assert chi_square < 36.1  # 14 degrees of freedom: 1 in 1,000 is above


def test_a_choice_depends_on_seed_choice_and_position_alone() -> None:
    logits = torch.zeros(1000)
    settings = settled(SamplingParams(temperature=1.0), 1000)

    def chosen(seed: int, choice: int, position: int) -> int:
        return choose(logits, [1], 1, settings, eos_ids=frozenset(), position=position, choice=choice, seed=seed).id

    assert [chosen(1, 0, 5) for _ in range(3)] == [chosen(1, 0, 5)] * 3
    assert len({chosen(1, 0, 5), chosen(2, 0, 5), chosen(1, 1, 5), chosen(1, 0, 6)}) == 4


# The bar.


def whole_bar(logits: np.ndarray, u: float) -> tuple[int, float, float]:
    """The slow truth: sort everything, add up one by one, look where u falls."""
    alive = survivors(logits)
    ids = sorted(alive.ids.tolist(), key=lambda token: (-logits[token], token))
    weights = np.exp(logits[ids].astype(np.float64) - alive.peak) / alive.total
    low = 0.0
    for token, weight in zip(ids, weights.tolist(), strict=True):
        if u < low + weight:
            return token, low, min(low + weight, 1.0)
        low += weight
    last = max(index for index, weight in enumerate(weights) if weight > 0)
    return ids[last], float(np.cumsum(weights)[last - 1]) if last else 0.0, 1.0


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.sampled_from([1, 2, 63, 64, 65, 200, 1024, 1500, 9000]),
    scale=st.sampled_from([0.0, 0.5, 3.0, 30.0]),
    u=st.one_of(st.floats(0, LAST), st.sampled_from([0.0, 5e-324, 0.5, 1 - 1e-12, LAST])),
    removed=st.sampled_from([0.0, 0.5, 0.99]),
)
def test_a_piece_of_the_bar_is_the_whole_bar(
    seed: int, vocab_size: int, scale: float, u: float, removed: float
) -> None:
    generator = np.random.default_rng(seed)
    logits = (generator.standard_normal(vocab_size) * scale).round(2).astype(np.float32)  # many ties
    logits[1:][generator.random(vocab_size - 1) < removed] = -inf
    token, share = draw(survivors(logits), u)
    assert (token, share.low, share.high) == pytest.approx(whole_bar(logits, u), rel=1e-15, abs=0)
    assert token == whole_bar(logits, u)[0]
    assert share.low <= u < share.high <= 1
    assert logits[token] > -inf


def test_a_shorter_bar_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = []
    for seed in range(40):
        logits = (np.random.default_rng(seed).standard_normal(9000) * (seed % 5 + 0.2)).astype(np.float32)
        cases += [(logits, throw(seed, 0, 0)), (logits, LAST)]
    pieces = [draw(survivors(logits), u) for logits, u in cases]
    assert {len(survivors(logits).reach(logits, u)[0]) > 64 for logits, u in cases} == {True, False}
    monkeypatch.setattr(order, "PREFIXES", ())
    assert [draw(survivors(logits), u) for logits, u in cases] == pieces


def test_the_end_of_the_bar_goes_to_a_token_with_a_share() -> None:
    logits = np.array([0.0, -2000.0, -inf, 0.1], dtype=np.float32)  # exp(-2000) is no share at all
    token, share = draw(survivors(logits), LAST)
    assert (token, share.high) == (0, 1.0)
    short = survivors(logits)
    starved = type(short)(short.ids, short.values, short.peak, short.total * (1 + 1e-9))  # a bar that falls short of 1
    token, share = draw(starved, LAST)
    assert (token, share.high) == (0, 1.0)
    assert share.low == pytest.approx(1 / (1 + exp(-0.1)))


def test_a_share_holds_its_low_end_and_not_its_high_end() -> None:
    quarters = survivors(np.zeros(4, dtype=np.float32))
    for u, token in ((0.0, 0), (0.25, 1), (0.5, 2), (nextafter(0.75, 0), 2), (0.75, 3)):
        drawn, share = draw(quarters, u)
        assert (drawn, share.low, share.high) == (token, token / 4, (token + 1) / 4)


def test_one_token_takes_the_whole_bar() -> None:
    logits = np.full(500, -inf, dtype=np.float32)
    logits[321] = -7.5
    for u in (0.0, 0.5, LAST):
        token, share = draw(survivors(logits), u)
        assert (token, share.u, share.low, share.high) == (321, u, 0.0, 1.0)


@pytest.mark.parametrize("k", [1, 9, 10, 64, 300, 999, 1000, 2000])
@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_best_is_the_stable_sort(k: int, decimals: int) -> None:
    for vocab_size in (1, 10, 1000, 7001):
        values = np.random.default_rng(k).standard_normal(vocab_size).round(decimals).astype(np.float32)
        expected = sorted(range(vocab_size), key=lambda index: (-values[index], index))[:k]
        assert best(values, k).tolist() == expected
