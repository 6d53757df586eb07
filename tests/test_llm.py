"""LLM: prompts in, readings, scores and completions out; bad input is a sentence."""

from __future__ import annotations

import math
import warnings
import weakref
from pathlib import Path

import pytest
import torch

from byhand import LLM, BadRequest, ByhandError, FinishReason, PromptError, Reading, SamplingParams, TemplateError
from byhand.engine.runner import LOGITS_BLOCK
from tests.conftest import tiny_llama

PROMPT = "the quick brown fox jumps"


# Reading.


def test_a_reading_says_what_the_logits_say(llm: LLM) -> None:
    ids = llm.encode(PROMPT)
    logits, reading = llm.logits(ids), llm.read(PROMPT, top=4)
    assert logits.shape == (len(ids), 384)
    assert logits.dtype == torch.float32
    assert reading.ids == ids
    logprobs = logits.double().log_softmax(-1)
    for i, at in enumerate(reading):
        best = logits[i].argsort(descending=True, stable=True)[:4].tolist()
        assert [candidate.token.id for candidate in at.top] == best
        assert at.predicted == at.top[0]
        assert at.predicted.logprob == pytest.approx(logprobs[i, best[0]].item(), abs=1e-6)
        assert at.entropy == pytest.approx(-(logprobs[i].exp() * logprobs[i]).sum().item(), abs=1e-6)
        if i + 1 < len(ids):
            assert at.actual is not None
            assert at.actual.token.id == ids[i + 1]
            assert at.actual.rank == 1 + int((logits[i] > logits[i, ids[i + 1]]).sum())
    assert reading[-1].actual is None


def test_a_reading_reads_as_the_lesson_tells_it(llm: LLM) -> None:
    reading = llm.read(PROMPT)
    assert isinstance(reading, Reading)
    pieces = [token.text for token in llm.tokenize(PROMPT)]
    assert reading[3].context == tuple(pieces[:4])
    assert reading.text == "".join(at.predicted.token.text for at in reading)
    lines = str(reading).split("\n")
    assert len(lines) == len(pieces)
    assert lines[3].startswith(repr("".join(pieces[:4])) + " → " + repr(reading[3].predicted.token.text))
    assert [at.position for at in reading[1:3]] == [1, 2]


def test_the_first_token_is_the_last_prediction(llm: LLM) -> None:
    step = llm.start(PROMPT).step()
    last = llm.read(PROMPT, top=10)[-1]
    assert step.token == last.predicted.token
    assert step.logprob == pytest.approx(last.predicted.logprob, abs=1e-5)  # the head saw more rows at once
    assert [c.token.id for c in step.top] == [c.token.id for c in last.top]


def test_reading_leaves_no_page_behind(llm: LLM) -> None:
    llm.read([5] * 100)
    looking = llm.iter_read([5] * 100)
    next(looking)
    looking.close()
    assert llm.engine.pages_in_use == 0
    assert llm.start([5] * 100).usage.cached_tokens == 0


def test_every_position_is_read_and_scored_though_its_pages_are_known(llm: LLM) -> None:
    ids = list(range(5, 55))
    fresh, scored = llm.read(ids), llm.score(ids)
    llm.generate(ids, max_tokens=2)
    assert llm.start(ids).usage.cached_tokens == 48
    again = llm.read(ids)
    assert [at.position for at in again] == list(range(50))
    assert [at.predicted.token for at in again] == [at.predicted.token for at in fresh]
    assert llm.score(ids).logprobs[1:] == pytest.approx(scored.logprobs[1:], abs=1e-4)
    assert len(llm.logits(ids)) == 50


def test_reading_holds_a_block_of_logits_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {
        "vocab_size": 128_256,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 2048,
    }
    big = LLM(tiny_llama(tmp_path / "big", **changes))
    made: list[weakref.ref[torch.Tensor]] = []
    rows = 0
    real = big.model.logits

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal rows
        logits = real(hidden)
        assert logits.numel() <= LOGITS_BLOCK
        assert sum(ref() is not None for ref in made) <= 1  # the block before may still be looked at
        made.append(weakref.ref(logits))
        rows += len(hidden)
        return logits

    monkeypatch.setattr(big.model, "logits", counted)
    reading = big.read([5] * 2000, top=3)
    assert (len(reading), rows) == (2000, 2000)
    assert len(made) > 2000 * 128_256 // LOGITS_BLOCK


