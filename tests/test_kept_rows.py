"""The rows of logits that tokens are chosen from: read together, counted as asked, and no longer held than used."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch

from byhand import LLM, SamplingParams, Step
from byhand.engine import operations
from byhand.engine.breakpoint import Breakpoint
from byhand.engine.events import Event, Paused, Progress
from byhand.engine.interactive import InteractiveHandle
from byhand.engine.sequence import LogitsRow, Sequence
from byhand.engine.worker import Worker
from byhand.kernels import TopkLse

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6, 5], [3, 5, 8, 9, 7, 9]]
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=8, ignore_eos=True)


def opened(llm: LLM, params: SamplingParams = SAMPLED) -> list[Sequence]:
    """Three requests in the loop, of which nothing is computed; their sequences."""
    for seed, ids in enumerate(PROMPTS):
        llm.driver.submit(ids, llm.engine.check(params.replace(seed=seed)), lambda _: None)
    return list(llm.driver.loop.requests)


def steps_of(llm: LLM, params: SamplingParams) -> list[Step]:
    states = opened(llm, params)
    llm.driver.run(lambda: all(state.is_finished for state in states))
    return [step for state in states for step in state.steps]


def is_alone(row: LogitsRow | None) -> bool:
    """Whether a row keeps only itself in memory."""
    assert row is not None
    return row.logits.untyped_storage().nbytes() == row.logits.nbytes


def no_kernel(logits: torch.Tensor, counts: list[int]) -> list[TopkLse | None]:
    return [None] * len(counts)


# The best few.


def test_the_rows_of_a_step_are_surveyed_in_one_call(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    states, calls = opened(llm), []
    states[1].settings = llm.engine.check(states[1].params.replace(logprobs=20))
    given = llm.model.kernels.topk_lse

    def counted(logits: torch.Tensor, counts: list[int]) -> list[TopkLse | None]:
        calls.append(list(counts))
        return given(logits, counts)

    monkeypatch.setattr(llm.model.kernels, "topk_lse", counted)
    for _ in range(4):
        llm.driver.loop.step()
    assert calls == [[10, 20, 10]] * 4
    assert [len(state.steps[-1].top) for state in states] == [10, 20, 10]


@pytest.mark.parametrize("params", [SAMPLED, SamplingParams(max_tokens=8, logprobs=70), SAMPLED.replace(logprobs=30)])
def test_surveys_change_no_choice(llm: LLM, params: SamplingParams, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = steps_of(llm, params)
    monkeypatch.setattr(llm.model.kernels, "topk_lse", no_kernel)
    for quick, slow in zip(fast, steps_of(llm, params), strict=True):
        assert (quick.token, quick.rank, quick.text) == (slow.token, slow.rank, slow.text)
        assert [each.token for each in quick.top] == [each.token for each in slow.top]
        for name in ("logprob", "entropy", "margin", "tail_mass"):
            assert getattr(quick, name) == pytest.approx(getattr(slow, name), rel=1e-5, abs=1e-6)


def test_a_step_tells_of_as_many_as_are_wanted_when_it_is_taken(llm: LLM) -> None:
    early, late = llm.start(PROMPTS[0], SAMPLED.replace(seed=1, logprobs=25)), llm.start(PROMPTS[0], SAMPLED)
    late.set(logprobs=25, seed=1)
    first, second = early.step(), late.step()
    assert len(first.top) == 25
    assert (first.top, first.entropy, first.tail_mass) == (second.top, second.entropy, second.tail_mass)


# Memory: a row that outlives its turn keeps no other rows alive.


def test_rows_of_prompts_read_together_are_alone(llm: LLM) -> None:
    runs = [llm.open_run(ids, SAMPLED, seed=seed) for seed, ids in enumerate(PROMPTS)]
    for run in runs:
        run._handle.change(lambda engine, sequence: [])
    llm.driver.loop.step()  # one pass for all of them
    assert all(is_alone(run._sequence.last_logits) for run in runs)


def test_a_stage_that_fails_ends_its_run_alone_and_leaves_no_row(llm: LLM) -> None:
    def fails(ids: tuple[int, ...], logits: torch.Tensor) -> torch.Tensor:
        raise ValueError("on purpose")

    states = opened(llm)
    states[1].settings = llm.engine.check(states[1].params.replace(stages=(fails,)))
    llm.driver.loop.step()
    assert [len(state.steps) for state in states] == [1, 0, 1]
    assert all(state.last_logits is None for state in states)


def test_a_fork_in_the_middle_of_a_step_is_alone(llm: LLM) -> None:
    states, seen = opened(llm), []

    def in_the_middle(event: Event) -> None:
        if isinstance(event, Progress):
            seen.append(is_alone(states[0].last_logits))
            seen.append(is_alone(operations.fork(llm.engine, states[0]).last_logits))

    llm.driver.loop.requests[states[0]].handle.listener = in_the_middle
    llm.driver.loop.step()
    assert seen == [False, True]


def test_rows_of_steered_runs_at_rest_are_alone(tiny_folder: Path) -> None:
    worker, paused = Worker(lambda: LLM(tiny_folder)), SimpleQueue[Paused]()
    worker.opened.result(30)
    runs: list[InteractiveHandle] = []

    def together(act: Callable[[], object]) -> None:
        """What is asked while the worker waits happens in the same turn."""
        wait = threading.Event()
        worker.call(lambda: wait.wait(20))
        act()
        wait.set()
        for _ in PROMPTS:
            paused.get(timeout=20)

    def hear(event: Event) -> None:
        if isinstance(event, Paused):
            paused.put(event)

    try:
        together(lambda: runs.extend(worker.open(ids, SAMPLED, hear) for ids in PROMPTS))
        assert all(run.look(lambda _, state: is_alone(state.last_logits)).result(20) for run in runs)
        together(lambda: [run.go(2) for run in runs])
        together(lambda: [run.go(until=Breakpoint(entropy=0.0)) for run in runs])
        for run in runs:
            last_logits, recent = run.look(lambda _, state: (state.last_logits, state.recent)).result(20)
            assert is_alone(last_logits)
            assert recent is not None
            assert len(recent.positions) == 2
            assert all(is_alone(recent.find(position)) for position in recent.positions)
    finally:
        worker.close()
