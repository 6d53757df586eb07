"""How long a model reads: by its config, by its rope scaling, by --context; and every refusal for length says which."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from websockets.sync.client import connect

from byhand import LLM, SamplingParams, naive
from byhand.cli.main import main
from byhand.context import Context, read_context
from byhand.errors import BadConfig, BadRequest, PromptError, PromptTooLong
from byhand.record import Record
from tests.checkpoints import (
    CONFIGS,
    judge,
    judge_greedy,
    judge_logits,
    logits_of,
    make_checkpoint,
    open_model,
    random_prompt,
    relative_error,
)
from tests.conftest import tiny_llama
from tests.serving import Running, served

LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GIVEN = {"original_max_position_embeddings": 64}
STATED = "`max_position_embeddings` in config.json"
SCALED = "factor 4 × `original_max_position_embeddings` 64 in config.json"


def context(asked: int | None = None, learned: str | None = None, **config: Any) -> Context:
    return read_context({"max_position_embeddings": 64, **config}, learned, asked)


# ---- by the config ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("word", ["type", "rope_type"])
@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic", "llama3"])
def test_scaling_with_its_original_length_reaches_further(kind: str, word: str, section: str) -> None:
    scaling = {**LLAMA3, word: kind, **GIVEN}
    if word == "type":
        del scaling["rope_type"]
    found = context(**{section: scaling})
    assert (found.length, found.origin, found.note) == (256, SCALED, None)
    # A config that states the long length already, or a longer one, keeps it.
    for stated in (256, 1000):
        found = context(**{section: scaling, "max_position_embeddings": stated})
        assert (found.length, found.origin, found.note) == (stated, STATED, None)


def test_the_original_length_may_stand_beside_the_scaling() -> None:
    found = context(rope_scaling={"type": "yarn", "factor": 2.5}, original_max_position_embeddings=64)
    assert found.length == 160
    assert "factor 2.5 × `original_max_position_embeddings` 64" in found.origin


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic"])
def test_scaling_without_it_keeps_the_number_and_says_how_far_it_would_reach(kind: str) -> None:
    found = context(rope_scaling={"type": kind, "factor": 4.0})
    assert (found.length, found.origin) == (64, STATED)
    assert found.note is not None
    assert all(word in found.note for word in (kind, "256", "--context 256", "LLM(context=256)"))
    assert context(rope_scaling={"type": kind, "factor": 1.0}).note is None
    assert context(100, rope_scaling={"type": kind, "factor": 4.0}).note is None


@pytest.mark.parametrize("scaling", [None, {}, {"rope_theta": 1e6}, {"rope_type": "default"}, {"type": "default"}])
def test_without_scaling_the_number_is_the_context(scaling: dict[str, Any] | None) -> None:
    found = context(rope_scaling=scaling)
    assert (found.length, found.origin, found.note) == (64, STATED, None)


def test_nonsense_is_refused_by_name() -> None:
    for factor in ("four", -1, [], 1e300):
        with pytest.raises(BadConfig, match="`factor` is"):
            context(rope_scaling={"type": "yarn", "factor": factor, **GIVEN})
    with pytest.raises(BadConfig, match="`max_position_embeddings` is missing"):
        read_context({}, None, None)


@pytest.mark.parametrize("asked", [1, 63, 64, 65, 100_000])
def test_another_length_may_be_chosen_both_ways(asked: int) -> None:
    found = context(asked)
    assert (found.length, found.origin) == (asked, "--context, or LLM(context=)")
    # Beyond all that the config knows of, a person should know.
    assert (found.note is not None) == (asked > 64)


@pytest.mark.parametrize("asked", [0, -1, True, 1.5, "64", 2**31])
def test_what_is_no_length_is_refused(asked: Any) -> None:
    with pytest.raises(BadRequest, match="`context` is"):
        context(asked)


# ---- the numbers are those of transformers ------------------------------------------------------------------------

YARN = {"rope_type": "yarn", "factor": 4.0, **GIVEN}
SCALINGS: dict[str, dict[str, Any]] = {
    "yarn": {"rope_scaling": YARN},
    "yarn, rope_parameters": {"rope_parameters": {**YARN, "rope_theta": 1000.0}, "rope_theta": None},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0, **GIVEN}},
    "llama3": {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32}, "max_position_embeddings": 100},
    "none": {},
}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("kind", SCALINGS)
def test_beyond_the_stated_length_the_numbers_are_those_of_transformers(kind: str, family: str, tmp_path: Path) -> None:
    folder = make_checkpoint(
        tmp_path / "model",
        {**CONFIGS[family, "tiny"], "max_position_embeddings": 64, "head_dim": 16, **SCALINGS[kind]},
    )
    ids = random_prompt(128, 250, seed=3)
    assert relative_error(logits_of(open_model(folder), ids, cuts=(60, 130)), judge_logits(judge(folder), ids)) < 1e-5


def dynamic(folder: Path, **changes: Any) -> Path:
    """A model of 64 positions, and by its scaling of 256."""
    scaling = {"type": "dynamic", "factor": 4.0, **GIVEN}
    return tiny_llama(folder, max_position_embeddings=64, rope_scaling=scaling, head_dim=16, **changes)


def test_dynamic_scaling_grows_with_the_text_as_in_transformers_generate(tmp_path: Path) -> None:
    folder = dynamic(tmp_path / "model")
    llm, prompt = LLM(folder), random_prompt(384, 50, seed=4)
    expected = judge_greedy(judge(folder), prompt, 60)
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    assert llm.generate(prompt, params).ids == expected
    assert naive.generate(llm, prompt, 20)[50:] == expected[:20]
    # However it is fed, a position is turned by the length that the text had there: so rewinds and forks agree.
    run = llm.start([*prompt, *expected[:30]], params)
    run.rewind(10)
    assert [run.step().token.id for _ in range(30)] == expected[20:50]


@torch.no_grad()
def test_a_long_prompt_under_dynamic_scaling_is_read_as_transformers_reads_token_by_token(tmp_path: Path) -> None:
    folder = dynamic(tmp_path / "model")
    theirs, ids, cache, rows = judge(folder), random_prompt(384, 120, seed=5), None, []
    for token in ids:
        out = theirs(torch.tensor([[token]]), cache=cache, use_cache=True)
        cache = out.past_key_values
        rows.append(out.logits[0, -1])
    assert relative_error(torch.as_tensor(LLM(folder).logits(ids)), torch.stack(rows)) < 1e-5


# ---- learned positions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "name"), [("gpt2", "n_positions"), ("opt", "max_position_embeddings")])
def test_learned_positions_end_with_their_table(family: str, name: str, tmp_path: Path) -> None:
    from tests.conftest import write_tokenizer

    folder = make_checkpoint(tmp_path / family, {**CONFIGS[family, "tiny"], "vocab_size": 384})
    write_tokenizer(folder)
    words = rf"`context` is 257; .* table of 256 learned positions \(`{name}`\)"
    with pytest.raises(BadRequest, match=words) as refused:
        LLM(folder, context=257)
    assert refused.value.param == "context"
    llm = LLM(folder, context=100)
    assert (llm.context_length, llm.notes) == (100, [])
    with pytest.raises(PromptTooLong, match="up to 256"):
        llm.generate([5] * 101)
    with pytest.raises(PromptTooLong, match=f"this model reads 256, by `{name}` in config.json") as too_long:
        LLM(folder).generate([5] * 257)
    assert "--context" not in str(too_long.value)


@pytest.mark.parametrize("key", [key for key in CONFIGS if key[1] == "tiny"], ids=lambda key: key[0])
def test_every_architecture_reads_beyond_its_number_or_says_that_it_cannot(key: Any, tmp_path: Path) -> None:
    from byhand.checkpoint import open_checkpoint
    from byhand.models import context_of

    folder = make_checkpoint(tmp_path / "model", CONFIGS[key])
    ids = random_prompt(128, 300, seed=1)
    try:
        length = context_of(open_checkpoint(folder), 300).length
    except BadRequest:
        return
    assert length == 300
    assert torch.isfinite(logits_of(open_model(folder), ids)).all()


# ---- a whole model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose config states 64 positions, without a word on scaling."""
    return tiny_llama(tmp_path_factory.mktemp("context") / "llama", max_position_embeddings=64)


