"""A script turns the loop itself: interruptions, threads, stages that ask back, and runs that nobody holds any more."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from byhand import LLM, SamplingParams
from byhand.cache.kv_cache import PAGE_SIZE
from byhand.errors import BadRequest, ByhandError
from byhand.run import Run
from tests.steering import Trap

PROMPT = [5, 6, 7]
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture
def llm(tiny_folder: Path) -> LLM:
    return LLM(tiny_folder)


@pytest.fixture
def alone(llm: LLM) -> list[int]:
    return llm.generate(PROMPT, GREEDY).ids


def once(monkeypatch: pytest.MonkeyPatch, thing: Any, name: str, *, after: bool) -> None:
    """The next call of a method is interrupted, before or after it has done its work; then all is as it was."""
    method = getattr(thing, name)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(thing, name, method)
        if after:
            method(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(thing, name, interrupted)


PLACES: dict[str, Callable[[LLM], tuple[Any, str]]] = {
    "the model": lambda llm: (llm.model, "forward"),
    "the logits": lambda llm: (llm.engine.runner, "logits"),
    "the choice": lambda llm: (llm.engine.sampler, "choose"),
    "the text": lambda llm: (llm.engine.output, "_read_ending"),
    "the Step": lambda llm: (llm.engine.output, "make_step"),
    "the listener": lambda llm: (llm.driver.loop, "emit"),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_a_step_that_is_interrupted_can_be_taken_again(
    llm: LLM, alone: list[int], monkeypatch: pytest.MonkeyPatch, place: str, after: bool
) -> None:
    run = llm.start(PROMPT, GREEDY)
    for _ in range(4):
        run.step()
    once(monkeypatch, *PLACES[place](llm), after=after)
    with pytest.raises(KeyboardInterrupt):
        run.step()
    assert len(run.ids) == len(PROMPT) + len(run.steps)
    assert run.finish_reason is None
    list(run)
    assert run.ids == [*PROMPT, *alone]
    assert run.text == "".join(step.text for step in run.steps) == llm.detokenize(alone)


@pytest.mark.parametrize("place", ["the model", "the logits", "the choice", "the text"])
def test_an_insert_that_is_interrupted_leaves_the_run_as_it_was(
    llm: LLM, alone: list[int], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    run = llm.start(PROMPT, GREEDY)
    for _ in range(4):
        run.step()
    before = (run.ids, run.steps, run.text)
    thing, name = PLACES[place](llm)
    once(monkeypatch, *((llm.engine.output, "score_given") if name == "_read_ending" else (thing, name)), after=False)
    with pytest.raises(KeyboardInterrupt):
        run.insert([9] * 40)
    assert (run.ids, run.steps, run.text) == before
    list(run)
    assert run.ids == [*PROMPT, *alone]


def test_a_call_that_is_interrupted_holds_no_page_and_ends_its_requests(
    llm: LLM, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    once(monkeypatch, llm.engine.output, "make_step", after=False)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([PROMPT, [8, 9]], GREEDY)
    assert llm.engine.pages_in_use == 0
    assert llm.driver.loop.requests == {}
    assert llm.generate(PROMPT, GREEDY).ids == alone


def test_the_first_failure_ends_a_call_for_all(llm: LLM) -> None:
    trap = Trap()
    trap.position = len(PROMPT) + 3
    passes, forward = [], llm.engine.forward

    def counting(chunks: Any, **options: Any) -> Any:
        passes.append(len(chunks))
        return forward(chunks, **options)

    llm.engine.forward = counting  # type: ignore[method-assign]
    with pytest.raises(BadRequest, match="the trap has closed"):
        llm.generate([PROMPT, [8]], GREEDY.replace(stages=(trap,)))
    assert len(passes) == 4
    assert llm.engine.pages_in_use == 0


def test_a_stage_may_ask_the_model_itself(llm: LLM, alone: list[int]) -> None:
    """What is asked in the middle of a step has a loop of its own: the step that waits goes no further meanwhile."""
    asked: list[list[int]] = []

    def asks(ids: tuple[int, ...], logits: torch.Tensor) -> torch.Tensor:
        if len(asked) < 3:
            asked.append(llm.generate(PROMPT, GREEDY).ids)
            asked.append([step.token.id for step in llm.start(PROMPT, GREEDY)])
        return logits

    run = llm.start(PROMPT, GREEDY.replace(stages=(asks,)))
    list(run)
    assert run.ids == [*PROMPT, *alone]
    assert asked == [alone] * 4
    assert llm.generate([PROMPT, [8]], GREEDY.replace(stages=(asks,)))[0].ids == alone


def test_a_stage_cannot_step_a_run_of_the_loop_that_waits_for_it(llm: LLM) -> None:
    other = llm.start([8], GREEDY)

    def steps(ids: tuple[int, ...], logits: torch.Tensor) -> torch.Tensor:
        other.step()
        return logits

    with pytest.raises(ByhandError, match="a stage cannot take a step"):
        llm.generate(PROMPT, GREEDY.replace(stages=(steps,)))


def test_threads_that_turn_one_loop_get_what_is_theirs(llm: LLM) -> None:
    prompts = [[number, number + 1, 3] for number in range(10, 26)]
    expected = [llm.generate(prompt, GREEDY).ids for prompt in prompts]

    def stepped(prompt: list[int]) -> list[int]:
        return [step.token.id for step in llm.start(prompt, GREEDY)]

    with ThreadPoolExecutor(8) as pool:
        whole = pool.map(lambda prompt: llm.generate(prompt, GREEDY).ids, prompts)
        by_hand = pool.map(stepped, prompts)
        assert list(whole) == expected
        assert list(by_hand) == expected
    assert llm.engine.pages_in_use == 0


def test_a_run_that_nobody_holds_leaves_the_loop(llm: LLM) -> None:
    run = llm.start([4] * 40, GREEDY)
    twin = run.fork()
    twin.step()
    assert len(llm.driver.loop.requests) == 2
    del run, twin
    gc.collect()
    assert llm.engine.pages_in_use == 0
    assert llm.driver.loop.requests == {}


def test_a_run_that_failed_to_start_leaves_the_loop(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(llm.model, "forward", fail)
        with pytest.raises(MemoryError, match="no room"):
            llm.start(PROMPT, GREEDY)
    gc.collect()
    assert llm.engine.pages_in_use == 0
    assert llm.driver.loop.requests == {}


def test_runs_at_rest_give_their_pages_to_those_that_go(tiny_folder: Path, alone: list[int]) -> None:
    """A script needs no run's leave: its pages are taken, and it is computed again when it goes on."""
    small = LLM(tiny_folder, cache_tokens=4 * PAGE_SIZE)
    run = small.start(PROMPT, GREEDY)
    run.step()
    assert len(small.generate([9] * 50, GREEDY).ids) == 12
    assert run.computed == 0
    list(run)
    assert run.ids == [*PROMPT, *alone]


def test_a_run_outlives_its_closed_llm(llm: LLM, alone: list[int]) -> None:
    run = llm.start(PROMPT, GREEDY)
    llm.close()
    assert [step.token.id for step in run] == alone
    twin = run.fork()
    twin.rewind(2)
    assert [step.token.id for step in twin] == alone[-2:]
    with pytest.raises(ByhandError, match="was closed"):
        Run.open(llm, PROMPT, GREEDY, seed=0)
