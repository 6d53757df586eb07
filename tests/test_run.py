"""The run and its operations: every way to the same ids gives the same tokens, and pages are counted back to zero."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from byhand import LLM, FinishReason, PromptError, RunFinished, SamplingParams, naive
from byhand.cache.kv_cache import PAGE_SIZE
from byhand.engine.text_state import TextState
from byhand.errors import BadRequest, OutOfPages
from tests.tokenizers_for_tests import every_sort

PROMPT = "the quick brown fox"
GREEDY = SamplingParams(max_tokens=24)
SAMPLED = SamplingParams(temperature=1.0, top_p=0.95, seed=7, max_tokens=24)


def ids_of(llm: LLM, prompt: str | list[int], params: SamplingParams) -> list[int]:
    """The new ids of a run to its end."""
    return [step.token.id for step in llm.start(prompt, params)]


def test_the_cached_loop_is_the_naive_loop(llm: LLM) -> None:
    prompt = llm.encode(PROMPT)
    assert llm.encode(PROMPT) + ids_of(llm, PROMPT, GREEDY) == naive.generate(llm, PROMPT, 24)
    assert len(naive.generate(llm, PROMPT, 24)) == len(prompt) + 24


def test_start_is_prefilled_and_paused(llm: LLM) -> None:
    run = llm.start(PROMPT)
    prompt = llm.encode(PROMPT)
    assert run.ids == prompt
    assert run.computed == len(prompt)
    assert run.steps == []
    assert run.text == ""
    assert run.finish_reason is None


def test_phases_tell_what_each_pass_computed(llm: LLM) -> None:
    run = llm.start(PROMPT)
    first, second = run.step(), run.step()
    prompt = len(llm.encode(PROMPT))
    assert (first.phase, first.positions_computed, first.positions_reused) == ("prefill", prompt, 0)
    assert (second.phase, second.positions_computed, second.positions_reused) == ("decode", 1, prompt)
    assert (first.index, first.position, second.index, second.position) == (0, prompt, 1, prompt + 1)
    assert first.cache_pages == -(-prompt // PAGE_SIZE)
    assert first.seconds > 0


@pytest.mark.parametrize("max_rows", [1, 2, 5, 16, 17, 512])
def test_any_chunking_of_the_prompt_gives_the_same_tokens(llm: LLM, tiny_folder: Path, max_rows: int) -> None:
    ids = random.Random(3).choices(range(2, 384), k=70)
    whole = ids_of(llm, ids, GREEDY)
    other = LLM(tiny_folder)
    other.engine.max_batched_tokens = max_rows
    assert ids_of(other, ids, GREEDY) == whole
    assert len(whole) == 24


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_any_batch_gives_the_same_tokens(llm: LLM, count: int, params: SamplingParams) -> None:
    dice = random.Random(count)
    prompts = [dice.choices(range(2, 384), k=dice.randint(1, 40)) for _ in range(count)]
    alone = [ids_of(llm, prompt, params) for prompt in prompts]
    llm.engine.cache.clear()
    together = llm.generate(prompts, params)
    assert isinstance(together, list)
    assert [one.ids for one in together] == alone
    assert llm.engine.pages_in_use == 0


def test_runs_of_a_batch_give_way_when_pages_run_out(tiny_folder: Path, llm: LLM) -> None:
    prompts = [[i + 2] * 30 for i in range(6)]
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=40, ignore_eos=True)
    expected = [ids_of(llm, prompt, params) for prompt in prompts]
    small = LLM(tiny_folder, cache_tokens=10 * PAGE_SIZE)  # one run needs five pages
    together = small.generate(prompts, params)
    assert isinstance(together, list)
    assert [one.ids for one in together] == expected
    assert small.engine.pages_in_use == 0


def test_a_cache_too_small_for_one_run_says_so(tiny_folder: Path) -> None:
    small = LLM(tiny_folder, cache_tokens=2 * PAGE_SIZE)
    with pytest.raises(OutOfPages, match="32 tokens has no room"):
        small.generate([5] * 40)
    assert small.engine.pages_in_use == 0
    assert len(ids_of(small, [5, 6], SamplingParams(max_tokens=3))) == 3


def test_a_failed_insert_leaves_the_run_as_it_was(tiny_folder: Path) -> None:
    small = LLM(tiny_folder, cache_tokens=2 * PAGE_SIZE)
    run = small.start([5, 6, 7], SamplingParams(max_tokens=3))
    list(run)
    before = (run.ids, run.text, run.finish_reason, run.steps)
    with pytest.raises(OutOfPages):
        run.insert([8] * 40)
    assert (run.ids, run.text, run.finish_reason, run.steps) == before
    run.rewind(1)
    assert run.step().token.id == before[0][-1]


# Rewind, edit, insert, force, fork.


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 24])
def test_rewind_and_step_again_gives_the_same_tokens(llm: LLM, params: SamplingParams, count: int) -> None:
    run = llm.start(PROMPT, params)
    list(run)
    before, text = run.ids, run.text
    run.rewind(count)
    assert run.ids == before[:-count]
    assert run.finish_reason is None
    assert len(run.steps) == 24 - count
    list(run)
    assert (run.ids, run.text) == (before, text)


def test_rewind_into_the_prompt_keeps_one_token(llm: LLM) -> None:
    run = llm.start(PROMPT, GREEDY)
    run.step()
    total = len(run.ids)
    with pytest.raises(BadRequest, match=rf"`count` is {total}; at most {total - 1} of this run's {total} tokens"):
        run.rewind(total)
    run.rewind(total - 1)
    assert run.ids == llm.encode(PROMPT)[:1]
    assert run.prompt_length == 1
    assert run.steps == []
    assert run.step().token.id == ids_of(llm, run.ids[:1], GREEDY)[0]


@pytest.mark.parametrize("count", [-1, 1.5, True, "2"])
def test_rewind_refuses_what_is_no_count(llm: LLM, count: object) -> None:
    run = llm.start(PROMPT)
    with pytest.raises(BadRequest, match="`count` is"):
        run.rewind(count)  # type: ignore[arg-type]


def test_a_forced_token_is_a_step_that_says_what_the_model_thought(llm: LLM) -> None:
    greedy = llm.start(PROMPT, GREEDY).step()
    wanted = greedy.top[4].token
    run = llm.start(PROMPT, GREEDY)
    step = run.step(force=wanted.id)
    assert step.forced
    assert (step.token, step.rank) == (wanted, 5)
    assert step.logprob == pytest.approx(greedy.top[4].logprob)
    assert step.draw is None
    assert [c.token.id for c in step.top] == [c.token.id for c in greedy.top]
    assert run.step().token.id == ids_of(llm, [*llm.encode(PROMPT), wanted.id], GREEDY)[0]


def test_force_takes_text_that_is_one_token(llm: LLM) -> None:
    run = llm.start(PROMPT)
    assert run.step(force=" dog").token.text == " dog"
    with pytest.raises(PromptError, match="token"):
        run.step(force=" dog sleeps and then")
    with pytest.raises(PromptError, match="ids are 0 to 383"):
        run.step(force=384)
    assert len(run.steps) == 1


def test_an_insert_equals_a_prompt_that_held_it(llm: LLM) -> None:
    run = llm.start(PROMPT, GREEDY)
    run.step()
    steps = run.insert(" jumps over the dog")
    assert all(step.forced for step in steps)
    assert [step.index for step in run.steps] == list(range(len(steps) + 1))
    assert run.text.endswith(" jumps over the dog")
    assert run.computed == len(run.ids)
    other = llm.start(run.ids, GREEDY)
    assert [run.step().token.id for _ in range(8)] == [other.step().token.id for _ in range(8)]
    score = llm.score(run.ids[: other.prompt_length])
    for step in steps:
        assert step.logprob == pytest.approx(score.logprobs[step.position], abs=1e-4)
        assert step.rank == score.ranks[step.position]


def test_an_inserted_token_is_judged_by_what_stands_before_it(llm: LLM) -> None:
    ids, params = [40, 41, 42, 43], GREEDY.replace(repetition_penalty=3.0, logprobs=300)
    whole, one_by_one = llm.start(PROMPT, params), llm.start(PROMPT, params)
    for given, forced in zip(whole.insert(ids), [one_by_one.step(force=token) for token in ids], strict=True):
        assert [each.token for each in given.top] == [each.token for each in forced.top]
        assert [each.prob for each in given.top] == pytest.approx([each.prob for each in forced.top], abs=1e-4)


def test_one_inserted_token_is_followed_by_its_own_prediction(llm: LLM) -> None:
    run = llm.start(PROMPT, GREEDY)
    run.insert([40])
    assert run.step().token.id == ids_of(llm, [*llm.encode(PROMPT), 40], GREEDY)[0]


def test_inserted_text_is_shown_at_once_and_begins_no_stop(llm: LLM) -> None:
    run = llm.start(PROMPT, GREEDY.replace(stop=("then the",)))
    assert [step.text for step in run.insert(" then")] == [" then"]
    assert run.step(force=" the").finish_reason is None


def test_only_the_last_of_inserted_tokens_may_end_a_run_and_none_says_so(llm: LLM) -> None:
    run = llm.start(PROMPT, SamplingParams(max_tokens=3))
    assert [step.finish_reason for step in run.insert([40, 41, 42])] == [None] * 3
    assert run.finish_reason is FinishReason.LENGTH


def test_other_settings_are_those_of_the_logits_that_are_there(llm: LLM) -> None:
    run = llm.start(PROMPT, GREEDY)
    run.set(logprobs=23)
    assert len(run.step().top) == 23


def test_inserted_tokens_count_for_max_tokens(llm: LLM) -> None:
    run = llm.start(PROMPT, SamplingParams(max_tokens=4))
    run.insert(run.prompt_ids[1:4])
    assert run.step().finish_reason is FinishReason.LENGTH
    with pytest.raises(RunFinished, match="the run has ended"):
        run.step()
    run.insert(" dog")  # who writes on wants to go on
    assert run.finish_reason is None
    assert run.step().finish_reason is FinishReason.LENGTH
    other = llm.start(PROMPT, SamplingParams(max_tokens=2))
    other.insert(run.prompt_ids[1:4])
    assert other.finish_reason is FinishReason.LENGTH


def test_no_operation_goes_past_the_limits(llm: LLM) -> None:
    run = llm.start([5] * 250)
    run.insert([6] * 6)
    assert (len(run.ids), run.finish_reason) == (256, FinishReason.LENGTH)
    run.rewind(0)
    assert run.finish_reason is FinishReason.LENGTH
    run.edit(255, 7)
    assert (len(run.ids), run.finish_reason) == (256, FinishReason.LENGTH)
    with pytest.raises(PromptError, match="has room for 0 more"):
        run.insert([5])
    short = llm.start(PROMPT, SamplingParams(max_tokens=5))
    short.step(), short.step(), short.step()
    short.set(max_tokens=2)
    assert short.finish_reason is FinishReason.LENGTH
    assert len(naive.generate(llm, [5] * 250, 20)) == 256


def test_the_steps_texts_are_the_runs_text_after_any_operation(llm: LLM) -> None:
    script = llm.encode(" dog and then the fox")[1:]
    run = llm.start(PROMPT, SamplingParams(stop=["then the"]))
    for token in script[:-1]:
        run.step(force=token)
    assert (run.finish_reason, run.text) == (FinishReason.STOP, " dog and ")
    run.insert(" fox")
    assert run.text == " dog and then the fox" == "".join(step.text for step in run.steps)
    assert all(step.finish_reason is None for step in run.steps)
    run.rewind(2)
    assert run.text == " dog and " == "".join(step.text for step in run.steps)
    run.set(stop=[])
    assert run.text == " dog and then" == "".join(step.text for step in run.steps)


def test_choices_give_way_when_pages_run_out(tiny_folder: Path) -> None:
    params = SamplingParams(temperature=1.0, seed=1, n=2, max_tokens=20, ignore_eos=True)
    prompts = [[i + 2] * 5 for i in range(8)]
    roomy = LLM(tiny_folder).generate(prompts, params)
    small = LLM(tiny_folder, cache_tokens=4 * PAGE_SIZE)
    tight = small.generate(prompts, params)
    assert [one.ids for one in tight] == [one.ids for one in roomy]  # type: ignore[union-attr]
    assert small.engine.pages_in_use == 0


@pytest.mark.parametrize("seed", ["x", 1.5, True, 2**70])
def test_a_fork_refuses_what_is_no_seed(llm: LLM, seed: object) -> None:
    with pytest.raises(BadRequest, match="`seed` is"):
        llm.start(PROMPT).fork(seed=seed)  # type: ignore[arg-type]


def test_insert_says_what_does_not_fit(llm: LLM) -> None:
    run = llm.start(PROMPT)
    with pytest.raises(PromptError, match=r"300 tokens do not fit: the context of 256 has room for \d+ more"):
        run.insert([5] * 300)
    with pytest.raises(PromptError, match="nothing to insert"):
        run.insert("")


def test_edit_a_generated_token(llm: LLM) -> None:
    run = llm.start(PROMPT, GREEDY)
    list(run)
    place = run.prompt_length + 3
    before = run.ids
    [step] = run.edit(place, " dog")
    assert run.ids[:place] == before[:place]
    assert (run.ids[place], len(run.ids)) == (step.token.id, place + 1)
    assert step.forced
    assert step.index == 3
    assert run.finish_reason is None
    assert run.step().token.id == ids_of(llm, run.ids[: place + 1], GREEDY)[0]


@pytest.mark.parametrize("place", [0, 1, 3])
def test_edit_a_prompt_token(llm: LLM, place: int) -> None:
    run = llm.start(PROMPT, GREEDY)
    run.step()
    assert run.edit(place, " dog") == []
    expected = [*llm.encode(PROMPT)[:place], llm.tokenizer.one_token(" dog")]
    assert run.ids == run.prompt_ids == expected
    assert run.computed == len(expected)
    assert [run.step().token.id for _ in range(4)] == ids_of(llm, expected, GREEDY)[:4]
    with pytest.raises(BadRequest, match=f"stand at 0 to {len(run.ids) - 1}"):
        run.edit(99, " dog")


def test_a_fork_repeats_its_parent_and_a_reseeded_one_does_not(llm: LLM) -> None:
    run = llm.start(PROMPT, SAMPLED)
    for _ in range(3):
        run.step()
    twin, other = run.fork(), run.fork(seed=8)
    assert twin.ids == run.ids
    rest = [step.token.id for step in run]
    assert [step.token.id for step in twin] == rest
    assert [step.token.id for step in other] != rest
    assert twin.text == run.text


def test_forks_share_pages_and_copy_only_on_write(llm: LLM) -> None:
    run = llm.start([5] * (3 * PAGE_SIZE + 4), GREEDY)
    assert llm.engine.pages_in_use == 4
    twin = run.fork()
    assert llm.engine.pages_in_use == 4
    run.step(), run.step()
    assert llm.engine.pages_in_use == 5
    twin.step(), twin.step()
    assert llm.engine.pages_in_use == 5
    del run
    gc.collect()
    assert llm.engine.pages_in_use == 4
    del twin
    gc.collect()
    assert llm.engine.pages_in_use == 0


class Awkward(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} of {two}")


@pytest.mark.parametrize("error", [lambda: ValueError("1 of 2"), lambda: Awkward(1, 2)], ids=["plain", "awkward"])
def test_a_run_that_failed_is_garbage_like_any_other(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception]
) -> None:
    """What is kept of an error leads to nobody's frames: they hold this run, and others."""

    def fail(*_: object) -> None:
        raise error()

    def failed() -> None:
        run, other = llm.start(PROMPT, GREEDY), llm.start(PROMPT, GREEDY)
        other.step()
        monkeypatch.setattr(llm.engine.output, "make_step", fail)
        with pytest.raises(type(error()), match="1 of 2"):
            run.step()
        assert run.finish_reason == FinishReason.ERROR

    failed()
    gc.collect()
    assert llm.engine.pages_in_use == 0


