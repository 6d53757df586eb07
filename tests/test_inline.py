"""A script turns the loop itself: interruptions, threads, stages that ask back, and runs that nobody holds any more."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from linecache import getline
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from byhand import LLM, FinishReason, SamplingParams
from byhand.cache.kv_cache import PAGE_SIZE
from byhand.engine import operations
from byhand.engine.events import Finished, Stepped
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
    before = run.ids
    assert llm.generate([8, 9], GREEDY).ids  # who steps the loop now takes no token of what was interrupted
    assert run.ids == before
    list(run)
    assert run.ids == [*PROMPT, *alone]
    assert run.text == "".join(step.text for step in run.steps) == llm.detokenize(alone)


def test_the_last_step_that_is_interrupted_has_not_ended_the_run(
    llm: LLM, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = llm.start(PROMPT, GREEDY)
    for _ in alone[1:]:
        run.step()
    once(monkeypatch, llm.engine.output, "make_step", after=False)
    with pytest.raises(KeyboardInterrupt):
        run.step()
    assert run.finish_reason is None
    assert run.step().finish_reason is FinishReason.LENGTH
    assert run.ids == [*PROMPT, *alone]


@pytest.mark.parametrize("steps", [0, 4], ids=["the first Step is made at once", "all are made in the pass"])
@pytest.mark.parametrize("place", ["the model", "the logits", "the choice", "the text"])
def test_an_insert_that_is_interrupted_leaves_the_run_as_it_was(
    llm: LLM, alone: list[int], monkeypatch: pytest.MonkeyPatch, place: str, steps: int
) -> None:
    run = llm.start(PROMPT, GREEDY)
    for _ in range(steps):
        run.step()
    before = (run.ids, run.steps, run.text)
    thing, name = PLACES[place](llm)
    once(monkeypatch, *((llm.engine.output, "score_given") if name == "_read_ending" else (thing, name)), after=False)
    with pytest.raises(KeyboardInterrupt):
        run.insert([9] * 40)
    assert (run.ids, run.steps, run.text) == before
    list(run)
    assert run.ids == [*PROMPT, *alone]


def at_line(number: int, act: Callable[[], object]) -> bool:
    """Do something, interrupted before the line of this number among those of the driver and the handle."""
    lines = count(1)

    def trace(frame: Any, event: str, _: Any) -> Any:
        if Path(frame.f_code.co_filename).name not in ("inline.py", "interactive.py"):
            return None
        # Python lets a signal in after a call and at a loop's turn: not between a setting and its `try` or `finally`.
        here = getline(frame.f_code.co_filename, frame.f_lineno).strip()
        between = here.startswith("with ") or here == "try:" or "is_stepping = " in here
        if event == "line" and not between and next(lines) == number:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


ACTS: dict[str, Callable[[Run], object]] = {
    "step": lambda run: run.step(),
    "insert": lambda run: run.insert([9, 10]),
    "edit": lambda run: run.edit(1, 9),
}


@pytest.mark.parametrize("act", ACTS)
def test_an_interruption_at_any_line_leaves_the_run_whole(llm: LLM, act: str) -> None:
    for number in count(1):
        run = llm.start(PROMPT, GREEDY)
        run.step()
        if not at_line(number, lambda run=run: ACTS[act](run)):  # type: ignore[misc]
            break
        before = run.ids
        assert len(before) == len(run.steps) + run.prompt_length
        llm.generate([8], GREEDY.replace(max_tokens=1))
        assert run.ids == before
        assert len(run.step().text) <= len(run.text)
    assert number > 10


def test_who_is_refused_leaves_what_is_under_way(llm: LLM) -> None:
    run = llm.start(PROMPT, GREEDY)
    done = run._handle.change(lambda engine, sequence: operations.insert(engine, sequence, [9] * 5))
    with pytest.raises(BadRequest, match="still being computed"):
        run.step()
    llm.driver.run_to_rest(run._handle)
    assert [step.token.id for step in done.result(20)] == [9] * 5
    assert run.ids == PROMPT + [9] * 5


def test_a_pass_that_is_interrupted_keeps_no_page_that_it_has_not_filled(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = llm.start([4] * PAGE_SIZE, GREEDY)
    run.step()
    once(monkeypatch, llm.model, "forward", after=False)
    with pytest.raises(KeyboardInterrupt):
        run.step()
    assert (run.computed, llm.engine.pages_in_use) == (PAGE_SIZE, 1)


def test_a_prompt_that_is_interrupted_is_processed_anew(
    llm: LLM, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = llm.open_run(PROMPT, GREEDY, seed=0)
    once(monkeypatch, llm.model, "forward", after=False)
    with pytest.raises(KeyboardInterrupt):
        run.prefill()
    assert (run.computed, llm.engine.pages_in_use) == (0, 0)
    run.prefill()
    assert run.computed == len(PROMPT)
    assert [step.token.id for step in run] == alone


def test_who_interrupts_a_call_leaves_the_runs_of_other_threads_whole(
    llm: LLM, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, make_step = llm.start(PROMPT, GREEDY), llm.engine.output.make_step
    handle = run._handle
    handle.go(6).result()  # as another thread does, which waits for the lock now

    def interrupted(sequence: Any, *arguments: Any) -> Any:
        if sequence is run._sequence and len(sequence.ids) == len(PROMPT) + 3:
            monkeypatch.setattr(llm.engine.output, "make_step", make_step)
            raise KeyboardInterrupt
        return make_step(sequence, *arguments)

    monkeypatch.setattr(llm.engine.output, "make_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([8, 9], GREEDY)
    llm.driver.run_to_rest(handle)
    assert run.ids == [*PROMPT, *alone[:6]]
    assert run.text == llm.detokenize(run.ids[len(PROMPT) :])


def test_who_interrupts_a_call_leaves_the_operations_of_other_threads_under_way(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, expected = llm.start(PROMPT, GREEDY), llm.start(PROMPT, GREEDY).insert([9] * 5)
    done = run._handle.change(lambda engine, sequence: operations.insert(engine, sequence, [9] * 5))
    once(monkeypatch, llm.model, "forward", after=True)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([8, 9], GREEDY)
    llm.driver.run_to_rest(run._handle)
    assert [step.token for step in done.result(20)] == [step.token for step in expected]
    assert run.ids == PROMPT + [9] * 5


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


def test_what_a_stage_asks_leaves_the_rest_of_a_pass_as_it_is(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its rows become logits in one block or in many: a pass of as many rows writes to the same memory."""
    monkeypatch.setattr("byhand.engine.runner.LOGITS_BLOCK", 2 * llm.vocab_size)
    long, asked = [20 + number for number in range(8)], list[int]()

    def asks(ids: tuple[int, ...], logits: torch.Tensor) -> torch.Tensor:
        asked.append(len(llm.logits([40] * len(long))))
        return logits

    for _ in range(3):  # from its third time on a block is one call, in memory that stays
        llm.logits([40] * len(long))
    expected = llm.start(PROMPT, GREEDY).insert(long)
    steps = llm.start(PROMPT, GREEDY.replace(stages=(asks,))).insert(long)
    assert [step.logprob for step in steps] == [step.logprob for step in expected]
    assert asked == [len(long)] * len(long)


