"""Keys and values in bfloat16: half the memory, the same answers from every backend, and float32's ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from byhand import LLM, SamplingParams
from byhand.cli.main import main
from byhand.errors import BadRequest
from byhand.kernels import backends
from byhand.verify import DEFAULT_PROMPTS
from tests.checkpoints import CONFIGS, KVCacheManager, PagedRun, open_model, random_prompt, relative_error, tiny

FAMILIES = sorted({family for family, _ in CONFIGS})


def logits(folder: Path, kernels: str, dtype: torch.dtype) -> torch.Tensor:
    """A prompt in two chunks, then eight single tokens."""
    model = open_model(folder, kernels=kernels)
    manager, run = KVCacheManager(model, dtype=dtype), PagedRun(random_prompt(128, 60, seed=2))
    return torch.cat([manager.step([(run, end)])[0] for end in (40, 52, *range(53, 61))])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_backend_rounds_alike(family: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path, family)
    truth = logits(folder, "reference", torch.bfloat16)
    full = logits(folder, "reference", torch.float32)
    for kernels in set(backends()) - {"reference"}:
        # A sum that falls near the middle of two bfloat16 may round either way, so not as close as in float32.
        assert relative_error(logits(folder, kernels, torch.bfloat16), truth) < 2e-3
    assert 1e-5 < relative_error(truth, full) < 5e-2


def test_half_the_memory_and_twice_the_room(tiny_folder: Path) -> None:
    caches = [LLM(tiny_folder, cache_dtype=dtype, cache_tokens=160).engine.cache for dtype in ("auto", "bfloat16")]
    assert [cache.dtype for cache in caches] == [torch.float32, torch.bfloat16]
    assert caches[0].page_bytes == 2 * caches[1].page_bytes
    assert caches[0].keys[0].nbytes == 2 * caches[1].keys[0].nbytes


def test_the_embedded_models_ids_are_those_of_a_float32_cache() -> None:
    params = SamplingParams(max_tokens=40)
    with LLM() as full, LLM(cache_dtype="bfloat16") as half:
        answers = [llm.generate(list(DEFAULT_PROMPTS), params) for llm in (full, half)]
    pairs = list(zip(*answers, strict=True))  # type: ignore[arg-type]
    assert len(pairs) == 8
    # Where two candidates are closer than the rounding, the shorter keys may choose the other one; seen: in none.
    assert sum(one.ids == other.ids for one, other in pairs) >= 7  # type: ignore[attr-defined]


def test_pages_are_found_again_and_runs_rewound(tiny_folder: Path) -> None:
    with LLM(tiny_folder, cache_dtype="bfloat16") as llm:
        run = llm.start("the quick brown fox jumps over a lazy dog, and then the dog sleeps. one two three")
        first = [run.step().token.id for _ in range(6)]
        run.rewind(6)
        assert [run.step().token.id for _ in range(6)] == first
        again = llm.start("the quick brown fox jumps over a lazy dog, and then the dog sleeps. one two three")
        step = again.step()
        assert step.positions_reused > 0
        assert step.token.id == first[0]


def test_other_dtypes_are_refused(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadRequest, match="`cache_dtype` is 'float16'; it must be one of auto, float32, bfloat16"):
        LLM(tiny_folder, cache_dtype="float16")
    assert main(["run", "a", "-m", str(tiny_folder), "--cache-dtype", "int8"]) == 2
    assert "--cache-dtype: invalid choice: 'int8'" in capsys.readouterr().err
    assert main(["run", "a", "-m", str(tiny_folder), "--cache-dtype", "bfloat16", "--max-tokens", "3"]) == 0