def test_n_choices_differ_and_the_first_is_the_single_run(llm: LLM) -> None:
    params = SAMPLED.replace(n=4)
    choices = llm.generate(PROMPT, params)
    assert isinstance(choices, list)
    assert choices[0].ids == ids_of(llm, PROMPT, SAMPLED)
    assert len({tuple(choice.ids) for choice in choices}) == 4
    again = llm.generate([PROMPT, "one two"], params)
    assert isinstance(again, list)
    assert [one.ids for one in again[:4]] == [one.ids for one in choices]
    assert len(again) == 8


# Prefix reuse and recovery.


def test_a_known_prefix_is_not_computed_again(llm: LLM) -> None:
    ids = random.Random(5).choices(range(2, 384), k=50)
    first = llm.generate(ids, GREEDY)
    run = llm.start(ids, GREEDY)
    assert run.usage.cached_tokens == 48
    step = run.step()
    assert (step.positions_reused, step.positions_computed) == (48, 2)
    assert [step.token.id, *(step.token.id for step in run)] == first.ids  # type: ignore[union-attr]
    other = llm.start([ids[0] ^ 1, *ids[1:]], GREEDY)
    assert other.usage.cached_tokens == 0


def test_a_page_that_was_rewritten_is_not_found_under_its_old_name(llm: LLM) -> None:
    ids = random.Random(6).choices(range(2, 384), k=40)
    run = llm.start(ids, GREEDY)
    run.rewind(20)
    run.insert([9] * 20)
    fresh = llm.start(ids, GREEDY)
    assert fresh.usage.cached_tokens == 16
    llm.engine.cache.clear()
    assert [s.token.id for s in fresh] == ids_of(llm, ids, GREEDY)


