"""The chain as a whole: its order, the record of a choice, a user's own stages, and looking without choosing."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, log
from typing import Any

import numpy as np
import pytest
import torch

from byhand.errors import BadRequest, ByhandError
from byhand.sampling.chain import Choice, Link, choose, run_chain, settled
from byhand.sampling.look import look
from byhand.sampling.params import SamplingParams
from byhand.sampling.stages import History
from tests.test_stages import ALL_ON, EOS, VOCAB, random_logits


def choose_at(logits: torch.Tensor, params: SamplingParams, ids: Sequence[int] = (1, 5), **options: Any) -> Choice:
    more = {"eos_ids": frozenset({EOS}), "position": len(ids), "seed": 7, **options}
    return choose(logits, ids, more.pop("prompt_length", 1), settled(params, len(logits)), **more)


# Order.


def test_the_order_is_the_documented_one() -> None:
    def mine(ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        return logits

    settings = settled(SamplingParams(**ALL_ON, stages=(mine,)), VOCAB)
    links = run_chain(random_logits(1).numpy(), History([5, 6, 5], 2, frozenset({EOS})), settings)
    names = (
        "raw logit_bias repetition_penalty frequency_penalty presence_penalty no_repeat_ngram_size min_tokens "
        "allowed_ids banned_ids mine temperature top_k top_p min_p typical_p"
    )
    assert [link.name for link in links] == names.split()


# Ties, heat and cold.


def test_ties_go_to_the_lower_id() -> None:
    logits = torch.zeros(5000)
    logits[[4000, 77, 900]] = 3.0
    chosen = choose_at(logits, SamplingParams())
    assert chosen.id == 77
    assert [entry.id for entry in chosen.top] == [77, 900, 4000, 0, 1, 2, 3, 4, 5, 6]
    assert [entry.rank for entry in chosen.top] == list(range(1, 11))
    assert choose_at(logits, SamplingParams(banned_ids=[77])).id == 900
    assert choose_at(logits, SamplingParams(), forced=4999).rank == 5000
    assert choose_at(logits, SamplingParams(), forced=76).rank == 80


def test_top_p_takes_the_lower_ids_of_a_tie_and_top_k_takes_all() -> None:
    def kept(params: SamplingParams) -> list[Link]:
        return run_chain(np.zeros(2000, np.float32), History([], 0, frozenset()), settled(params, 2000))

    kept_p = kept(SamplingParams(temperature=1, top_p=0.05))
    assert np.flatnonzero(kept_p[-1].logits > -inf).tolist() == list(range(100))
    kept_k = kept(SamplingParams(temperature=1, top_k=3))
    assert kept_k[-1].kept == 2000


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-45, 5e-324])
@pytest.mark.parametrize("shift", [0.0, -50.0, 50.0])
def test_no_temperature_is_too_cold(temperature: float, shift: float) -> None:
    logits = random_logits(5) + shift
    chosen = choose_at(logits, SamplingParams(temperature=temperature))
    assert chosen.id == logits.argmax()
    assert chosen.prob == 1.0


# The record of a choice.


def exact(logits: torch.Tensor) -> tuple[np.ndarray, float]:
    values = logits.double().numpy()
    logprobs = values - values.max() - log(np.exp(values - values.max()).sum())
    return logprobs, float(-(np.exp(logprobs) * logprobs).sum())


@pytest.mark.parametrize("vocab_size", [11, 50, 3000, 49152])
@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_the_numbers_are_the_softmaxs_in_float64(vocab_size: int, scale: float) -> None:
    logits = random_logits(vocab_size, vocab_size, scale)
    logprobs, entropy = exact(logits)
    order = sorted(range(vocab_size), key=lambda token: (-logprobs[token], token))
    chosen = choose_at(logits, SamplingParams(), forced=order[vocab_size // 2])
    assert [entry.id for entry in chosen.top] == order[:10]
    np.testing.assert_allclose([entry.logprob for entry in chosen.top], logprobs[order[:10]], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose([entry.prob for entry in chosen.top], np.exp(logprobs[order[:10]]), rtol=1e-12)
    assert chosen.rank == vocab_size // 2 + 1
    assert chosen.logprob == pytest.approx(logprobs[chosen.id], rel=1e-12)
    assert chosen.entropy == pytest.approx(entropy, rel=1e-10, abs=1e-14)
    assert chosen.margin == pytest.approx(logprobs[order[0]] - logprobs[order[1]], rel=1e-9, abs=1e-12)
    assert chosen.tail_mass == pytest.approx(np.exp(logprobs[order[10:]]).sum(), rel=1e-9, abs=0)


def test_a_tiny_tail_is_not_rounded_away() -> None:
    logits = torch.full((100,), -60.0)
    logits[:10] = 0.0
    assert choose_at(logits, SamplingParams()).tail_mass == pytest.approx(9 * exp(-60.0), rel=1e-12, abs=0)


def test_a_vocabulary_smaller_than_the_top() -> None:
    chosen = choose_at(torch.tensor([0.0, 1.0, 0.5]), SamplingParams(), ids=[1])
    assert [entry.id for entry in chosen.top] == [1, 2, 0]
    assert chosen.tail_mass == 0.0
    alone = choose_at(torch.tensor([0.3]), SamplingParams(temperature=1), ids=[0])
    assert (alone.id, alone.logprob, alone.entropy, alone.margin) == (0, 0.0, 0.0, inf)


def test_the_top_grows_with_logprobs_and_top() -> None:
    assert len(choose_at(random_logits(0), SamplingParams(logprobs=3)).top) == 10
    assert len(choose_at(random_logits(0), SamplingParams(logprobs=25)).top) == 25
    assert len(choose_at(random_logits(0), SamplingParams(), top=40).top) == 40


def test_a_forced_token_keeps_its_numbers() -> None:
    logits = random_logits(0)
    worst = int(logits.argmin())
    params = SamplingParams(temperature=0.9, top_k=5)
    forced, free = choose_at(logits, params, forced=worst), choose_at(logits, params)
    assert (forced.id, forced.rank, forced.forced, forced.draw) == (worst, VOCAB, True, None)
    assert (forced.prob, forced.removed_by) == (0.0, "top_k")
    assert worst not in [entry.id for entry in forced.top]
    assert (forced.top, forced.chain, forced.entropy) == (free.top, free.chain, free.entropy)
    assert (free.forced, free.removed_by) == (False, None)
    with pytest.raises(BadRequest, match="token 300 cannot be forced; this model's ids end at 299"):
        choose_at(logits, params, forced=300)


def test_the_table_tells_what_every_stage_did() -> None:
    logits = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    params = SamplingParams(temperature=2, top_k=4, banned_ids=[1], logit_bias={5: 10}, min_p=0.3)
    chosen = choose_at(logits, params, ids=[3], prompt_length=1)
    assert [(stage.name, stage.setting, stage.kept) for stage in chosen.chain] == [
        ("raw", "", 6),
        ("logit_bias", "5: +10", 6),
        ("banned_ids", "1", 5),
        ("temperature", "2", 5),
        ("top_k", "4", 4),
        ("min_p", "0.3", 1),
    ]
    assert [stage.logits for stage in chosen.chain] == [
        (5.0, 4.0, 3.0, 2.0, 1.0, 0.0),
        (5.0, 4.0, 3.0, 2.0, 1.0, 10.0),
        (5.0, -inf, 3.0, 2.0, 1.0, 10.0),
        (2.5, -inf, 1.5, 1.0, 0.5, 5.0),
        (2.5, -inf, 1.5, 1.0, -inf, 5.0),
        (-inf, -inf, -inf, -inf, -inf, 5.0),
    ]
    removed = {entry.id: entry.removed_by for entry in chosen.top}
    assert removed == {0: "min_p", 1: "banned_ids", 2: "min_p", 3: "min_p", 4: "top_k", 5: None}
    assert {entry.id: entry.prob for entry in chosen.top} == {0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 5: 1}


def test_probs_after_the_chain_sum_to_one() -> None:
    params = SamplingParams(temperature=0.7, top_k=8, repetition_penalty=1.3)
    chosen = choose_at(random_logits(4), params, top=VOCAB)
    assert sum(entry.prob for entry in chosen.top) == pytest.approx(1, rel=1e-12)
    assert sum(entry.removed_by is None for entry in chosen.top) == chosen.chain[-1].kept == 8


def test_greedy_shows_only_what_ran() -> None:
    chosen = choose_at(random_logits(0), SamplingParams(top_k=5, top_p=0.5, min_p=0.1, typical_p=0.5))
    assert [stage.name for stage in chosen.chain] == ["raw"]
    assert chosen.draw is None
    assert chosen.prob == exp(chosen.logprob)


def test_a_stage_with_nothing_to_do_leaves_no_row() -> None:
    params = SamplingParams(min_tokens=1, no_repeat_ngram_size=4)
    assert [stage.name for stage in choose_at(random_logits(0), params, ids=[1, 5]).chain] == ["raw"]
    early = choose_at(random_logits(0), params, ids=[1, 5, 1, 5], prompt_length=4)
    assert [stage.name for stage in early.chain] == ["raw", "no_repeat_ngram_size", "min_tokens"]


def test_long_settings_are_counted() -> None:
    params = SamplingParams(banned_ids=range(100), logit_bias=dict.fromkeys(range(7), 1.0))
    settings_shown = {stage.name: stage.setting for stage in choose_at(random_logits(0), params).chain}
    assert settings_shown == {"raw": "", "logit_bias": "7 tokens", "banned_ids": "100 tokens"}


@pytest.mark.parametrize("bad", [float("nan"), inf, -inf])
def test_broken_logits_are_told(bad: float) -> None:
    logits = random_logits(0)
    logits[[3, 200]] = bad
    with pytest.raises(ByhandError, match="the model produced 2 logits out of 300 that are not finite"):
        choose_at(logits, SamplingParams())
    with pytest.raises(ByhandError, match="2 logits out of 300"):
        look(torch.stack([random_logits(1), logits]), 3)


NONE_LEFT = "leaves no token that may come next (1 generated so far)"
UNABLE = [
    (
        {"allowed_ids": [4], "banned_ids": [4]},
        "banned_ids",
        f"`banned_ids` (4) {NONE_LEFT}; `allowed_ids` before it had left 1",
    ),
    ({"banned_ids": range(300)}, "banned_ids", f"`banned_ids` (300 tokens) {NONE_LEFT}"),
    ({"banned_ids": [1, 300]}, "banned_ids", "`banned_ids` names token 300; this model's ids end at 299"),
    (
        {"allowed_ids": [2], "min_tokens": 5},
        "allowed_ids",
        f"`allowed_ids` (2) {NONE_LEFT}; `min_tokens` before it had left 299",
    ),
]


@pytest.mark.parametrize(("given_params", "param", "sentence"), UNABLE)
def test_what_cannot_be_done_is_told(given_params: dict[str, Any], param: str, sentence: str) -> None:
    with pytest.raises(BadRequest) as caught:
        choose_at(random_logits(0), SamplingParams(**given_params))
    assert (str(caught.value), caught.value.param) == (sentence, param)


def test_choose_leaves_the_logits_as_they_are() -> None:
    logits = random_logits(0)
    before = logits.clone()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        choose_at(logits.to(dtype), SamplingParams(**ALL_ON))
    assert torch.equal(logits, before)


def test_a_row_of_a_larger_tensor_gives_the_same() -> None:
    whole = torch.stack([random_logits(seed) for seed in range(3)], dim=1)  # rows are not contiguous
    assert choose_at(whole[:, 1], SamplingParams(temperature=1)) == choose_at(
        random_logits(1), SamplingParams(temperature=1)
    )


# A user's own stage.


def test_an_own_stage_sees_ids_and_removes() -> None:
    seen = []

    def no_echo(ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(ids))
        logits[list(ids)] = -inf  # in place: it is a copy
        return logits

    logits = random_logits(0)
    best, second = logits.topk(2).indices.tolist()
    chosen = choose_at(logits, SamplingParams(stages=(no_echo,)), ids=[1, best])
    assert (chosen.id, seen) == (second, [(1, best)])
    assert chosen.top[0].removed_by == "no_echo"
    assert [(stage.name, stage.kept) for stage in chosen.chain] == [("raw", VOCAB), ("no_echo", VOCAB - 2)]


def test_own_stages_run_in_turn_before_the_temperature() -> None:
    params = SamplingParams(temperature=0.5, stages=(lambda ids, logits: logits + 1, lambda ids, logits: logits * 3))
    chain = choose_at(torch.tensor([1.0, 2.0]), params, ids=[1]).chain
    assert [stage.logits for stage in chain] == [(2.0, 1.0), (3.0, 2.0), (9.0, 6.0), (18.0, 12.0)]


def broken(ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
    raise KeyError("oops")


class Named:
    def __call__(self, ids: Sequence[int], logits: torch.Tensor) -> Any:
        return logits.tolist()


def shorter(ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
    return logits[1:]


def hole(ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
    return torch.full_like(logits, -inf)


def nowhere(ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
    return logits * float("nan")


def hot(ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
    return torch.where(logits == logits.max(), inf, logits)


OWN = [
    (shorter, "the stage `shorter` returned shape (299,); it must return a tensor of shape (300,)"),
    (Named(), "the stage `Named` returned list; it must return a tensor of shape (300,)"),
    (broken, "the stage `broken` failed: KeyError: 'oops'"),
    (hole, f"`hole` (a stage of yours) {NONE_LEFT}"),
    (hot, "`hot` (a stage of yours) gives NaN or +inf; only -inf may mean removed"),
    (nowhere, "`nowhere` (a stage of yours) gives NaN or +inf; only -inf may mean removed"),
]


@pytest.mark.parametrize(("function", "sentence"), OWN)
def test_a_wrong_own_stage_is_named(function: Any, sentence: str) -> None:
    with pytest.raises(BadRequest) as caught:
        choose_at(random_logits(0), SamplingParams(stages=(function,)))
    assert (str(caught.value), caught.value.param) == (sentence, "stages")


# Looking without choosing.


@pytest.mark.parametrize("vocab_size", [40, 9000])
def test_look_gives_the_numbers_of_choose(vocab_size: int) -> None:
    logits = torch.stack([random_logits(seed, vocab_size) for seed in range(4)])
    rows = look(logits, 10, [0, None, 7, 3])
    for row, vector, actual in zip(rows, logits, [0, None, 7, 3], strict=True):
        chosen = choose_at(vector, SamplingParams(), forced=actual)
        assert row.top == chosen.top
        assert (row.entropy, row.margin, row.tail_mass) == (chosen.entropy, chosen.margin, chosen.tail_mass)
        if actual is None:
            assert row.actual is None
        else:
            assert row.actual == (actual, chosen.logprob, chosen.rank, chosen.prob, None)


def test_look_takes_as_many_as_asked() -> None:
    [row] = look(random_logits(0)[None], 1)
    assert [entry.id for entry in row.top] == [int(random_logits(0).argmax())]
    assert row.margin == pytest.approx(float(random_logits(0).topk(2).values.diff().abs()), rel=1e-5)
    assert row.tail_mass == pytest.approx(1 - row.top[0].prob)
    assert row.actual is None