def test_score_is_the_sum_of_log_softmax(llm: LLM) -> None:
    ids = llm.encode(PROMPT)
    score = llm.score(PROMPT)
    logprobs = llm.logits(ids).double().log_softmax(-1)
    expected = [logprobs[i, ids[i + 1]].item() for i in range(len(ids) - 1)]
    assert score.logprobs[0] is None
    assert score.logprobs[1:] == pytest.approx(expected, abs=1e-6)
    assert score.perplexity == pytest.approx(math.exp(-sum(expected) / len(expected)))
    assert math.isnan(llm.score([5]).perplexity)


def test_a_score_tells_tokens_and_ranks_and_of_a_continuation_alone(llm: LLM) -> None:
    ids = llm.encode(PROMPT)
    logits = llm.logits(ids)
    ranks = [1 + int((logits[i] > logits[i, ids[i + 1]]).sum()) for i in range(len(ids) - 1)]
    score = llm.score(PROMPT)
    assert [token.id for token in score.tokens] == ids
    assert score.ranks == [None, *ranks]
    for cut in range(1, len(ids)):
        part = llm.score(ids[:cut], ids[cut:])
        assert [token.id for token in part.tokens] == ids[cut:]
        assert part.ranks == ranks[cut - 1 :]
        assert part.logprobs == pytest.approx(score.logprobs[cut:], abs=1e-5)
    text = llm.score(PROMPT, " over")
    assert [token.id for token in text.tokens] == llm.encode(PROMPT + " over")[len(ids) :]