def test_a_page_is_named_by_what_stands_before_it_now(llm: LLM) -> None:
    dice = random.Random(7)
    first, other, tail = (dice.choices(range(2, 384), k=count) for count in (48, 48, 17))
    witness = llm.start([*first, 5], GREEDY)
    run = llm.start([*first, 5], GREEDY)
    run.rewind(29)
    run.insert([*other[20:], *tail])  # its fourth page stands on other pages than before
    fresh = llm.start([*first, *tail], GREEDY)
    assert fresh.usage.cached_tokens == 48
    assert [step.token.id for step in fresh] == naive.generate(llm, [*first, *tail], 24)[65:]
    assert witness.usage.cached_tokens == 0
    mixed = [*first[:32], *other[32:], 5]  # its third page stands on other ids than those of the run
    assert llm.start(mixed, GREEDY).usage.cached_tokens == 32


def test_a_fork_names_its_pages_by_what_stands_before_them(llm: LLM) -> None:
    dice = random.Random(8)
    shared, first, second, third = (dice.choices(range(2, 384), k=count) for count in (32, 16, 16, 16))
    run = llm.start(shared, GREEDY)
    twin = run.fork()
    twin.insert(first)
    run.insert([*second, *third])
    for ids, found in (([*shared, *first, *third, 5], 48), ([*shared, *second, *third, 5], 64)):
        assert llm.start(ids, GREEDY).usage.cached_tokens == found


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_run_resumed_from_ids_and_parameters_goes_on_as_if_never_stopped(
    tiny_folder: Path, llm: LLM, params: SamplingParams
) -> None:
    whole = llm.start(PROMPT, params)
    list(whole)
    half = whole.prompt_length + 10
    elsewhere = LLM(tiny_folder)
    resumed = elsewhere.start(whole.ids[:half], params.replace(max_tokens=14))
    assert whole.ids[half:] == [step.token.id for step in resumed]


