"""Random sequences of operations on several runs: always what a fresh run of the same ids would do; no page is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from byhand import LLM, Run, SamplingParams

TINY: dict[str, Path] = {}
TIE = 1e-4


class Runs(RuleBasedStateMachine):
    """Up to four runs on a small cache, pushed about."""

    llm: LLM

    @initialize(
        prompt=st.lists(st.integers(2, 383), min_size=1, max_size=40),
        temperature=st.sampled_from([0.0, 0.0, 1.0]),
        max_rows=st.sampled_from([3, 16, 512]),
    )
    def begin(self, prompt: list[int], temperature: float, max_rows: int) -> None:
        self.llm.engine.max_batched_tokens = max_rows
        params = SamplingParams(temperature=temperature, seed=11, ignore_eos=True)
        self.runs: list[Run] = [self.llm.start(prompt, params)]

    def pick(self, number: int) -> Run:
        return self.runs[number % len(self.runs)]

    @rule(number=st.integers(0, 3), count=st.integers(1, 6))
    def step(self, number: int, count: int) -> None:
        run = self.pick(number)
        for _ in range(count):
            if run.finish_reason is None:
                run.step()

    @rule(number=st.integers(0, 3), token=st.integers(2, 383))
    def force(self, number: int, token: int) -> None:
        run = self.pick(number)
        if run.finish_reason is None:
            assert run.step(force=token).token.id == token

    @rule(number=st.integers(0, 3), ids=st.lists(st.integers(2, 383), min_size=1, max_size=20))
    def insert(self, number: int, ids: list[int]) -> None:
        run = self.pick(number)
        if len(run.ids) + len(ids) <= 200:
            run.insert(ids)

    @rule(number=st.integers(0, 3), place=st.integers(0, 300), token=st.integers(2, 383))
    def edit(self, number: int, place: int, token: int) -> None:
        run = self.pick(number)
        run.edit(place % len(run.ids), token)

    @rule(number=st.integers(0, 3), count=st.integers(0, 40))
    def rewind(self, number: int, count: int) -> None:
        run = self.pick(number)
        run.rewind(min(count, len(run.ids) - 1))

    @rule(number=st.integers(0, 3))
    def fork(self, number: int) -> None:
        if len(self.runs) < 4:
            self.runs.append(self.pick(number).fork())

    @rule(number=st.integers(0, 3))
    def drop(self, number: int) -> None:
        if len(self.runs) > 1:
            self.runs.pop(number % len(self.runs))

    @rule(number=st.integers(0, 3))
    def next_token_is_that_of_a_fresh_run(self, number: int) -> None:
        run = self.pick(number)
        if run.finish_reason is not None:
            return
        fresh = LLM.start_run(self.other, run.ids, run.params, seed=run.seed, choice=run.choice).step()
        step = run.fork().step()
        assert step.token.id == fresh.token.id or fresh.margin < TIE
        assert abs(step.logprob - fresh.logprob) < 1e-3

    @invariant()
    def pages_cover_what_is_computed(self) -> None:
        for run in getattr(self, "runs", []):
            state = run._sequence
            assert [len(table) for table in state.page_tables] == [-(-state.computed // 16)]
            assert len(state.steps) == state.generated == len(state.step_params)
            assert [step.token.id for step in state.steps] == state.ids[state.prompt_length :]
        held = {page for run in getattr(self, "runs", []) for page in run._sequence.page_tables[0]}
        assert self.llm.engine.pages_in_use == len(held)

    def teardown(self) -> None:
        self.runs = []  # a handle is in no cycle: its pages are back as soon as nobody refers to it
        assert self.llm.engine.pages_in_use == 0


def run_sequences(tiny_folder: Path, max_examples: int) -> None:
    """Let hypothesis make up sequences, and shrink one that fails."""
    Runs.llm, Runs.other = LLM(tiny_folder), LLM(tiny_folder)  # type: ignore[attr-defined]
    Runs.TestCase.settings = settings(
        max_examples=max_examples, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    Runs.TestCase("runTest").runTest()


def test_any_sequence_of_operations(tiny_folder: Path) -> None:
    run_sequences(tiny_folder, 60)


@pytest.mark.full
def test_very_many_sequences_of_operations(tiny_folder: Path) -> None:
    run_sequences(tiny_folder, 2000)