def test_the_cache_and_the_run_follow(folder: Path) -> None:
    plain, short, long = LLM(folder), LLM(folder, context=20), LLM(folder, context=200)
    for llm, length in ((plain, 64), (short, 20), (long, 200)):
        assert (llm.context_length, llm.context.length) == (length, length)
        assert f"context {length}" in repr(llm)
        assert llm.engine.cache.num_pages == 16 * -(-length // 16)
        ended = llm.generate([5] * 10, SamplingParams(ignore_eos=True))
        assert (len(ended.prompt_ids) + len(ended.ids), ended.finish_reason) == (length, "length")
    assert plain.notes == short.notes == []
    assert any("context of 200" in note for note in long.notes)


WAYS: dict[str, Callable[[LLM], object]] = {
    "generate": lambda llm: llm.generate([5] * 300),
    "text": lambda llm: llm.generate("dog " * 300),
    "huge text": lambda llm: llm.generate("dog " * 30_000),
    "chat": lambda llm: llm.chat([{"role": "user", "content": "dog " * 300}]),
    "start": lambda llm: llm.start([5] * 300),
    "read": lambda llm: llm.read([5] * 300),
    "score": lambda llm: llm.score([5] * 300),
    "logits": lambda llm: llm.logits([5] * 300),
    "insert": lambda llm: llm.start([5] * 10).insert([5] * 300),
    "insert text": lambda llm: llm.start([5] * 10).insert("dog " * 300),
}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (None, "64, by `max_position_embeddings` in config.json"),
        (32, "32, by --context, or LLM(context=)"),
    ],
)
def test_every_refusal_names_the_flag_and_where_the_number_came_from(
    asked: int | None, words: str, folder: Path
) -> None:
    llm = LLM(folder, context=asked)
    for way in WAYS.values():
        with pytest.raises(PromptError) as refused:
            way(llm)
        assert words in str(refused.value)
        assert "--context" in str(refused.value)
        assert "LLM(context=" in str(refused.value)