# Endings.


def test_the_context_ends_a_run_with_length(llm: LLM) -> None:
    run = llm.start([5] * 250, SamplingParams(max_tokens=1000, ignore_eos=True))
    assert [step.finish_reason for step in run] == [None] * 5 + [FinishReason.LENGTH]
    assert len(run.ids) == llm.context_length
    full = llm.start([5] * 256)
    assert full.finish_reason is FinishReason.LENGTH
    with pytest.raises(PromptError, match="the prompt has 257 tokens; this model reads 256"):
        llm.start([5] * 257)


def test_the_end_token_is_in_ids_and_has_no_text(llm: LLM) -> None:
    run = llm.start(PROMPT, SamplingParams(logit_bias={1: 100.0}))
    step = run.step()
    assert (step.token.id, step.text, step.finish_reason) == (1, "", FinishReason.STOP)
    assert (run.text, run.stop_reason, run.ids[-1]) == ("", 1, 1)
    ignored = llm.start(PROMPT, SamplingParams(logit_bias={1: 100.0}, ignore_eos=True, max_tokens=3))
    assert [step.token.id for step in ignored] == [1, 1, 1]
    assert ignored.finish_reason is FinishReason.LENGTH


def test_min_tokens_keeps_the_end_away(llm: LLM) -> None:
    run = llm.start(PROMPT, SamplingParams(logit_bias={1: 100.0}, min_tokens=4))
    assert [step.token.id == 1 for step in run] == [False] * 4 + [True]


