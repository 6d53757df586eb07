"""benchmarks/prefill.py: what it counts, on models so small that the counts are known or can be seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.prefill import Places, documents, greedy_runs, logits_of
from byhand.checkpoint import open_checkpoint
from byhand.kernels.cpu import MANY_ROWS, Cpu
from byhand.models import Model, build
from tests.checkpoints import logits_of as truth_of
from tests.checkpoints import random_prompt, tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    checkpoint = open_checkpoint(tiny(tmp_path_factory.mktemp("prefill"), dtype=torch.bfloat16))
    return {way: build(checkpoint, Cpu(prefill=way)) for way in ("exact", "fast")}


def test_logits_are_those_of_a_run(models: dict[str, Model]) -> None:
    ids = random_prompt(128, 3 * MANY_ROWS, seed=1)
    blocks = list(logits_of(models["exact"], ids))
    assert max(map(len, blocks)) < MANY_ROWS
    torch.testing.assert_close(torch.cat(blocks), truth_of(models["exact"], ids), rtol=1e-5, atol=1e-4)


def test_the_same_way_twice_differs_nowhere_and_fast_differs_a_little(models: dict[str, Model]) -> None:
    ids = random_prompt(128, 3 * MANY_ROWS, seed=2)
    same, other = Places(), Places()
    same.add({"exact": models["exact"], "fast": models["exact"]}, ids)
    other.add(models, ids)
    found = same.to_json()
    assert found.pop("tokens") == len(ids)
    assert set(found.values()) == {0.0}
    found = other.to_json()
    assert found["kl"] > 0
    assert 0 < found["largest_logit_difference"] < 2
    assert (found["differ_per_1000"] > 0) == (found["largest_margin_of_a_difference"] > 0)


def test_another_best_token_is_counted_with_its_margin() -> None:
    def saying(*rows: Sequence[float]) -> Any:
        logits = torch.tensor(rows)
        kernels = SimpleNamespace(forward=lambda batch, cache: logits[: len(batch.input_ids)], logits=lambda x: x)
        return SimpleNamespace(layer_specs=(), **vars(kernels))

    places = Places()
    exact, fast = saying((3.0, 2.5, 0.0), (0.0, 1.0, 5.0)), saying((2.5, 3.0, 0.0), (0.0, 1.0, 5.0))
    places.add({"exact": exact, "fast": fast}, [1, 2])
    found = places.to_json()
    assert (found["tokens"], found["differ_per_1000"]) == (2, 500.0)
    assert (found["largest_margin_of_a_difference"], found["largest_logit_difference"]) == (0.5, 0.5)


def test_greedy_runs_are_counted_up_to_where_they_part() -> None:
    def answering(*answers: list[int]) -> Any:
        left = list(answers)
        return SimpleNamespace(generate=lambda prompt, params: SimpleNamespace(ids=left.pop(0)))

    exact, fast = answering([1, 2, 3, 4], [5, 6]), answering([1, 2, 9, 4], [5, 6])
    found = greedy_runs({"exact": exact, "fast": fast}, [[0], [0]])
    assert found == {"runs": 2, "parted": 1, "tokens_in_common": 4, "parted_per_1000": 200.0}


def test_documents_are_long_enough_for_the_fast_way(tmp_path: Path) -> None:
    llm: Any = SimpleNamespace(tokenizer=SimpleNamespace(encode=lambda text: [ord(letter) for letter in text]))
    texts = ["short", "a" * 2 * MANY_ROWS, "b" * 10_000, "c" * 10_000]
    found = list(documents(llm, texts, tokens=3 * MANY_ROWS))
    assert [len(ids) for ids in found] == [2 * MANY_ROWS, 512]
