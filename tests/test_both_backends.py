"""bfloat16 weights give the ids that transformers gives in float32 on the same numbers, whichever kernels run.

`make test` runs the parity tests of whole models over both backends too (`pytest --kernels`).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from byhand import LLM
from byhand.kernels import backends
from byhand.verify import DEFAULT_PROMPTS, verify
from tests.checkpoints import (
    CONFIGS,
    greedy,
    judge,
    judge_greedy,
    judge_logits,
    logits_of,
    open_model,
    random_prompt,
    relative_error,
    tiny,
)

EACH_BACKEND = pytest.mark.parametrize("kernels", backends())
PROMPTS = [random_prompt(128, length, seed=length) for length in (1, 7, 33)]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model whose weights are stored in bfloat16, and the judge, which reads them as float32."""

    @functools.cache
    def make(config: tuple[str, str]) -> tuple[Path, PreTrainedModel, list[list[int]]]:
        folder = tiny(tmp_path_factory.mktemp("tiny"), *config, dtype=torch.bfloat16)
        theirs = judge(folder)
        assert {parameter.dtype for parameter in theirs.parameters()} == {torch.float32}
        return folder, theirs, [judge_greedy(theirs, prompt, 24) for prompt in PROMPTS]

    return make


@EACH_BACKEND
@pytest.mark.parametrize("config", CONFIGS, ids="-".join)
def test_bfloat16_weights_give_float32s_ids(config: tuple[str, str], kernels: str, judged: Any) -> None:
    folder, theirs, expected = judged(config)
    ours = open_model(folder, kernels=kernels)
    assert ours.dtype == "bfloat16"
    assert relative_error(logits_of(ours, PROMPTS[-1]), judge_logits(theirs, PROMPTS[-1])) < 2e-5
    assert greedy(ours, PROMPTS, 24) == expected


@pytest.mark.parametrize(("kernels", "prompts", "tokens"), [("cpu", 8, 40), ("reference", 3, 12)])
def test_the_embedded_model_beside_the_judge(kernels: str, prompts: int, tokens: int) -> None:
    with LLM(kernels=kernels) as llm:
        assert llm.identity.dtype == "bfloat16"
        report = verify(llm, DEFAULT_PROMPTS[:prompts], max_tokens=tokens)
    assert len(report.rows) == 3 * prompts
    assert report.equal
    assert not any(row.is_tie for row in report.rows)


def test_the_option_reaches_both_ways_of_opening(request: pytest.FixtureRequest, tiny_folder: Path) -> None:
    chosen = request.config.getoption("--kernels")
    opened = [type(LLM(tiny_folder).model.kernels).__name__, type(open_model(tiny_folder).kernels).__name__]  # type: ignore[attr-defined]
    assert opened == {"cpu": ["Cpu", "Cpu"], "reference": ["module", "module"], None: ["Cpu", "module"]}[chosen]