def test_stop_ids_end_a_run(llm: LLM) -> None:
    ids = ids_of(llm, PROMPT, GREEDY)
    place = next(i for i in range(3, 24) if ids[i] not in ids[:i])
    run = llm.start(PROMPT, GREEDY.replace(stop_ids=[ids[place]]))
    assert [step.token.id for step in run] == ids[: place + 1]
    assert (run.finish_reason, run.stop_reason) == (FinishReason.STOP, ids[place])


def test_a_stop_string_over_several_tokens_cuts_the_text_and_keeps_the_ids(llm: LLM) -> None:
    script = llm.encode(" dog and then the fox")[1:]
    params = SamplingParams(stop=["then the"])
    run = llm.start(PROMPT, params)
    for token in script:
        if run.finish_reason is None:
            run.step(force=token)
    assert run.text == " dog and "
    assert (run.finish_reason, run.stop_reason) == (FinishReason.STOP, "then the")
    assert llm.detokenize(run.ids[run.prompt_length :]) == " dog and then the"
    assert "".join(step.text for step in run.steps) == run.text


def test_a_stop_string_need_not_wait_for_unfinished_bytes() -> None:
    state = TextState(every_sort()["byte fallback"], [1], ("\n",))
    newline = 3 + ord("\n")  # the piece <0x0A>, whose row of bytes may go on
    assert state.push(newline) == ("", "\n")
    other = TextState(every_sort()["byte fallback"], [1], ("!",))
    assert other.push(newline) == ("", None)
    assert other.flush() == "\n"