def test_the_command_line_chooses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BYHAND_MODEL", raising=False)
    prompt = ["--ids", ",".join(["5"] * 70), "--model", str(folder), "--max-tokens", "3"]
    assert main(["run", *prompt]) == 2
    err = capsys.readouterr().err
    assert "the prompt has 70 tokens; this model reads 64, by `max_position_embeddings` in config.json" in err
    assert "--context" in err
    target = tmp_path / "record.json"
    assert main(["run", *prompt, "--context", "100", "--record", str(target)]) == 0
    assert "context of 100" in capsys.readouterr().err
    # Longer than what the model reads by itself: the record can be checked with the same flag.
    assert main(["replay", str(target), "--model", str(folder)]) == 2
    assert "--context" in capsys.readouterr().err
    assert main(["replay", str(target), "--model", str(folder), "--context", "100"]) == 0
    assert main(["run", *prompt, "--context", "0"]) == 2
    assert "`context` is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "length", "words"),
    [
        ({}, 64, "64 tokens, by `max_position_embeddings` in config.json"),
        ({"rope_scaling": YARN}, 256, f"256 tokens, by {SCALED}"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 64, "64 tokens, by `max_position_embeddings`"),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024, "1024 tokens, by `n_positions` in config.json"),
        ({"model_type": "phi3", "rope_scaling": {"type": "longrope"}}, 64, "64 tokens, by"),
        ({"rope_scaling": {"type": "yarn", "factor": "x"}}, None, "unknown"),
    ],
)
def test_models_shows_it(
    changes: dict[str, Any], length: int | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**CONFIGS["llama", "tiny"], "max_position_embeddings": 64, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert main(["models", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert words in shown
    assert "\\n" not in shown
    assert ("would reach 256" in shown) == ("linear" in str(changes))
    assert main(["models", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["context"] and facts["context"]["length"]) == length


# ---- served -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    yield from served(LLM(folder, context=100), may_keep_runs=True)


def test_clients_are_told(server: Running, folder: Path) -> None:
    told = "this model reads 100, by --context, or LLM(context=)"
    for path, body in {
        "/v1/completions": {"prompt": [5] * 101},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "dog " * 200}]},
        "/read": {"prompt": "dog " * 200},
    }.items():
        error = server.post(path, **body).error
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        assert told in error["message"]
    answer = server.post("/v1/completions", prompt=[5] * 90, max_tokens=50, ignore_eos=True)
    assert (answer.json["usage"]["total_tokens"], answer.json["choices"][0]["finish_reason"]) == (100, "length")
    assert server.get("/v1/models").json["data"][0]["context_length"] == 100
    long = LLM(folder, context=150)
    run = long.start([5] * 120, SamplingParams(max_tokens=2, ignore_eos=True))
    list(run)
    record: Record = run.record()
    with connect(f"ws://127.0.0.1:{server.port}/live") as socket:

        def ask(**frame: Any) -> dict[str, Any]:
            socket.send(json.dumps(frame))
            while (answer := json.loads(socket.recv(timeout=20)))["event"] not in ("error", "paused", "finished"):
                pass
            return dict(answer)

        for frame in ({"op": "start", "prompt": [5] * 101}, {"op": "load", "record": record.to_json()}):
            refused = ask(**frame)
            assert refused["code"] == "context_length_exceeded"
            assert told in refused["message"]
        assert ask(op="start", prompt=[5] * 90)["event"] == "paused"
        refused = ask(op="insert", ids=[5] * 20)
        assert refused["event"] == "error"
        assert "100, by --context, or LLM(context=)" in refused["message"]
