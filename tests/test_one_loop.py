"""One loop for everybody: a script, the server and /live admit, preempt and share pages alike."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from byhand import LLM, SamplingParams
from byhand.engine.worker import Worker
from tests.steering import Helm
from tests.test_worker import Ear

COUNT, PROMPT, NEW, CACHE = 60, 64, 60, 2048
PARAMS = SamplingParams(max_tokens=NEW, ignore_eos=True)
# What the server computed of this in November 2026, before scripts had its scheduler; a script computed 12,265.
ROWS = 9_090

Tokens = list[list[int]]


def prompts() -> Tokens:
    dice = random.Random(14)
    return [dice.choices(range(2, 384), k=PROMPT) for _ in range(COUNT)]


def by_generate(llm: LLM) -> Tokens:
    return [completion.ids for completion in llm.generate(prompts(), PARAMS)]


def by_server(llm: LLM) -> Tokens:
    worker, ears = Worker(llm), []
    worker.opened.result(20)
    for ids in prompts():
        ears.append(Ear(1))
        worker.submit(ids, PARAMS, ears[-1])
    for ear in ears:
        ear.wait()
    worker.close()
    return [ear.ids() for ear in ears]


def by_live(llm: LLM) -> Tokens:
    worker = Worker(llm)
    worker.opened.result(20)
    helms = []
    for ids in prompts():
        helms.append(Helm.open(worker, ids, PARAMS))
        helms[-1].handle.go().result(20)
    for helm in helms:
        helm.rest()
    found = [helm.told for helm in helms]
    worker.close()
    return found


@pytest.fixture(scope="module")
def alone(tiny_folder: Path) -> Tokens:
    llm = LLM(tiny_folder)
    return [llm.generate(ids, PARAMS).ids for ids in prompts()]


@pytest.mark.parametrize("way", [by_generate, by_server, by_live])
def test_sixty_prompts_in_a_small_cache(tiny_folder: Path, alone: Tokens, way: Callable[[LLM], Tokens]) -> None:
    llm = LLM(tiny_folder, cache_tokens=CACHE)
    forward, rows = llm.engine.forward, []

    def counting(chunks: Any, **options: Any) -> Any:
        rows.append(sum(chunk.rows for chunk in chunks))
        return forward(chunks, **options)

    llm.engine.forward = counting  # type: ignore[method-assign]
    assert way(llm) == alone
    assert sum(rows) <= ROWS