def test_a_stop_string_that_is_a_byte_piece_stops_the_story() -> None:
    folder = Path(__file__).parents[2] / "shared" / "models" / "stories260K"
    if not folder.exists():
        pytest.skip("the checkpoint is not beside this one")
    run = LLM(folder).start([1], SamplingParams(stop=["\n"], max_tokens=200))
    list(run)
    assert run._llm.tokenizer.token(run.ids[-1]).bytes == b"\n"
    assert (run.stop_reason, run.text[-1]) == ("\n", ".")


def test_a_rewind_takes_a_half_seen_stop_string_back(llm: LLM) -> None:
    script = llm.encode(" dog and then the fox")[1:]
    run = llm.start(PROMPT, SamplingParams(stop=["then the"]))
    for token in script[:-2]:
        run.step(force=token)
    assert run.text == " dog and "  # " then" is held back: it may become the stop
    run.rewind(1)
    run.step(force=" fox")
    assert run.text == " dog and fox"


def test_a_fork_holds_back_its_own_text(llm: LLM) -> None:
    run = llm.start(PROMPT, SamplingParams(stop=["then the"]))
    run.step(force=" then")
    twin = run.fork()
    assert twin.step(force=" fox").text == "then fox"  # the space was shown
    assert (run.step(force=" the").text, run.stop_reason, run.text) == ("", "then the", " ")
    assert (twin.text, twin.finish_reason) == (" then fox", None)
    assert [len(one.steps) for one in (run, twin)] == [len(one.step_params) for one in (run, twin)] == [2, 2]


def test_what_was_held_back_is_shown_when_the_length_ends_the_run(llm: LLM) -> None:
    run = llm.start(PROMPT, SamplingParams(stop=["then the"], max_tokens=2))
    run.step(force=" dog")
    step = run.step(force=" then")
    assert (step.text, step.finish_reason, run.text) == (" then", FinishReason.LENGTH, " dog then")


