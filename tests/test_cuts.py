"""A run is its ids and its parameters: cut anywhere, and made again from them alone, it goes on the same."""

from __future__ import annotations

from typing import Any

import pytest

from byhand import LLM, SamplingParams
from byhand.engine.operations import refill
from byhand.run import Run

PROMPT = "Once upon a time"
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}}, "required": ["name"]}
LONG: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True}
# Stop strings that the text holds, begins to hold again and again, or never holds.
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": LONG,
    "sampled": {**LONG, "temperature": 1.0, "top_p": 0.9, "seed": 4},
    "stop strings": {**LONG, "stop": ("a big", "was a little girl, who", "there were")},
    "one that is met": {**LONG, "temperature": 1.0, "seed": 2, "stop": (". ", "e t", "zzz")},
    "min_tokens": {**LONG, "min_tokens": 12, "stop": (" a", " the", " was")},
    "penalties": {**LONG, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.3},
    "no n-gram again": {**LONG, "no_repeat_ngram_size": 2},
    "a schema": {"max_tokens": 60, "json_schema": SCHEMA, "temperature": 0.8, "seed": 3},
    "a regex": {"max_tokens": 40, "regex": "[a-z ]{5,30}[.]", "temperature": 0.9, "seed": 5},
    "the end": {"max_tokens": 400, "temperature": 0.8, "seed": 11},
}


@pytest.fixture(scope="module")
def embedded() -> LLM:
    return LLM()


def told(run: Run) -> dict[str, Any]:
    """All that somebody sees of a run."""
    texts = [step.text for step in run.steps]
    return {
        "ids": run.ids,
        "text": run.text,
        "joined": "".join(texts),
        "chosen": [(step.token, step.logprob, step.draw, step.chain, step.phase) for step in run.steps[1:]],
        "ending": (run.finish_reason, run.stop_reason),
    }


def whole(llm: LLM, params: SamplingParams) -> tuple[Run, list[int]]:
    run = llm.start(PROMPT, params)
    list(run)
    every = len(run.steps) // 20 + 1
    return run, list(range(0, len(run.steps), every))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_is_rewound_anywhere_goes_on_the_same(embedded: LLM, name: str) -> None:
    run, cuts = whole(embedded, SamplingParams(**SETTINGS[name]))
    expected = told(run)
    for cut in cuts:
        run.rewind(len(run.steps) - cut)
        list(run)
        assert told(run)["ids"] == expected["ids"], cut
        assert {**told(run), "chosen": None} == {**expected, "chosen": None}, cut


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_is_made_again_from_its_ids_goes_on_the_same(embedded: LLM, name: str) -> None:
    params = SamplingParams(**SETTINGS[name])
    run, cuts = whole(embedded, params)
    expected = told(run)
    params = params.replace(seed=run.seed)
    for cut in cuts:
        again = embedded.open_run(run.prompt_ids, params, seed=run.seed)
        refill(embedded.engine, again._sequence, run.steps[:cut], run.step_params[:cut], again._sequence.settings, 0)
        list(again)
        assert {**told(again), "chosen": None} == {**expected, "chosen": None}, cut


@pytest.mark.parametrize("name", SETTINGS)
def test_a_fork_made_anywhere_goes_on_the_same(embedded: LLM, name: str) -> None:
    run, cuts = whole(embedded, SamplingParams(**SETTINGS[name]))
    expected = told(run)
    again = embedded.start(PROMPT, run.params)
    for place in range(len(run.steps)):
        if place in cuts:
            twin = again.fork()
            list(twin)
            assert told(twin) == expected, place
        again.step()
