"""generation_config.json is a hint: what it asks for is taken as transformers takes it, what is left out is named,
and nothing in it ever refuses."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from websockets.sync.client import connect

from byhand import LLM, SamplingParams
from byhand.checkpoint import open_checkpoint
from byhand.cli.main import main
from byhand.engine.limits import Limits
from byhand.errors import BadRequest
from byhand.sampling.params import suggested
from byhand.sampling.suggested import NUMBERS
from byhand.server.defaults import suggested as suggested_to
from byhand.server.defaults import with_defaults
from tests.checkpoints import judge, rewrite_config
from tests.serving import Running, served

PROMPT = "the quick brown fox"


def values(config: dict[str, Any]) -> dict[str, Any]:
    """What a file asks for, by SamplingParams' names; nothing may be left out."""
    found, left_out = suggested({"do_sample": True, **config}, vocab_size=384, context_length=256)
    assert left_out == []
    assert found.pop("temperature") == 1.0
    return found


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"top_k": None}, {}),
        ({"top_k": 0}, {}),
        ({"top_k": -1}, {}),
        ({"top_k": 50.0}, {"top_k": 50}),
        ({"top_p": None}, {}),
        ({"top_p": 1}, {}),
        ({"top_p": 0.0}, {"top_k": 1}),  # transformers keeps the best token then
        ({"top_p": 0.0, "top_k": 5}, {"top_k": 1}),
        ({"min_p": 0}, {}),
        ({"min_p": -0.1}, {}),
        ({"min_p": 0.1}, {"min_p": 0.1}),
        ({"typical_p": 1.0}, {}),
        ({"typical_p": 0.5}, {"typical_p": 0.5}),
        ({"repetition_penalty": 1.0}, {"repetition_penalty": 1.0}),
        ({"no_repeat_ngram_size": 0}, {}),
        ({"no_repeat_ngram_size": -3}, {}),
        ({"no_repeat_ngram_size": 3}, {"no_repeat_ngram_size": 3}),
        ({"min_new_tokens": -1}, {}),
        ({"min_new_tokens": 4}, {"min_tokens": 4}),
        ({"max_new_tokens": None}, {}),
        ({"max_new_tokens": -1}, {}),
        ({"max_new_tokens": 9}, {"max_tokens": 9}),
        ({"suppress_tokens": [5, 7, 5]}, {"banned_ids": [5, 7]}),
        ({"suppress_tokens": []}, {}),
        ({"suppress_tokens": [5, 9999]}, {"banned_ids": [5]}),  # the model cannot say it anyway
        ({"bad_words_ids": [[5], [7]]}, {"banned_ids": [5, 7]}),
        ({"bad_words_ids": [[5], [1]], "eos_token_id": [1, 2]}, {"banned_ids": [5]}),  # as in transformers
        ({"bad_words_ids": [[5]], "suppress_tokens": [6]}, {"banned_ids": [5, 6]}),
        ({"suppress_tokens": [1], "bad_words_ids": [[5], [1]], "eos_token_id": 1}, {"banned_ids": [1, 5]}),
        ({"stop_strings": "END"}, {"stop": ["END"]}),
        ({"stop_strings": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"num_beams": 1, "length_penalty": 1.0, "early_stopping": False, "penalty_alpha": None}, {}),
        ({"max_length": 20}, {}),
        ({"max_length": 256}, {}),
        ({"use_cache": True, "cache_implementation": "hybrid", "transformers_version": "4.44.0"}, {}),
        ({"renormalize_logits": True, "pad_token_id": 3, "bos_token_id": 0, "_from_model_config": True}, {}),
    ],
)
def test_what_is_understood(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert values(config) == expected


def test_what_transformers_writes_by_itself_says_nothing() -> None:
    assert suggested(GenerationConfig().to_dict(), 384, 256) == ({}, [])
    assert suggested(GenerationConfig(eos_token_id=[1, 2], pad_token_id=0).to_dict(), 384, 256) == ({}, [])


@pytest.mark.parametrize(
    "config",
    [
        {"temperature": "0.7"},
        {"temperature": True},
        {"temperature": -1.0},
        {"temperature": 1e9},
        *({name: inf} for name in NUMBERS),
        *({name: -inf} for name in NUMBERS),
        {"top_p": 2},
        {"top_p": 1.5},
        {"typical_p": 1.01},
        {"temperature": float("nan")},
        {"top_k": "many"},
        {"top_k": 2.5},
        {"top_p": -0.5},
        {"top_p": []},
        {"typical_p": 0.0},
        {"typical_p": -1},
        {"repetition_penalty": 0},
        {"repetition_penalty": -1.0},
        {"repetition_penalty": {}},
        {"suppress_tokens": 5},
        {"suppress_tokens": ["a"]},
        {"suppress_tokens": [-1]},
        {"bad_words_ids": [5]},
        {"bad_words_ids": [[5, 6]]},
        {"bad_words_ids": [[]]},
        {"stop_strings": 4},
        {"stop_strings": [""]},
        {"stop_strings": [None]},
        {"min_new_tokens": "4"},
        {"num_beams": 4},
        {"num_return_sequences": 3},
        {"penalty_alpha": 0.6},
        {"epsilon_cutoff": 0.001},
        {"guidance_scale": 1.5},
        {"sequence_bias": [[[5, 6], 2.0]]},
        {"begin_suppress_tokens": [5]},
        {"forced_bos_token_id": 5},
        {"forced_eos_token_id": 1},
        {"forced_decoder_ids": [[1, 5]]},
        {"exponential_decay_length_penalty": [5, 1.1]},
        {"max_length": 100},
        {"min_length": 10},
        {"eos_token_id": "</s>"},
        {"eos_token_id": [1, -2]},
        {"something_new": "x"},
        {"suppress_tokens": list(range(384))},
        {"suppress_tokens": list(range(500))},
        {"bad_words_ids": [[token] for token in range(384)]},
        {"token_healing": True},
    ],
)
def test_what_is_left_out_is_named(config: dict[str, Any]) -> None:
    found, left_out = suggested({"do_sample": True, **config}, vocab_size=384, context_length=256)
    assert found == {"temperature": 1.0}
    [name] = config
    assert len(left_out) == 1
    assert name in left_out[0]
    params = SamplingParams.from_checkpoint({"do_sample": True, **config}, vocab_size=384)
    assert params == SamplingParams(temperature=1.0)


@pytest.mark.parametrize(
    "config",
    [
        {"suppress_tokens": list(range(200)), "bad_words_ids": [[token] for token in range(200, 384)]},
        {"suppress_tokens": [token for token in range(384) if token != 7], "eos_token_id": 7},
        {"bad_words_ids": [[token] for token in range(384)], "eos_token_id": [1, 7]},
    ],
    ids=["two lists", "all but the end", "all but the ends"],
)
def test_bans_that_leave_nothing_to_say_are_left_out(config: dict[str, Any]) -> None:
    found, left_out = suggested(config, vocab_size=384, context_length=256)
    assert found == {}
    assert [line.split()[0] for line in left_out] == [name for name in config if name != "eos_token_id"]
    assert all("leaves no token" in line for line in left_out)


def test_bans_that_leave_one_token_hold() -> None:
    assert len(values({"suppress_tokens": list(range(383))})["banned_ids"]) == 383


@pytest.mark.parametrize(
    ("value", "samples", "named"),
    [
        (1.0, True, False),
        (1, True, False),
        (0.0, False, False),
        (2, False, True),
        (0.5, False, True),
        ("1", False, True),
    ],
)
def test_do_sample_is_applied_or_named_never_both(value: Any, samples: bool, named: bool) -> None:
    found, left_out = suggested({"do_sample": value}, 384, 256)
    assert found == ({"temperature": 1.0} if samples else {})
    assert bool(left_out) == named


@pytest.mark.parametrize("name", ["x" * 5000, "x\n\x1b[31m" * 900])
def test_a_long_name_is_cut(name: str) -> None:
    [line] = suggested({name: "y"}, 384, 256)[1]
    assert len(line) < 100
    assert line.isprintable()
    assert line.startswith("x")


def test_of_a_list_what_is_understood_is_kept() -> None:
    config = {"bad_words_ids": [[5], [6, 7]], "suppress_tokens": [8, "x"], "stop_strings": ["END", 3]}
    found, left_out = suggested(config, 384, 256)
    assert found == {"banned_ids": [5, 8], "stop": ["END"]}
    assert [name.split()[0] for name in left_out] == ["bad_words_ids", "suppress_tokens", "stop_strings"]


@pytest.mark.parametrize("do_sample", [False, None, "yes", 0])
def test_the_samplers_fields_count_only_where_it_samples(do_sample: Any) -> None:
    config = {"temperature": 0.0, "top_p": 0.0, "top_k": -1, "min_p": 7, "typical_p": "x", "repetition_penalty": 1.2}
    found, left_out = suggested({"do_sample": do_sample, **config}, 384, 256)
    assert found == {"repetition_penalty": 1.2}
    assert left_out == (["do_sample 'yes'"] if do_sample == "yes" else [])
    assert SamplingParams.from_checkpoint(config) == SamplingParams(repetition_penalty=1.2)


def test_a_hint_gives_way_to_what_is_asked_for() -> None:
    of = SamplingParams.from_checkpoint
    assert of({"min_new_tokens": 10}, max_tokens=4).min_tokens == 4
    assert of({"max_new_tokens": 4}, min_tokens=10).max_tokens is None
    assert of({"min_new_tokens": 10, "max_new_tokens": 4}).min_tokens == 4
    assert of({"suppress_tokens": [5, 6]}, allowed_ids=[5]).banned_ids == (6,)
    assert of({"stop_strings": ["x"]}, stop=["y"]).stop == ("y",)
    # What is asked for is still checked.
    with pytest.raises(BadRequest, match="`top_k` is -1"):
        of({"top_k": 5}, top_k=-1)
    with pytest.raises(BadRequest, match="`min_tokens` is 5; it must be at most max_tokens"):
        of({"max_new_tokens": 3}, min_tokens=5, max_tokens=4)


# ---- a whole model ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def hint(folder: Path, text: str | dict[str, Any]) -> Path:
    """Write a generation_config.json."""
    content = text if isinstance(text, str) else json.dumps(text)
    (folder / "generation_config.json").write_text(content)
    return folder


def test_the_tokens_are_those_of_transformers_generate(folder: Path) -> None:
    plain = LLM(folder).generate(PROMPT, SamplingParams(max_tokens=24)).ids  # type: ignore[union-attr]
    asked = {
        "suppress_tokens": plain[2:4],
        "bad_words_ids": [[plain[5]], [1]],
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 20,
        "max_new_tokens": 24,
        "eos_token_id": [1, plain[0]],
        "do_sample": False,
        "top_p": 0.0,
        "pad_token_id": 0,
    }
    llm = LLM(hint(folder, asked))
    ours = llm.generate(PROMPT, llm.checkpoint_params()).ids  # type: ignore[union-attr]
    assert llm.notes == []
    ids = torch.tensor([llm.encode(PROMPT)])
    config = GenerationConfig(**{name: value for name, value in asked.items() if name != "top_p"})
    theirs = judge(folder).generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    assert ours == theirs[0, ids.shape[1] :].tolist()
    assert ours != plain


def test_what_is_left_out_is_told_once(folder: Path) -> None:
    told: list[str] = []
    llm = LLM(hint(folder, {"num_beams": 4, "do_sample": True, "top_k": "many", "max_length": 100}), note=told.append)
    assert told == []
    for _ in range(2):
        assert llm.checkpoint_params(seed=3) == SamplingParams(temperature=1.0, seed=3)
    [line] = told
    assert line == llm.notes[-1]
    assert line.startswith("of generation_config.json byhand leaves out ")
    assert all(words in line for words in ("num_beams 4", "top_k 'many'", "max_length 100"))


def test_the_note_of_many_fields_is_cut(folder: Path) -> None:
    llm = LLM(hint(folder, {f"field_{place}": "x" for place in range(1000)}))
    llm.checkpoint_params()
    assert "field_0 'x', field_1 'x'" in llm.notes[-1]
    assert llm.notes[-1].endswith(" and 980 more")


def test_a_run_with_every_token_suppressed_is_answered(folder: Path) -> None:
    llm = LLM(hint(folder, {"suppress_tokens": list(range(1000))}))
    assert len(llm.generate(PROMPT, llm.checkpoint_params(max_tokens=2, ignore_eos=True)).ids) == 2  # type: ignore[union-attr]
    assert "suppress_tokens [0, 1, 2" in llm.notes[-1]


@pytest.mark.parametrize("text", ["{", "[1]", "null", "[" * 100_000, "version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_cannot_be_read_is_a_note(text: str, folder: Path) -> None:
    llm = LLM(hint(folder, text))
    [note] = llm.notes
    assert note.startswith(f"{folder / 'generation_config.json'} ")
    assert note.endswith("; it is left out")
    assert llm.checkpoint_params() == SamplingParams()
    assert open_checkpoint(folder).generation_config == {}


def test_a_file_of_nonsense_opens(folder: Path) -> None:
    nonsense = {"eos_token_id": {"a": "b"}, "bos_token_id": "x", "do_sample": [1], "repetition_penalty": "x"}
    rewrite_config(folder, eos_token_id=1)
    llm = LLM(hint(folder, nonsense))
    assert llm.eos_ids == {1}
    assert llm.checkpoint_params() == SamplingParams()
    assert all(name in llm.notes[-1] for name in nonsense)


# ---- commands -----------------------------------------------------------------------------------------------------

HARMLESS: list[str | dict[str, Any]] = [
    {"do_sample": False, "top_p": 0.0},
    {"do_sample": False, "top_k": -1},
    {"top_k": -1},
    {"do_sample": True, "top_k": -1, "top_p": 0.0},
    {"do_sample": True, "temperature": "warm"},
    {"min_new_tokens": 1000},
    {"suppress_tokens": [100_000, 7]},
    {"eos_token_id": "x"},
    "{",
    "[]",
]


@pytest.mark.parametrize(
    ("config", "command"),
    [(config, "run") for config in HARMLESS]
    + [(HARMLESS[place], name) for place in (0, 5) for name in ("step", "chat")],
    ids=str,
)
def test_no_command_is_refused(
    config: str | dict[str, Any], command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hint(folder, config)
    argv = {"run": ["run", PROMPT, "--max-tokens", "2"], "step": ["step", PROMPT], "chat": ["chat"]}[command]
    for asked in ([], ["--checkpoint-defaults"]):
        typed = io.BytesIO(b"q\n" if command == "step" else b"/quit\n")
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(typed, encoding="utf-8"))
        assert main([*argv, "--model", str(folder), *asked]) == 0


def test_a_long_list_of_ids_is_cut_where_it_is_suggested(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hint(folder, {"suppress_tokens": list(range(5, 200))})
    assert main(["run", PROMPT, "--max-tokens", "1", "--model", str(folder)]) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "suggests" in line]
    assert "banned_ids [5, 6, 7" in line
    assert len(line) < 200


def test_models_describes_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", str(hint(folder, "{"))]) == 0
    # A long path may break the line anywhere.
    assert "generation_config.jsonisnotJSON" in "".join(capsys.readouterr().out.split())


# ---- the server: the request, then the checkpoint, then OpenAI ----------------------------------------------------


@pytest.fixture(scope="module")
def hinted(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("hinted") / "model"))
    asked = {
        "do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.0, "min_new_tokens": 30, "max_new_tokens": 12,
        "suppress_tokens": [7, 100_000], "stop_strings": [f"stop {place}" for place in range(40)] + ["x" * 900],
    }  # fmt: skip
    return LLM(hint(folder, asked))


@pytest.fixture(scope="module")
def server(hinted: LLM) -> Iterator[Running]:
    yield from served(hinted, may_keep_runs=True)


def test_what_a_request_leaves_open_the_checkpoint_says_and_then_openai(hinted: LLM) -> None:
    limits = Limits()
    stop = tuple(f"stop {place}" for place in range(16))
    params = with_defaults(hinted, limits, {})
    assert params == SamplingParams(temperature=0.7, top_k=1, min_tokens=30, banned_ids=[7], stop=stop)
    asked = {"temperature": 0.2, "top_k": 3, "max_tokens": 4, "stop": ["y"], "banned_ids": [], "top_p": 0.5}
    assert with_defaults(hinted, limits, asked) == SamplingParams(**{**asked, "min_tokens": 4})
    shown = {"temperature": 0.7, "top_k": 1, "min_tokens": 30, "banned_ids": [7]}
    assert {name: value for name, value in suggested_to(hinted).items() if name != "stop"} == shown


@pytest.mark.parametrize("config", [{}, {"do_sample": False, "top_p": 0.0}, {"top_k": -1, "temperature": 0.3}])
def test_a_checkpoint_that_does_not_sample_leaves_it_to_openai(config: dict[str, Any], folder: Path) -> None:
    llm = LLM(hint(folder, {**config, "repetition_penalty": 1.2}))
    assert with_defaults(llm, Limits(), {}) == SamplingParams(temperature=1.0, repetition_penalty=1.2)
    assert suggested_to(llm) == {"repetition_penalty": 1.2}


def test_requests_are_answered_by_them(server: Running, hinted: LLM) -> None:
    asked = {"max_tokens": 5, "seed": 3, "return_token_ids": True}
    expected = hinted.generate(PROMPT, hinted.checkpoint_params(max_tokens=5, seed=3)).ids
    found = server.post("/v1/completions", prompt=PROMPT, **asked)
    assert found.json["choices"][0]["token_ids"] == expected
    found = server.post("/v1/chat/completions", messages=[{"role": "user", "content": PROMPT}], **asked)
    ids = hinted.chat_ids([{"role": "user", "content": PROMPT}])
    assert (
        found.json["choices"][0]["token_ids"]
        == hinted.generate(ids, hinted.checkpoint_params(max_tokens=5, seed=3)).ids
    )
    with connect(f"ws://127.0.0.1:{server.port}/live") as socket:
        said = json.loads(socket.recv(timeout=20))["model"]["suggested"]
        assert (said["temperature"], said["top_k"], "max_tokens" in said) == (0.7, 1, False)
        socket.send(json.dumps({"op": "start", "prompt": PROMPT, "params": {"seed": 3}, "top": 0}))
        while (answer := json.loads(socket.recv(timeout=20)))["event"] not in ("started", "error"):
            pass
        assert (answer["params"]["temperature"], answer["params"]["max_tokens"]) == (0.7, None)