def test_a_token_that_fails_halfway_is_not_in_the_list(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    run = llm.start(PROMPT, GREEDY)
    first = run.step()
    with monkeypatch.context() as patch:
        patch.setattr(type(llm.tokenizer), "token", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.step()
    assert run.ids == [*llm.encode(PROMPT), first.token.id]
    assert run.finish_reason is FinishReason.ERROR


def test_settings_do_not_bring_back_a_run_that_a_stop_has_ended(llm: LLM) -> None:
    run = llm.start(PROMPT, SamplingParams(stop=[" dog"]))
    run.step(force=" dog")
    run.set(temperature=0.5, max_tokens=50)
    assert (run.finish_reason, run.stop_reason, run.text) == (FinishReason.STOP, " dog", "")
    with pytest.raises(RunFinished):
        run.step()


def test_set_changes_the_steps_to_come_and_may_lift_the_limit(llm: LLM) -> None:
    run = llm.start(PROMPT, SamplingParams(max_tokens=2))
    list(run)
    assert run.finish_reason is FinishReason.LENGTH
    run.set(max_tokens=4, temperature=0.5, seed=3)
    assert len(list(run)) == 2
    assert run.params.temperature == 0.5
    assert [params.temperature for params in run.step_params] == [0.0, 0.0, 0.5, 0.5]
    with pytest.raises(BadRequest, match="temperature"):
        run.set(temperature=-1)
    with pytest.raises(BadRequest, match="hotness"):
        run.set(hotness=1)


def test_max_tokens_zero_is_a_run_that_has_ended(llm: LLM) -> None:
    completion = llm.generate(PROMPT, SamplingParams(max_tokens=0))
    assert not isinstance(completion, list)
    assert (completion.ids, completion.finish_reason) == ([], FinishReason.LENGTH)


def test_stop_ends_a_run_and_frees_its_pages(llm: LLM) -> None:
    run = llm.start(PROMPT)
    run.step()
    run.stop()
    assert run.finish_reason is FinishReason.ABORT
    assert llm.engine.pages_in_use == 0
    assert len(run.steps) == 1


def test_text_is_the_sum_of_the_steps(llm: LLM) -> None:
    for seed in range(5):
        run = llm.start(PROMPT, SamplingParams(temperature=3.0, seed=seed, max_tokens=60, ignore_eos=True))
        pieces = [step.text for step in run]
        assert "".join(pieces) == run.text == llm.detokenize(run.ids)[len(llm.detokenize(run.prompt_ids)) :]


def test_looking_changes_nothing(llm: LLM) -> None:
    plain = llm.generate(PROMPT, SAMPLED)
    looked = llm.start(PROMPT, SAMPLED.replace(logprobs=50))
    for step in looked:
        repr(looked), looked._repr_html_(), step._repr_html_(), looked.record()
        llm.read(PROMPT)
    assert looked.completion().ids == plain.ids  # type: ignore[union-attr]
    assert len(looked.steps[0].top) == 50


# What is handed out.


def test_what_a_run_hands_out_is_the_callers_own(llm: LLM) -> None:
    run = llm.start([5, 6, 7], SamplingParams(max_tokens=6, ignore_eos=True))
    for _ in range(3):
        run.step()
    whole = (list(run.ids), list(run.prompt_ids), list(run.steps), list(run.step_params), run.text)
    for handed in (run.ids, run.prompt_ids, run.steps, run.step_params):
        handed.clear()
    assert (run.ids, run.prompt_ids, run.steps, run.step_params, run.text) == whole
    assert (len(run), run.prompt_length, run.prompt_ids) == (6, 3, [5, 6, 7])


def test_a_completion_is_the_run_so_far(llm: LLM) -> None:
    run = llm.start([5, 6, 7], SamplingParams(max_tokens=4, ignore_eos=True))
    run.step()
    run.step(force=0)  # the first token of the vocabulary is a token too
    so_far = run.completion()
    assert (so_far.prompt_ids, so_far.ids) == ([5, 6, 7], run.ids[3:])
    assert so_far.ids[1] == 0
    assert so_far.finish_reason is FinishReason.ABORT
    assert run.to_dict()["finish_reason"] is None
    assert (so_far.usage.prompt_tokens, so_far.usage.completion_tokens, so_far.usage.cached_tokens) == (3, 2, 0)
    list(run)
    assert run.completion().finish_reason is run.finish_reason is FinishReason.LENGTH
    assert run.to_dict()["finish_reason"] == "length"
    run.stop()
    assert run.finish_reason is FinishReason.LENGTH  # what had ended it stays
    again = llm.start([5, 6, 7], stop_ids=[*range(384)])
    again.step()
    assert again.completion().stop_reason == again.ids[3]


def test_a_rewind_takes_one_token_back_where_no_number_is_named(llm: LLM) -> None:
    run = llm.start([5, 6, 7], SamplingParams(max_tokens=6, ignore_eos=True))
    tokens = [run.step().token.id for _ in range(3)]
    run.rewind()
    assert run.ids == [5, 6, 7, *tokens[:2]]


def test_a_run_that_has_ended_has_no_more_steps_to_iterate_over(llm: LLM) -> None:
    run = llm.start([5, 6, 7], SamplingParams(max_tokens=2, ignore_eos=True))
    assert len(list(run)) == 2
    assert list(run) == []
    assert list(llm.stream([5, 6, 7], max_tokens=0)) == []