def test_a_stage_may_end_another_request_of_its_step(llm: LLM, alone: list[int]) -> None:
    others, told = list[Any](), list[Any]()

    def ends(ids: tuple[int, ...], logits: torch.Tensor) -> torch.Tensor:
        if len(ids) == len(PROMPT) + 2:
            others[0].cancel()
        return logits

    handle = llm.driver.submit(PROMPT, llm.engine.check(GREEDY.replace(stages=(ends,))), told.append)
    others.append(llm.driver.submit([8, 9], llm.engine.check(GREEDY), told.append))
    llm.driver.run(lambda: handle.is_done)
    assert others[0].is_done
    assert [event.finish_reason for event in told if isinstance(event, Finished)] == ["abort", "length"]
    assert len([event for event in told if isinstance(event, Stepped)]) == len(alone) + 2
    assert llm.engine.pages_in_use == 0


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
    assert llm.driver.loop.scheduler._arrival == {}


def test_the_next_thing_that_is_asked_ends_what_nobody_holds(llm: LLM) -> None:
    run = llm.start(PROMPT, GREEDY)
    llm.start(PROMPT, GREEDY)
    gc.collect()
    twin = run.fork()
    assert list(llm.driver.loop.requests) == [run._sequence, twin._sequence]
    del twin
    gc.collect()
    run.step()
    assert list(llm.driver.loop.requests) == [run._sequence]


def test_what_nobody_holds_is_ended_by_one_thread_at_a_time(llm: LLM) -> None:
    run, owned = llm.start(PROMPT, GREEDY), list[bool]()
    llm.engine.retire(lambda: owned.append(llm.engine.lock._is_owned()))  # type: ignore[attr-defined]
    run.fork()
    assert owned == [True]


def test_a_script_fills_its_passes(llm: LLM) -> None:
    """Nobody reads along: neither a prompt beside running sequences nor their number is bounded but by the pass."""
    passes, forward = list[list[int]](), llm.engine.forward

    def counting(chunks: Any, **options: Any) -> Any:
        passes.append([chunk.rows for chunk in chunks])
        return forward(chunks, **options)

    llm.engine.forward = counting  # type: ignore[method-assign]
    llm.generate([[number] for number in range(2, 52)] + [[7] * 200], GREEDY.replace(max_tokens=1))
    assert passes == [[1] * 50 + [200]]


def test_choices_take_their_first_token_together(llm: LLM) -> None:
    told: list[int] = []
    settings = llm.engine.check(GREEDY.replace(n=3))
    llm.driver.submit(PROMPT, settings, lambda event: told.append(event.choice) if isinstance(event, Stepped) else None)
    llm.driver.loop.step()
    assert told == [0, 1, 2]


def test_a_run_that_failed_says_so_once(llm: LLM, alone: list[int]) -> None:
    trap = Trap()
    run = llm.start(PROMPT, GREEDY.replace(stages=(trap,)))
    trap.position = len(PROMPT) + 2
    with pytest.raises(BadRequest, match="the trap has closed"):
        list(run)
    trap.position = None
    run.rewind(0)
    list(run)
    assert run.ids == [*PROMPT, *alone]


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
        Run.open(llm, PROMPT, cast(Any, None))
