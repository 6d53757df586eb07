"""verify: what is equal is called equal, what differs is found, and a tie is told from a bug."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
import torch

from byhand import LLM, BadRequest, MissingExtra
from byhand.verify import REQUIREMENT, TIE_MARGIN, Row, verify
from tests.checkpoints import CONFIGS, make_checkpoint
from tests.conftest import tiny_llama, write_tokenizer

PROMPTS = ["the quick brown fox", [5, 6, 7, 1, 0]]


def test_a_sound_engine_is_equal_in_every_method(llm: LLM) -> None:
    heard: list[str] = []
    report = verify(llm, PROMPTS, max_tokens=12, sampled=True, seed=3, progress=heard.append)
    assert report.equal
    assert all(row.equal for row in report.rows)
    methods = ["naive loop", "cached loop", "batch", "sampled, the same dice"]
    assert [row.method for row in report.rows] == [method for method in methods for _ in PROMPTS]
    assert heard == ["transformers generate", *methods[:3], "sampled"]
    assert "float32 weights" in report.judge
    assert report.to_json()["equal"] is True
    assert {row.tokens for row in report.rows} == {12}


@pytest.mark.parametrize("family", ["gpt2", "opt", "qwen2", "qwen3", "mistral"])
def test_every_family(tmp_path: Path, family: str) -> None:
    variant = {"mistral": ("mistral", "mistral_window")}.get(family, (family, "tiny"))
    config = {**CONFIGS.get(variant, CONFIGS["llama", "mistral_window"]), "vocab_size": 384}
    folder = make_checkpoint(tmp_path / family, {**config, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2})
    write_tokenizer(folder)
    report = verify(LLM(folder), PROMPTS, max_tokens=12, sampled=True, seed=1)
    assert report.equal, report


def test_a_bfloat16_checkpoint_is_judged_in_float32(tmp_path: Path) -> None:
    config = {**CONFIGS["llama", "tiny"], "vocab_size": 384, "bos_token_id": 0, "eos_token_id": 1}
    folder = make_checkpoint(tmp_path / "bf16", config, dtype=torch.bfloat16)
    write_tokenizer(folder)
    llm = LLM(folder)
    assert llm.model.dtype == "bfloat16"
    assert verify(llm, PROMPTS, max_tokens=24).equal


def test_a_wrong_engine_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(tiny_llama(tmp_path / "llama"))
    real = llm.model.logits
    # A model that is off by a little everywhere, and by much for one token.
    monkeypatch.setattr(llm.model, "logits", lambda hidden: real(hidden).index_add(
        1, torch.tensor([33]), torch.full((len(hidden), 1), 60.0)
    ))  # fmt: skip
    report = verify(llm, PROMPTS, max_tokens=6)
    assert not report.equal
    row = report.rows[0]
    assert (row.place, row.got) == (0, 33)
    assert row.expected not in (None, 33)
    assert row.expected_margin is not None
    assert row.got_margin is not None
    assert row.got_margin > 10
    assert not row.is_tie


def test_a_tie_is_told_from_a_bug() -> None:
    row = Row("cached loop", "p", 4, False, 2, 7, 8, TIE_MARGIN / 2, TIE_MARGIN / 3)
    assert row.is_tie
    assert row.is_right
    assert not Row("cached loop", "p", 4, False, 2, 7, 8, TIE_MARGIN * 2, 0.0).is_right
    assert not Row("cached loop", "p", 4, False, 4, 7, None, None, None).is_tie  # one ended early: no tie


def test_no_transformers_is_one_sentence(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtra) as caught:
        verify(llm, PROMPTS)
    command = f"{sys.executable} -m pip install 'transformers>=5.0'"
    assert str(caught.value) == f"verify needs transformers, the judge ({command})"
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert extras["verify"] == [REQUIREMENT]


def test_bad_max_tokens(llm: LLM) -> None:
    with pytest.raises(BadRequest, match="`max_tokens` is 0"):
        verify(llm, PROMPTS, max_tokens=0)
