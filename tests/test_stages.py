"""Every stage of the chain against transformers' own, and the whole against the list that transformers builds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from byhand.sampling import stages
from byhand.sampling.chain import PROCESSORS, WARPERS, choose, run_chain, settled
from byhand.sampling.params import CONSTRAINTS, SamplingParams, fields_table
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


@pytest.mark.parametrize("name", [name for name in (*PROCESSORS, *WARPERS) if name not in CONSTRAINTS])
def test_stages_are_pure(name: str) -> None:
    logits, ids = random_logits(3), [5, 6, 5, 6, 5]
    before, ids_before = logits.clone(), list(ids)
    first = our_stage(name, logits, ids, 1, **ALL_ON)
    assert torch.equal(first, our_stage(name, logits, ids, 1, **ALL_ON))
    assert not torch.equal(first, logits)
    assert torch.equal(logits, before)
    assert ids == ids_before


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.76, 4)])
def test_top_p_stops_where_the_mass_is_reached(top_p: float, kept: int) -> None:
    logits = torch.zeros(4)
    assert (our_stage("top_p", logits, top_p=top_p) > -inf).sum() == kept
    assert (their_stage(theirs.TopPLogitsWarper(top_p), logits) > -inf).sum() == kept


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
        num_return_sequences=1,
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


@settings(max_examples=250)
@given(
    given_params=random_params, seed=st.integers(0, 2**20), lengths=st.tuples(st.integers(1, 30), st.integers(0, 30))
)
def test_the_whole_chain_is_transformers(
    judge: Any, given_params: dict[str, Any], seed: int, lengths: tuple[int, int]
) -> None:
    params = SamplingParams(**given_params)
    logits, ids = random_logits(seed), random_ids(seed, sum(lengths), 40)
    links = run_chain(logits.numpy(), History(ids, lengths[0], frozenset({EOS})), settled(params, VOCAB))
    reference = their_chain(judge, logits, ids, lengths[0], params)
    assert torch.equal(torch.from_numpy(links[-1].logits), reference)
    greedy = params.replace(temperature=0)
    chosen = choose(logits, ids, lengths[0], settled(greedy, VOCAB), eos_ids=frozenset({EOS}), position=len(ids)).id
    assert chosen == their_chain(judge, logits, ids, lengths[0], greedy).argmax()


def test_every_stage_is_a_field_and_every_switchable_field_a_stage() -> None:
    names = {info.name for info in fields_table()}
    for name in (*PROCESSORS, *WARPERS):
        assert name in names
        assert callable(getattr(stages, name))
    elsewhere = {"seed", "max_tokens", "stop", "stop_ids", "ignore_eos", "logprobs", "n", "stages"}
    assert names - elsewhere == {*PROCESSORS, *WARPERS}