def test_a_reading_in_blocks_is_the_reading(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = llm.read(PROMPT, top=3)
    score = llm.score(PROMPT)
    monkeypatch.setattr("byhand.engine.runner.LOGITS_BLOCK", 384 * 3)
    blocks = llm.read(PROMPT, top=3)
    assert [at.position for at in blocks] == list(range(len(whole)))
    for one, other in zip(blocks, whole, strict=True):
        assert [c.token for c in one.top] == [c.token for c in other.top]
        assert (one.token, one.actual and one.actual.token) == (other.token, other.actual and other.actual.token)
        assert one.actual is None or one.actual.rank == other.actual.rank  # type: ignore[union-attr]
    assert llm.score(PROMPT).logprobs[1:] == pytest.approx(score.logprobs[1:], abs=1e-5)


def test_logits_equal_in_blocks(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = llm.encode(PROMPT)
    whole = llm.logits(ids)
    monkeypatch.setattr("byhand.engine.runner.LOGITS_BLOCK", 384 * 3)
    assert torch.allclose(llm.logits(ids), whole, atol=1e-5)


def test_logits_in_blocks_are_a_passs_own(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another pass of as many rows, which writes to the same memory, may come between two blocks."""
    monkeypatch.setattr("byhand.engine.runner.LOGITS_BLOCK", 384 * 2)
    for _ in range(3):
        expected = llm.logits([8] * 8)
    sequence = llm.engine.open([8] * 8, llm.engine.check(SamplingParams()))
    found = []
    for _, logits in llm.engine.logit_blocks(sequence):
        found.append(logits)
        llm.logits([9] * 8)
    llm.engine.release(sequence)
    assert torch.equal(torch.cat(found), expected)


def test_a_block_holds_a_row_at_least(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byhand.engine.runner.LOGITS_BLOCK", 383)
    assert llm.logits([5, 6, 7]).shape == (3, 384)


# Prompts.


def test_ids_are_taken_as_they_are(llm: LLM) -> None:
    assert llm.encode([7, 8]) == [7, 8]
    assert llm.encode("")[0] == llm.tokenizer.bos_id
    assert llm.start([0]).step().index == 0


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ([3, 384], "`prompt` holds token id 384 at place 1; this model's ids are 0 to 383"),
        ([-1], "`prompt` holds token id -1 at place 0"),
        ([True], "`prompt` holds True at place 0; a token id is an integer"),
        ([2.5], "`prompt` holds 2.5 at place 0"),
        ([5] * 300, "the prompt has 300 tokens; this model reads 256"),
    ],
)
def test_bad_prompts_are_named(llm: LLM, prompt: list[int], message: str) -> None:
    for use in (llm.read, llm.start, llm.generate, llm.score, llm.logits):
        with pytest.raises(PromptError, match=message.replace("[", r"\[")) as caught:
            use(prompt)  # type: ignore[operator]
        assert caught.value.param == "prompt"
    assert llm.engine.pages_in_use == 0


def test_a_prompt_may_fill_the_context_and_no_more(llm: LLM) -> None:
    assert len(llm.encode([5] * 256)) == 256
    assert llm.start([5] * 256).ids == [5] * 256
    assert len(llm.read([5] * 256)) == 256
    with pytest.raises(PromptError, match="257 tokens"):
        llm.encode([5] * 257)


def test_an_id_the_tokenizer_lacks_is_legal_where_the_model_has_it(tmp_path: Path) -> None:
    wide = LLM(tiny_llama(tmp_path / "wide", vocab_size=400))
    run = wide.start([5, 399])
    step = run.step(force=398)
    assert (step.token.text, step.token.bytes, step.text) == ("", b"", "")
    assert wide.detokenize([399]) == ""


def test_a_doubled_start_token_is_warned_of(llm: LLM) -> None:
    with pytest.warns(UserWarning, match="begins with two start-of-sequence tokens"):
        llm.encode("<s>the fox")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.encode("the fox")
        llm.chat_ids([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "`device` is 'tpu'; known: auto, cpu, cuda"),
        ({"cache_tokens": 0}, "`cache_tokens` is 0; it must be an integer of at least 1"),
        ({"threads": -2}, "`threads` is -2"),
        ({"dtype": "int3"}, "dtype"),
    ],
)
def test_bad_options_are_named(tiny_folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        LLM(tiny_folder, **options)  # type: ignore[arg-type]


def test_bad_params_are_named(llm: LLM) -> None:
    with pytest.raises(BadRequest, match="`n` is 2; `start` makes one run"):
        llm.start(PROMPT, SamplingParams(n=2))
    with pytest.raises(BadRequest, match="9999"):
        llm.start(PROMPT, SamplingParams(banned_ids=[9999]))
    with pytest.raises(BadRequest, match="`top` is 0"):
        llm.read(PROMPT, top=0)


# Generating.


def test_generate_one_and_many(llm: LLM) -> None:
    params = SamplingParams(max_tokens=5)
    one = llm.generate(PROMPT, params)
    many = llm.generate([PROMPT, [5, 6]], params)
    assert not isinstance(one, list)
    assert isinstance(many, list)
    assert many[0].ids == one.ids
    assert many[1].prompt_ids == [5, 6]
    assert one.finish_reason is FinishReason.LENGTH
    assert one.usage.prompt_tokens == len(llm.encode(PROMPT))
    assert one.usage.completion_tokens == len(one.ids) == len(one.steps) == 5
    assert llm.generate([[5, 6]], params)[0].ids == many[1].ids  # type: ignore[index]


def test_choices_come_prompt_by_prompt_with_dice_of_their_own(llm: LLM) -> None:
    prompts = [[5, 6], [7, 8, 9], [10]]
    params = SamplingParams(max_tokens=6, temperature=1.5, seed=3, n=3, ignore_eos=True)
    found = llm.generate(prompts, params)
    assert isinstance(found, list)
    assert [done.prompt_ids for done in found] == [prompt for prompt in prompts for _ in range(3)]
    for place, done in enumerate(found):
        alone = llm.start_run(prompts[place // 3], params.replace(n=1), seed=3, choice=place % 3)
        list(alone)
        assert (done.ids, alone.choice) == (alone.ids[len(done.prompt_ids) :], place % 3)
    assert len({tuple(done.ids) for done in found}) == 9
    assert llm.engine.pages_in_use <= 9  # those of the last runs, until they are collected


def test_a_run_that_has_ended_gives_its_pages_to_those_that_go_on(llm: LLM) -> None:
    long, short = [5] * 40, [6, 7, 8] * 20
    first = llm.generate(short, max_tokens=1)
    seen: list[tuple[int, int]] = []

    def watching(ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        seen.append((ids[0], llm.engine.pages_in_use))
        return logits

    end = first.ids[0]
    found = llm.generate([short, long], stop_ids=[end], max_tokens=12, ignore_eos=True, stages=(watching,))
    assert [len(done.ids) for done in found] == [1, 12]
    assert seen[-1] == (5, 4)  # 52 tokens
    assert llm.engine.pages_in_use == 0


def test_an_interruption_leaves_no_page_behind(llm: LLM) -> None:
    def interrupted(ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        if len(ids) > 6:
            raise KeyboardInterrupt
        return logits

    with pytest.raises(KeyboardInterrupt) as caught:
        llm.generate([[5, 6, 7], [8] * 4], max_tokens=20, ignore_eos=True, stages=(interrupted,))
    assert llm.engine.pages_in_use == 0, caught  # whose frames still hold the runs


def test_stream_is_generate(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=9)
    completion = llm.generate(PROMPT, params)
    assert "".join(step.text for step in llm.stream(PROMPT, params)) == completion.text  # type: ignore[union-attr]


def test_chat_goes_through_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "the fox"}]
    rendered = llm.render_chat(messages)
    assert rendered == "<s><|user|>the fox<|assistant|>"
    ids = llm.chat_ids(messages)
    assert ids[:2] == [0, 2]
    assert ids[-1] == 3
    completion = llm.chat(messages, SamplingParams(max_tokens=4))
    assert completion.prompt_ids == ids  # type: ignore[union-attr]


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "plain")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(TemplateError, match="no chat template"):
        LLM(folder).chat([{"role": "user", "content": "hi"}])


def test_the_checkpoints_own_settings_are_applied_only_on_request(tiny_folder: Path, embedded: LLM) -> None:
    assert SamplingParams().temperature == 0
    assert embedded.generation_config["do_sample"] is True
    params = embedded.checkpoint_params(max_tokens=3)
    assert params.temperature == embedded.generation_config["temperature"]
    assert params.max_tokens == 3


def test_an_llm_is_a_context_manager(tiny_folder: Path) -> None:
    with LLM(tiny_folder) as llm:
        weights = weakref.ref(llm.model)
        assert "384 ids" in repr(llm)
    assert weights() is None
    assert repr(llm) == "LLM('llama', closed)"
    with pytest.raises(ByhandError, match="this LLM was closed: open 'llama' again"):
        llm.generate("a")


@pytest.mark.parametrize("prompt", [None, 5, b"abc", {"a": 1}, {1, 2}])
def test_a_prompt_is_text_or_a_list_of_ids(llm: LLM, prompt: object) -> None:
    for use in (llm.start, llm.generate, llm.read):
        with pytest.raises(PromptError, match=f"the prompt is a {type(prompt).__name__}; it must be text"):
            use(prompt)  # type: ignore[operator]
    with pytest.raises(BadRequest, match="`params` is a dict"):
        llm.generate("a", {"max_tokens": 2})  # type: ignore[arg-type]


def test_stop_ids_are_the_union_of_what_the_checkpoint_names(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "ends", eos_token_id=[7, 8])
    (folder / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert LLM(folder).eos_ids == {1, 7, 8, 9}


# The embedded model.


def test_the_lesson_on_the_embedded_model(embedded: LLM) -> None:
    completion = embedded.generate("A list of colors: red", SamplingParams(max_tokens=60))
    assert not isinstance(completion, list)
    assert completion.finish_reason is FinishReason.STOP
    assert completion.text.startswith(", ")
    words = {word.strip(" .") for word in completion.text.split(",") if word.strip()}
    assert len(words & {"blue", "green", "yellow", "orange", "purple", "pink", "black", "white", "brown", "gray"}) >= 3


def test_a_story_on_the_embedded_model_ends_by_itself(embedded: LLM) -> None:
    params = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=700)
    stories = [embedded.generate("Once upon a time", params.replace(seed=seed)) for seed in range(4)]
    ends = [story.finish_reason is FinishReason.STOP and story.text.rstrip()[-1:] in '."!?”' for story in stories]  # type: ignore[union-attr]
    assert sum(ends) >= 3
