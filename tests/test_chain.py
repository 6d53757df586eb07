"""The chain: every stage against transformers' own, the whole against the list transformers builds, and the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp, inf, log
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from byhand.errors import BadRequest, ByhandError
from byhand.sampling import stages
from byhand.sampling.chain import PROCESSORS, WARPERS, Choice, choose, run_chain
from byhand.sampling.look import look
from byhand.sampling.params import SamplingParams, fields_table
from byhand.sampling.stages import History

VOCAB = 300
EOS = 2


def random_logits(seed: int, vocab_size: int = VOCAB, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def random_ids(seed: int, length: int, vocab_size: int = VOCAB) -> list[int]:
    return torch.randint(0, vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def our_stage(name: str, logits: torch.Tensor, ids: Sequence[int] = (), prompt_length: int = 0, **params: Any) -> Any:
    history = History(ids, prompt_length, frozenset({EOS}))
    return torch.from_numpy(getattr(stages, name)(history, logits.numpy(), SamplingParams(**params)))


def their_stage(processor: Any, logits: torch.Tensor, ids: Sequence[int] = ()) -> torch.Tensor:
    return processor(torch.tensor([list(ids)], dtype=torch.long), logits[None].clone())[0]


def choose_at(logits: torch.Tensor, params: SamplingParams, ids: Sequence[int] = (1, 5), **options: Any) -> Choice:
    settled = {"eos_ids": frozenset({EOS}), "position": len(ids), "seed": 7, **options}
    return choose(logits, ids, settled.pop("prompt_length", 1), params, **settled)


# Each stage against transformers' own.

WARPED = [
    ("temperature", 0.7, theirs.TemperatureLogitsWarper),
    ("temperature", 1.9, theirs.TemperatureLogitsWarper),
    ("temperature", 0.013, theirs.TemperatureLogitsWarper),
    ("top_k", 1, theirs.TopKLogitsWarper),
    ("top_k", 40, theirs.TopKLogitsWarper),
    ("top_k", 299, theirs.TopKLogitsWarper),
    ("top_k", 5000, theirs.TopKLogitsWarper),
    ("top_p", 0.01, theirs.TopPLogitsWarper),
    ("top_p", 0.5, theirs.TopPLogitsWarper),
    ("top_p", 0.95, theirs.TopPLogitsWarper),
    ("top_p", 0.9999, theirs.TopPLogitsWarper),
    ("min_p", 0.001, theirs.MinPLogitsWarper),
    ("min_p", 0.1, theirs.MinPLogitsWarper),
    ("min_p", 1.0, theirs.MinPLogitsWarper),
    ("typical_p", 0.02, theirs.TypicalLogitsWarper),
    ("typical_p", 0.5, theirs.TypicalLogitsWarper),
    ("typical_p", 0.99, theirs.TypicalLogitsWarper),
]


@pytest.mark.parametrize("vocab_size", [1, 2, 60, 300, 20000])
@pytest.mark.parametrize(("name", "value", "warper"), WARPED)
def test_warpers_give_the_bits_of_transformers(name: str, value: float, warper: Any, vocab_size: int) -> None:
    for seed in range(5):
        logits = random_logits(seed, vocab_size)
        logits[seed::7] = logits[seed::7] if seed % 2 or vocab_size < 10 else -inf
        ours, reference = our_stage(name, logits, **{name: value}), their_stage(warper(value), logits)
        if vocab_size == 20000 and name in ("top_p", "typical_p"):
            # transformers adds 20,000 probabilities in float32: the edge may lie a few parts in a million elsewhere.
            differing = (ours != reference).nonzero().flatten()
            assert logits.softmax(0)[differing].sum() < 1e-5
        else:
            assert torch.equal(ours, reference)


@pytest.mark.parametrize("penalty", [0.3, 1.3, 7.0])
def test_repetition_penalty_counts_the_prompt_too(penalty: float) -> None:
    logits, ids = random_logits(0), random_ids(1, 80)
    ours = our_stage("repetition_penalty", logits, ids, 50, repetition_penalty=penalty)
    assert torch.equal(ours, their_stage(theirs.RepetitionPenaltyLogitsProcessor(penalty), logits, ids))
    assert not torch.equal(ours, our_stage("repetition_penalty", logits, ids[50:], 0, repetition_penalty=penalty))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 40, 41, 2**31 - 1])
def test_ngrams_do_not_repeat(size: int) -> None:
    for seed in range(8):
        logits, ids = random_logits(seed, 6), random_ids(seed, 40, 6)
        ours = our_stage("no_repeat_ngram_size", logits, ids, 20, no_repeat_ngram_size=size)
        assert torch.equal(ours, their_stage(theirs.NoRepeatNGramLogitsProcessor(size), logits, ids))


def test_logit_bias_adds() -> None:
    logits, bias = random_logits(0), {3: 2.5, 299: -100.0, 17: 0.1}
    reference = theirs.SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})
    assert torch.equal(our_stage("logit_bias", logits, logit_bias=bias), their_stage(reference, logits, [1]))


@pytest.mark.parametrize("generated", [0, 3, 4, 9])
def test_min_tokens_holds_back_the_end(generated: int) -> None:
    logits, ids = random_logits(0), random_ids(1, 5 + generated)
    reference = theirs.MinNewTokensLengthLogitsProcessor(5, 4, [EOS, 77])
    ours = our_stage("min_tokens", logits, ids, 5, min_tokens=4, stop_ids=[77])
    assert torch.equal(ours, their_stage(reference, logits, ids))


def test_min_tokens_leaves_an_ignored_end_alone() -> None:
    ours = our_stage("min_tokens", random_logits(0), [1], 1, min_tokens=4, stop_ids=[77, 10**6], ignore_eos=True)
    assert (ours == -inf).nonzero().flatten().tolist() == [77]


def test_allowed_and_banned_ids() -> None:
    logits = random_logits(0)
    allowed = theirs.PrefixConstrainedLogitsProcessor(lambda batch, ids: [4, 9, 11], 1)
    banned = theirs.SuppressTokensLogitsProcessor([4, 9, 11])
    assert torch.equal(our_stage("allowed_ids", logits, allowed_ids=[4, 9, 11]), their_stage(allowed, logits, [1]))
    assert torch.equal(our_stage("banned_ids", logits, banned_ids=[4, 9, 11]), their_stage(banned, logits, [1]))


def test_presence_and_frequency_count_only_what_was_generated() -> None:
    """OpenAI: mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence."""
    logits, ids = random_logits(0), [5, 6, 7, 8, 8, 8, 9]
    for name, alpha in (("presence_penalty", 0.7), ("frequency_penalty", -1.3)):
        counts = Counter(ids[3:])
        expected = logits.clone()
        for token, count in counts.items():
            expected[token] -= alpha * (count if name == "frequency_penalty" else 1)
        torch.testing.assert_close(our_stage(name, logits, ids, 3, **{name: alpha}), expected, rtol=1e-6, atol=0)
        assert our_stage(name, logits, ids, 3, **{name: alpha})[5] == logits[5]


ALL_ON = {
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 0.9,
    "min_p": 0.01,
    "typical_p": 0.95,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "no_repeat_ngram_size": 2,
    "logit_bias": {5: 1.5},
    "allowed_ids": range(1, 290),
    "banned_ids": [7],
    "min_tokens": 9,
}


@pytest.mark.parametrize("name", [*PROCESSORS, *WARPERS])
def test_stages_are_pure(name: str) -> None:
    logits, ids = random_logits(3), [5, 6, 5, 6, 5]
    before, ids_before = logits.clone(), list(ids)
    first = our_stage(name, logits, ids, 1, **ALL_ON)
    assert torch.equal(first, our_stage(name, logits, ids, 1, **ALL_ON))
    assert not torch.equal(first, logits)
    assert torch.equal(logits, before)
    assert ids == ids_before


# The whole chain against the list that transformers builds.


@pytest.fixture(scope="module")
def judge() -> transformers.GPT2LMHeadModel:
    config = transformers.GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=8, n_layer=1, n_head=1, eos_token_id=EOS)
    return transformers.GPT2LMHeadModel(config)


class OpenAIPenalties(theirs.LogitsProcessor):
    """Presence and frequency, which transformers lacks, as one processor of its kind."""

    def __init__(self, params: SamplingParams, prompt_length: int) -> None:
        self.params, self.prompt_length = params, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(input_ids[0, self.prompt_length :], minlength=scores.shape[-1]).float()
        lowered = scores - self.params.frequency_penalty * counts
        return lowered - self.params.presence_penalty * (counts > 0)


def their_chain(
    judge: Any, logits: torch.Tensor, ids: list[int], prompt_length: int, params: SamplingParams
) -> torch.Tensor:
    config = transformers.GenerationConfig(
        do_sample=not params.is_greedy,
        num_beams=1,
        sequence_bias={(token,): bias for token, bias in params.logit_bias.items()} or None,
        repetition_penalty=params.repetition_penalty,
        no_repeat_ngram_size=params.no_repeat_ngram_size,
        min_new_tokens=params.min_tokens,
        suppress_tokens=list(params.banned_ids) or None,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p or None,
        typical_p=params.typical_p,
    )
    config._eos_token_tensor = torch.tensor([EOS])
    allowed = None if params.allowed_ids is None else lambda batch, ids: list(params.allowed_ids or ())
    chain = judge._get_logits_processor(
        config,
        input_ids_seq_length=prompt_length,
        prefix_allowed_tokens_fn=allowed,
        logits_processor=theirs.LogitsProcessorList([OpenAIPenalties(params, prompt_length)]),
        device="cpu",
    )
    return chain(torch.tensor([ids]), logits[None].clone())[0]


def sometimes(off: Any, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(off), values)


token_ids = st.integers(0, VOCAB - 1)
random_params = st.builds(
    dict,
    temperature=sometimes(1.0, st.floats(0.05, 5)),
    top_k=sometimes(0, st.integers(1, 400)),
    top_p=sometimes(1.0, st.floats(0.02, 0.99)),
    min_p=sometimes(0.0, st.floats(1e-4, 1)),
    typical_p=sometimes(1.0, st.floats(0.02, 0.99)),
    repetition_penalty=sometimes(1.0, st.floats(0.5, 3)),
    presence_penalty=sometimes(0.0, st.floats(-2, 2)),
    frequency_penalty=sometimes(0.0, st.floats(-2, 2)),
    no_repeat_ngram_size=sometimes(0, st.integers(2, 4)),
    logit_bias=sometimes({}, st.dictionaries(token_ids, st.floats(-50, 50), max_size=5)),
    allowed_ids=sometimes(None, st.integers(0, 99).map(lambda seed: random_ids(seed, 90))),
    banned_ids=sometimes((), st.integers(0, 99).map(lambda seed: random_ids(seed, 20))),
    min_tokens=st.integers(0, 20),
)


@settings(max_examples=250, deadline=None)
@given(
    given_params=random_params, seed=st.integers(0, 2**20), lengths=st.tuples(st.integers(1, 30), st.integers(0, 30))
)
def test_the_whole_chain_is_transformers(
    judge: Any, given_params: dict[str, Any], seed: int, lengths: tuple[int, int]
) -> None:
    params = SamplingParams(**given_params)
    logits, ids = random_logits(seed), random_ids(seed, sum(lengths), 40)
    links = run_chain(logits.numpy(), History(ids, lengths[0], frozenset({EOS})), params)
    reference = their_chain(judge, logits, ids, lengths[0], params)
    assert torch.equal(torch.from_numpy(links[-1].logits), reference)
    greedy = params.replace(temperature=0)
    chosen = choose(logits, ids, lengths[0], greedy, eos_ids=frozenset({EOS}), position=len(ids)).id
    assert chosen == their_chain(judge, logits, ids, lengths[0], greedy).argmax()


def test_every_stage_is_a_field_and_every_switchable_field_a_stage() -> None:
    names = {info.name for info in fields_table()}
    for name in (*PROCESSORS, *WARPERS):
        assert name in names
        assert callable(getattr(stages, name))
    elsewhere = {"seed", "max_tokens", "stop", "stop_ids", "ignore_eos", "logprobs", "n", "stages"}
    assert names - elsewhere == {*PROCESSORS, *WARPERS}


def test_the_order_is_the_documented_one() -> None:
    def mine(ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        return logits

    links = run_chain(
        random_logits(1).numpy(), History([5, 6, 5], 2, frozenset({EOS})), SamplingParams(**ALL_ON, stages=(mine,))
    )
    names = (
        "raw logit_bias repetition_penalty frequency_penalty presence_penalty no_repeat_ngram_size min_tokens "
        "allowed_ids banned_ids mine temperature top_k top_p min_p typical_p"
    )
    assert [link.name for link in links] == names.split()


# Edges, ties, heat and cold.


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.76, 4)])
def test_top_p_stops_where_the_mass_is_reached(top_p: float, kept: int) -> None:
    logits = torch.zeros(4)
    assert (our_stage("top_p", logits, top_p=top_p) > -inf).sum() == kept
    assert (their_stage(theirs.TopPLogitsWarper(top_p), logits) > -inf).sum() == kept


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
    kept_p = run_chain(
        np.zeros(2000, np.float32), History([], 0, frozenset()), SamplingParams(temperature=1, top_p=0.05)
    )
    assert np.flatnonzero(kept_p[-1].logits > -inf).tolist() == list(range(100))
    kept_k = run_chain(np.zeros(2000, np.float32), History([], 0, frozenset()), SamplingParams(temperature=1, top_k=3))
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


UNABLE = [
    ({"allowed_ids": [4], "banned_ids": [4]}, "banned_ids", "`banned_ids` (4) leaves no token that may come next"),
    ({"banned_ids": range(300)}, "banned_ids", "`banned_ids` (300 tokens) leaves no token that may come next"),
    ({"banned_ids": [1, 300]}, "banned_ids", "`banned_ids` names token 300; this model's ids end at 299"),
    ({"allowed_ids": [2], "min_tokens": 5}, "allowed_ids", "`allowed_ids` (2) leaves no token that may come next"),
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
    (hole, "`hole` (a stage of yours) leaves no token that may come next"),
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
