"""On a GPU all runs with the reference kernels: on a pretended one everywhere, on a real one where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch

from byhand import LLM, SamplingParams
from byhand.checkpoint import open_checkpoint
from byhand.kernels import reference
from byhand.models import build
from byhand.verify import DEFAULT_PROMPTS, verify
from tests.checkpoints import CONFIGS, greedy, judge, judge_greedy, random_prompt, tiny
from tests.pretend_gpu import Elsewhere, pretend

IS_REAL = torch.cuda.is_available()
PROMPTS = [random_prompt(128, length, seed=length) for length in (1, 7, 33)]
PROMPT = "A list of colors: red"


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, device="cuda" is there."""
    place: AbstractContextManager[object] = nullcontext() if IS_REAL else pretend(monkeypatch)
    with place:
        yield


@pytest.mark.parametrize("config", CONFIGS, ids="-".join)
def test_models_give_the_judges_ids(config: tuple[str, str], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    theirs = judge(tiny(tmp_path, *config))
    expected = [judge_greedy(theirs, prompt, 12) for prompt in PROMPTS]
    request.getfixturevalue("on_gpu")
    model = build(open_checkpoint(tmp_path), reference, device=torch.device("cuda"))
    assert greedy(model, PROMPTS, 12) == expected


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_a_run_is_the_cpus(quantize: str | None, request: pytest.FixtureRequest) -> None:
    def told(device: str) -> list[object]:
        llm = LLM(kernels="reference", quantize=quantize, device=device, cache_tokens=512)
        greedy, dice = SamplingParams(max_tokens=12), SamplingParams(max_tokens=12, temperature=1.0, top_p=0.9, seed=3)
        run = llm.start(PROMPT, dice)
        steps = [run.step() for _ in range(5)]
        twin = run.fork()
        run.rewind(2)
        run.step(force=steps[0].token.id)
        texts = [completion.text for completion in llm.generate([PROMPT, "Once upon a time"], greedy)]
        return [texts, run.text, twin.step().token, [place.predicted.token for place in llm.read(PROMPT).positions]]

    expected = told("cpu")
    request.getfixturevalue("on_gpu")
    assert told("cuda") == expected


@pytest.mark.skipif(not IS_REAL, reason="needs a GPU")
def test_the_embedded_model_beside_the_judge_on_a_gpu() -> None:
    with LLM(device="cuda") as llm:
        assert verify(llm, DEFAULT_PROMPTS[:8], max_tokens=40).equal


@pytest.mark.skipif(IS_REAL, reason="of the pretended one")
def test_the_pretended_gpu_refuses_what_a_real_one_does(on_gpu: None) -> None:
    there, here = torch.ones(3, 2, device="cuda"), torch.ones(3, 2)
    assert isinstance(there, Elsewhere)
    assert isinstance(there[1:] * 2 + 1, Elsewhere)
    assert (there[1:] * 2 + 1).cpu().tolist() == [[3.0, 3.0]] * 2
    with pytest.raises(RuntimeError, match="two devices"):
        there + here
    with pytest.raises(TypeError, match="on a GPU"):
        there.numpy()
    with pytest.raises(TypeError, match="on a GPU"):
        there.data_ptr()
    there[0] = 5.0
    assert there.to("cpu")[0].tolist() == [5.0, 5.0]
