"""The command line on a tiny model, in process: what it prints where, its JSON, its exit codes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import byhand.verify
from byhand import LLM, Record, SamplingParams
from byhand.cli.main import build_parser
from byhand.cli.manual import renewed
from byhand.cli.models import architectures, cached_models
from byhand.cli.options import given_sampling, model_name, parse_settings, typed_fields
from byhand.cli.talk import open_model
from byhand.engine.engine import Engine
from byhand.run import Run
from byhand.verify import Report, Row
from tests.commandline import Cli
from tests.conftest import tiny_llama

PROMPT = "the quick brown"
GREEDY = SamplingParams(max_tokens=12)


# run


def test_run_prints_the_continuation_alone(cli: Cli, llm: LLM) -> None:
    assert cli("run", PROMPT, "--max-tokens", "12") == 0
    assert cli.out == llm.generate(PROMPT, GREEDY).text + "\n"
    assert cli.err == ""


def test_run_as_json_is_the_completion(cli: Cli, llm: LLM) -> None:
    done = llm.generate(PROMPT, GREEDY)
    found = cli.json("run", PROMPT, "--max-tokens", "12")
    names = ("model", "prompt_ids", "ids", "text", "finish_reason", "stop_reason", "usage", "steps")
    assert tuple(found) == names
    assert found["model"] == cli.folder.name
    assert (found["prompt_ids"], found["ids"], found["text"]) == (done.prompt_ids, done.ids, done.text)
    assert (found["finish_reason"], found["stop_reason"]) == ("length", None)
    assert found["usage"] == {"prompt_tokens": len(done.prompt_ids), "completion_tokens": 12, "cached_tokens": 0}
    assert [step["token"]["id"] for step in found["steps"]] == done.ids
    assert len(found["steps"][0]["top"]) >= 10


def test_the_prompt_may_come_from_stdin_or_as_ids(cli: Cli, llm: LLM) -> None:
    ids = llm.encode(PROMPT)
    assert cli("run", "-", "--json", "--max-tokens", "1", stdin=PROMPT + "\n") == 0
    assert json.loads(cli.out)["prompt_ids"] == ids
    assert cli("run", "--json", "--max-tokens", "1", stdin=PROMPT + "\r\n") == 0
    assert json.loads(cli.out)["prompt_ids"] == ids
    typed = ["--ids", ",".join(map(str, ids[:2])), "--ids", ",".join(map(str, ids[2:]))]
    assert cli.json("run", *typed, "--max-tokens", "1")["prompt_ids"] == ids


def test_every_sampling_field_has_a_flag_and_a_setting(cli: Cli) -> None:
    examples = {"number": "0.5", "integer": "3", "ids": "5,6", "texts": "end", "biases": "7=-1.5", "flag": ""}
    values = {"number": 0.5, "integer": 3, "ids": [5, 6], "texts": ["end"], "biases": {7: -1.5}, "flag": True}
    for kind, text in {"text": "(red|blue)+", "schema": '{"type":"object"}'}.items():
        examples[kind] = values[kind] = text
    assert {info.name for info in typed_fields()} == set(SamplingParams().to_json()) - {"n", "stages"}
    for info in typed_fields():
        flag = f"--{info.name.replace('_', '-')}"
        typed = [flag, examples[info.kind]] if info.kind != "flag" else [flag]
        arguments = build_parser().parse_args(["run", "x", *typed])
        assert given_sampling(arguments) == {info.name: values[info.kind]}
        setting = f"{info.name}={examples[info.kind] or 'true'}"
        assert parse_settings([setting]) == {info.name: values[info.kind]}


def test_flags_reach_the_run(cli: Cli, tmp_path: Path) -> None:
    flags = [
        "--temperature",
        "0.7",
        "--top-k",
        "9",
        "--seed",
        "-4",
        "--stop",
        "x",
        "--stop",
        "yy",
        "--banned-ids",
        "5,6",
    ]
    flags += ["--banned-ids", "7", "--logit-bias", "8=1.5", "--logit-bias", "9=-2", "--max-tokens", "3", "--ignore-eos"]
    assert cli("run", PROMPT, *flags, "--record", str(tmp_path / "r.json")) == 0
    expected = SamplingParams(
        temperature=0.7,
        top_k=9,
        seed=-4,
        stop=("x", "yy"),
        banned_ids=(5, 6, 7),
        logit_bias={8: 1.5, 9: -2.0},
        max_tokens=3,
        ignore_eos=True,
    )
    assert Record.load(tmp_path / "r.json").params == expected


def test_max_tokens_is_256_unless_said_otherwise(cli: Cli, tmp_path: Path) -> None:
    target = str(tmp_path / "r.json")
    assert cli("run", "--ids", "5", "--stop-ids", "0," + ",".join(map(str, range(2, 384))), "--record", target) == 0
    assert Record.load(target).params.max_tokens == 256
    assert cli("run", PROMPT, "--max-tokens", "none", "--ignore-eos", "--record", target) == 0
    record = Record.load(target)
    assert (record.params.max_tokens, len(record.ids)) == (None, 256)  # the tiny model's context


def test_checkpoint_defaults_apply_on_request_only(cli: Cli, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "top_k": 7}')
    target = str(tmp_path / "r.json")
    common = ["run", PROMPT, "--model", str(folder), "--max-tokens", "2", "--record", target]
    assert cli(*common) == 0
    assert Record.load(target).params.is_greedy
    assert "suggests temperature 0.6, top_k 7" in cli.err
    assert cli(*common, "--checkpoint-defaults", "--top-k", "3") == 0
    assert cli.err == ""
    params = Record.load(target).params
    assert (params.temperature, params.top_k, params.max_tokens) == (0.6, 3, 2)


def test_chat_and_system_go_through_the_template(cli: Cli, llm: LLM) -> None:
    user = {"role": "user", "content": "hi"}
    found = cli.json("run", "hi", "--chat", "--max-tokens", "1")
    assert found["prompt_ids"] == llm.chat_ids([user])
    found = cli.json("run", "hi", "--system", "be kind", "--max-tokens", "1")
    assert found["prompt_ids"] == llm.chat_ids([{"role": "system", "content": "be kind"}, user])


def test_watch_and_steps_show_the_same_tokens(cli: Cli, llm: LLM) -> None:
    done = llm.generate(PROMPT, GREEDY)
    assert cli("run", PROMPT, "--max-tokens", "12", "--watch") == 0
    assert cli.out == done.text + "\n"
    assert "prefill" in cli.err
    assert "decode 11 tokens" in cli.err
    assert "stopped at max_tokens 12" in cli.err
    assert cli("run", PROMPT, "--max-tokens", "12", "--steps") == 0
    lines = cli.out.splitlines()
    assert [int(line.split()[1]) for line in lines[1:]] == done.ids


def test_a_terminal_gets_control_characters_escaped_and_a_pipe_the_text(
    cli: Cli, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    escape = str(llm.tokenizer.one_token("\x1b"))
    flags = ["run", "dog", "--allowed-ids", escape, "--max-tokens", "2"]
    assert cli(*flags) == 0
    assert cli.out == "\x1b\x1b\n"
    monkeypatch.setattr("byhand.cli.run.is_terminal", lambda stream: True)
    assert cli(*flags) == 0
    assert cli.out == "\\x1b\\x1b\n"
    assert cli.err.startswith("dog"), "the prompt stands before the continuation, as talk"
    assert "stopped at max_tokens 2" in cli.err


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come while token number `count` is made."""
    plain_step = Run.step

    def step(self: Run, force: int | str | None = None) -> Any:
        if len(self.steps) == count - 1:
            signal.raise_signal(signal.SIGINT)
        return plain_step(self, force)

    monkeypatch.setattr(Run, "step", step)


def test_ctrl_c_keeps_what_was_generated(cli: Cli, llm: LLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = llm.generate(PROMPT, SamplingParams(max_tokens=5)).text
    interrupt_after(5, monkeypatch)
    target = tmp_path / "r.json"
    assert cli("run", PROMPT, "--max-tokens", "40", "--record", str(target)) == 130
    assert cli.out == text + "\n"
    record = Record.load(target)
    assert (record.text, record.finish_reason, len(record.steps)) == (text, "abort", 5)
    found = cli.json("run", PROMPT, "--max-tokens", "40", code=130)
    assert (found["finish_reason"], found["text"]) == ("abort", text)


def test_ctrl_c_before_the_first_token(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> Run:
        raise KeyboardInterrupt

    monkeypatch.setattr(LLM, "start", start)
    assert cli("run", PROMPT) == 130
    assert "Traceback" not in cli.err


def test_the_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(*argv: str) -> str | None:
        return model_name(build_parser().parse_args(["read", "x", *argv]))

    monkeypatch.delenv("BYHAND_MODEL", raising=False)
    assert named() is None
    assert named("--model", "byhand-tiny") is None
    monkeypatch.setenv("BYHAND_MODEL", "a")
    assert named() == "a"
    assert named("-m", "b") == "b"


# tokenize and read


def test_tokenize(cli: Cli, llm: LLM) -> None:
    found = cli.json("tokenize", "a é")
    assert list(found) == ["model", "tokens"]
    assert [token["id"] for token in found["tokens"]] == llm.encode("a é")
    assert found["tokens"][0] == {"id": 0, "text": "<s>", "bytes": list(b"<s>"), "special": True}
    assert b"".join(bytes(token["bytes"]) for token in found["tokens"][1:]) == "a é".encode()
    assert cli("tokenize", "-", stdin="dog") == 0
    assert cli.out.splitlines()[1].split() == ["0", "0", "<s>", "special"]


def test_a_doubled_start_token_is_mentioned(cli: Cli) -> None:
    for command in ("tokenize", "read", "run"):
        assert cli(command, "<s>dog", *(["--max-tokens", "1"] if command == "run" else [])) == 0
        assert cli.err.startswith("byhand: the prompt begins with two start-of-sequence tokens")
        assert cli.err.count("\n") == 1
        assert "two start" not in cli.out


def test_tokenize_needs_no_weights(cli: Cli, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((cli.folder / name).read_bytes())
    assert cli.json("tokenize", "dog", "--model", str(tmp_path))["tokens"][0]["text"] == "<s>"


def test_read(cli: Cli, llm: LLM) -> None:
    reading = llm.read(PROMPT)
    found = cli.json("read", PROMPT)
    assert list(found) == ["model", "positions"]
    for at, expected in zip(found["positions"], reading, strict=True):
        assert {"position", "id", "text", "predicted", "top", "actual"} <= set(at)
        assert (at["position"], at["id"]) == (expected.position, expected.token.id)
        assert at["predicted"]["id"] == at["top"][0]["id"] == expected.predicted.token.id
        assert {"id", "text", "logprob"} <= set(at["predicted"])
        assert len(at["top"]) == 5
    assert found["positions"][-1]["actual"] is None
    assert found["positions"][0]["actual"]["id"] == found["positions"][1]["id"]
    assert len(cli.json("read", PROMPT, "--top", "7")["positions"][0]["top"]) == 7
    assert cli("read", PROMPT) == 0
    assert f"prefill: {len(reading)} positions in one pass, cache 0 → {len(reading)}" in cli.out
    assert "only the last continues the whole prompt" in " ".join(cli.out.split())
    assert cli.err == ""


# step


def test_step_does_what_is_typed(cli: Cli, llm: LLM, tmp_path: Path) -> None:
    target = tmp_path / "r.json"
    typed = '\n3\n" dog"\nr\n1\n dog\ng 3\nr 1\n'
    assert cli("step", PROMPT, "--record", str(target), stdin=typed) == 0
    run = llm.start(PROMPT)
    run.step()
    run.step(force=run.fork().step().top[2].token.id)
    run.step()  # candidate 1 is the best one
    run.insert(" dog")
    run.step()
    run.step()
    record = Record.load(target)
    assert record.ids == run.ids
    assert [step.forced for step in record.steps] == [step.forced for step in run.steps]
    assert cli.out.rstrip().endswith((PROMPT + run.text).splitlines()[-1].rstrip())


def test_enter_computes_every_position_once(cli: Cli, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    plain_forward = Engine.forward

    def forward(self: Engine, chunks: Any, **options: Any) -> Any:
        computed.extend(chunk.rows for chunk in chunks)
        return plain_forward(self, chunks, **options)

    monkeypatch.setattr(Engine, "forward", forward)
    assert cli("step", PROMPT, stdin="\n\n\n\n") == 0
    assert computed == [len(llm.encode(PROMPT)), 1, 1, 1, 1]


def test_step_forks_and_lists_branches(cli: Cli) -> None:
    flags = ["--temperature", "2", "--seed", "1"]
    assert cli("step", PROMPT, *flags, stdin="\nf\nf 99\ng 6\nb 1\ng 6\nb 2\ng 6\nb\nq\n") == 0
    listing = cli.out.partition("branch 2 > b\n")[2].splitlines()[:3]
    assert [line.split()[0] for line in listing] == ["1", "▸", "3"]
    assert "from 1 at" in listing[1]
    assert "from 2 at" in listing[2]
    texts = [line.partition("tokens")[2].strip() for line in listing]
    assert texts[0] == texts[1], "a fork throws its parent's dice"
    assert texts[2][:40] != texts[0][:40]


def test_step_edits_and_sets(cli: Cli, llm: LLM, tmp_path: Path) -> None:
    target = tmp_path / "r.json"
    place = len(llm.encode(PROMPT)) + 1
    typed = f'g 4\ne {place} " dog"\ns temperature=0.5 top_k=4\ns\np\n?\nq\n'
    assert cli("step", PROMPT, "--record", str(target), stdin=typed) == 0
    record = Record.load(target)
    assert (len(record.ids), record.steps[-1].token.text) == (place + 1, " dog")
    assert (record.params.temperature, record.params.top_k) == (0.5, 4)
    assert "temperature=0.5, top_k=4" in cli.out
    assert "removed by top_k" in cli.out
    assert "4 kept" in cli.out
    assert "take candidate 3 instead" in cli.out


def test_step_says_what_cannot_be_done_and_goes_on(cli: Cli) -> None:
    typed = 'e 2 xx\n99\nr 999\nb 5\ns warmth=1\ns top_p=0\nr x\nr" "\n"r"\nq\n'
    assert cli("step", PROMPT, stdin=typed) == 0
    for sentence in (
        "'xx' is 2 tokens, not one",
        "there is no candidate 99",
        "`count` is 999",
        "there is no branch 5",
        "there is no setting 'warmth'",
        "`top_p` is 0.0; it must be a number above 0 and at most 1",
        "r takes a number of at least 1, not 'x'",
    ):
        assert sentence in " ".join(cli.out.split())
    assert "Traceback" not in cli.out + cli.err
    assert cli.out.rstrip().endswith("r")


def test_step_ends_with_the_run(cli: Cli) -> None:
    assert cli("step", PROMPT, "--max-tokens", "2", stdin="g\n\nr\n\nq\n") == 0
    assert cli.out.count("stopped at max_tokens 2; r rewinds") == 2
    assert "the run has ended (length)" in cli.out


def test_step_takes_its_prompt_as_an_argument(cli: Cli) -> None:
    assert cli("step", stdin="x\n") == 2
    assert "takes its commands from stdin" in cli.err


# chat


def test_chat_answers_on_stdout_and_reuses_the_prefix(cli: Cli, llm: LLM, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    typed = f"the quick\n\nbrown fox\n/params top_k=3\n/history\n/save {saved}\n/quit\nnever read\n"
    assert cli("chat", "--max-tokens", "6", "--system", "be kind", stdin=typed) == 0
    document = json.loads(saved.read_text())
    assert [message["role"] for message in document["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    answers = [message["content"] for message in document["messages"] if message["role"] == "assistant"]
    assert cli.out == "".join(f"{answer}\n" for answer in answers)
    assert answers[0] == llm.chat(document["messages"][:2], SamplingParams(max_tokens=6)).text
    assert answers[1] == llm.chat(document["messages"][:4], SamplingParams(max_tokens=6)).text
    assert document["params"]["top_k"] == 3
    assert "user: brown fox" in cli.err


def test_chat_retries_and_takes_back(cli: Cli, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    flags = ["--temperature", "2", "--seed", "5", "--max-tokens", "8"]
    typed = f"a dog\n/retry\n/undo\n/undo\na fox\n/new\n/retry\n/system now\n/wrong\n/save\n/help\n/save {saved}\n"
    assert cli("chat", *flags, stdin=typed) == 0
    first, second = cli.out.splitlines()[0], cli.out.splitlines()[1]
    assert first != second
    for sentence in ("nothing to take back", "nothing to answer again", "no command /wrong", "/save needs a file"):
        assert sentence in cli.err
    assert json.loads(saved.read_text())["messages"] == [{"role": "system", "content": "now"}]


def test_chat_stops_an_answer_and_keeps_it(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    interrupt_after(3, monkeypatch)
    assert cli("chat", "--max-tokens", "40", stdin=f"a dog\n/save {saved}\n") == 0
    assert json.loads(saved.read_text())["messages"][1]["content"] == cli.out.rstrip("\n")


def test_chat_survives_a_message_that_is_too_long(cli: Cli, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    assert cli("chat", "--max-tokens", "3", stdin=f"{'dog ' * 400}\na dog\n/save {saved}\n") == 0
    assert "this model reads 256" in cli.err
    assert json.loads(saved.read_text())["messages"][0]["content"] == "a dog"


# record and replay


@pytest.fixture
def record_file(cli: Cli, tmp_path: Path) -> Path:
    path = tmp_path / "record.json"
    flags = ["--temperature", "1.5", "--top-k", "5", "--seed", "3", "--max-tokens", "6"]
    assert cli("run", PROMPT, *flags, "--record", str(path)) == 0
    return path


def test_replay_needs_no_model(cli: Cli, record_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byhand.llm.LLM.__init__", None)
    record = Record.load(record_file)
    assert cli("replay", str(record_file), "--all") == 0
    rows = [line for line in cli.out.splitlines() if line.lstrip()[:1].isdigit() and "%" in line]
    assert [int(row.split()[1]) for row in rows] == [step.token.id for step in record.steps]
    assert cli.out.rstrip().endswith("stopped at max_tokens 6")
    assert cli("replay", str(record_file), stdin="\n\np\nb\n4\nx\n99\n?\na\n") == 0
    for words in ("1/6 > ", "2/6 > p", "5/6 > ", "removed by top_k", "'x' leads nowhere", "99", "the next step"):
        assert words in cli.out
    assert cli.json("replay", str(record_file)) == record.to_json()


def test_replay_against_the_model(cli: Cli, record_file: Path) -> None:
    arguments = ["replay", str(record_file), "--model", str(cli.folder)]
    assert cli(*arguments) == 0
    assert "all 6 steps give the same numbers again" in cli.out
    document = json.loads(record_file.read_text())
    document["steps"][2]["entropy"] += 0.5
    record_file.write_text(json.dumps(document))
    assert cli(*arguments) == 1
    assert "1 of 6 steps differ, the first is step 2" in cli.out
    found = cli.json(*arguments, code=1)
    assert (found["equal"], len(found["differences"])) == (False, 1)
    assert (found["differences"][0]["index"], found["differences"][0]["field"]) == (2, "entropy")


def test_replay_names_another_model(cli: Cli, record_file: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", seed=1)
    assert cli("replay", str(record_file), "--model", str(other)) == 1
    assert "the record was made by another model" in cli.err
    assert "Traceback" not in cli.err


# verify


def test_verify_agrees(cli: Cli) -> None:
    assert cli("verify", "the dog", "--max-tokens", "4", "--sampled", "--seed", "1") == 0
    assert "all 4 runs give the same ids" in cli.out
    assert "attention mask of ones" in " ".join(cli.out.split())


def test_verify_shows_where_it_differs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        Row("naive loop", "a\x1b[31m", 9, True),
        Row("cached loop", "a\x1b[31m", 9, False, 3, 5, 6, 0.25, 0.5),
        Row("batch", "a\x1b[31m", 9, False, 4, 5, None, 1e-6, None),
    )
    monkeypatch.setattr(byhand.verify, "verify", lambda *_, **__: Report("m", "the judge", rows))
    assert cli("verify", "a") == 1
    words = " ".join(cli.out.split())
    assert "DIFFERENT" in words
    assert "token 3: transformers" in words
    assert "(5) by 0.25 nats" in words
    assert "(6) by 0.5 nats" in words
    assert "a rounding tie" in words
    assert "byhand nothing more" in words
    assert "1 of 3 runs differ" in words
    assert "\x1b" not in cli.out
    assert cli.json("verify", "a", code=1)["equal"] is False


# models and convert


def test_models_lists_and_describes(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from byhand import models

    files = {name: f"{module.__name__.split('.')[-1]}.py" for name, module in models.architectures().items()}  # type: ignore[attr-defined]
    assert architectures() == files
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--half--fetched").mkdir()
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert cached_models() == ["some/model"]
    assert cli("models") == 0
    for words in ("llama, mistral", "byhand/models/llama.py", "byhand-tiny", "some/model"):
        assert words in cli.out


def test_models_describes_from_headers_alone(cli: Cli, llm: LLM) -> None:
    found = cli.json("models", str(cli.folder))
    parameters = sum(tensor.numel() for tensor in tensors_of(cli.folder).values())
    assert found["weights"]["parameters"] == parameters
    assert found["weights"]["bytes"] == (cli.folder / "model.safetensors").stat().st_size
    assert (found["architecture"], found["can_be_opened"], found["chat_template"]) == ("llama", True, True)
    assert found["shape"]["vocab_size"] == llm.vocab_size
    assert cli("models", str(cli.folder)) == 0
    assert "F32" in cli.out
    assert cli.json("models", "byhand-tiny")["name"] == "byhand-tiny"


def tensors_of(folder: Path) -> dict[str, Any]:
    """All tensors of a checkpoint."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_models_describes_what_it_cannot_open(cli: Cli, tmp_path: Path) -> None:
    for file in cli.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "mamba"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli("models", str(tmp_path)) == 0
    assert "mamba  byhand has no such architecture" in cli.out


def test_models_describes_a_hub_id_before_its_weights_are_here(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((cli.folder / "config.json").read_bytes())
    asked: list[object] = []

    def fetch(name: str, revision: str | None, *, weights: bool = True) -> Path:
        asked.append((name, revision, weights))
        return tmp_path

    monkeypatch.setattr("byhand.hub.fetch", fetch)
    found = cli.json("models", "some/model", "--revision", "abc")
    assert asked == [("some/model", "abc", False)]
    assert (found["name"], found["weights"], found["tokenizer"]) == ("some/model", None, None)
    assert cli("models", "some/model") == 0
    assert "not fetched yet" in cli.out
    (tmp_path / "model.safetensors").write_bytes((cli.folder / "model.safetensors").read_bytes())
    assert cli.json("models", "some/model")["weights"]["parameters"] > 0


def test_convert_writes_a_folder_that_opens(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "half"
    assert cli("convert", str(cli.folder), str(target), "--dtype", "bfloat16") == 0
    assert cli.out == ""
    assert cli.json("models", str(target))["weights"]["dtypes"].keys() == {"BF16"}


# The whole


def test_help_of_the_docs_is_the_help() -> None:
    page = Path(__file__).parents[1] / "docs" / "cli.md"
    text = page.read_text(encoding="utf-8")
    assert renewed(text) == text, "run: python -m byhand.cli.manual docs/cli.md"


def test_help_and_version(cli: Cli) -> None:
    assert cli("--version") == 0
    assert cli.out == f"byhand {byhand.__version__}\n"
    for command in ("run", "tokenize", "read", "step", "chat", "verify", "replay", "models", "convert"):
        assert cli(command, "--help") == 0
        assert cli.out.startswith(f"usage: byhand {command} ")
    assert cli() == 2
    assert cli.out == ""
    assert "commands:" in cli.err


def processor_seconds(*argv: str) -> float:
    """User and system time of one child; less moved by other programs than the clock."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *argv], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.timed
def test_help_is_instant() -> None:
    bare = min(processor_seconds("-c", "pass") for _ in range(3))
    asked = float("inf")
    for _ in range(30):  # other work on the machine only ever adds to it
        asked = min(asked, processor_seconds("-m", "byhand", "--help"))
        if asked - bare < 0.150:
            break
    assert asked - bare < 0.150


def python(*argv: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """byhand in a process of its own; tokenize and replay load no torch, so that is quick."""
    return subprocess.run([sys.executable, "-m", "byhand", *argv], capture_output=True, check=False, **options)


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "byhand", "tokenize", "dog " * 20_000]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_terminals_without_unicode(tiny_folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    (tmp_path / "é👍.safetensors").symlink_to(tiny_folder / "model.safetensors")
    (tmp_path / "config.json").symlink_to(tiny_folder / "config.json")
    file = str(tmp_path / "é👍.safetensors")
    done = python("models", file, env=environment)
    assert done.returncode == 0
    assert rb"\xe9\U0001f44d" in done.stdout
    done = python("models", file, "--json", env=environment)
    assert json.loads(done.stdout)["name"] == "é👍"
    done = python("tokenize", "a → 漢", env=environment)
    assert (done.returncode, done.stdout.isascii()) == (0, True)


def test_tokenize_loads_no_torch() -> None:
    code = "import sys; from byhand.cli.main import main; main(['tokenize', 'a']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", [["serve"], ["run", "x"]])
def test_every_setting_of_the_model_reaches_it(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    class Told(Exception):
        """The worker is not started: what it would open is enough."""

    def worker(opener: Any, _: object) -> None:
        with opener() as llm:
            opened.append((llm.model.dtype, str(llm.engine.cache.dtype), llm.model.kernels.__name__.split(".")[-1]))
        raise Told

    monkeypatch.setattr("byhand.engine.worker.Worker", worker)
    settings = ["--quantize", "int8", "--cache-dtype", "bfloat16", "--kernels", "reference"]
    arguments = build_parser().parse_args([*command, *settings])
    if command == ["serve"]:
        with pytest.raises(Told):
            arguments.command(arguments)
    else:
        with pytest.raises(Told):
            worker(lambda: open_model(arguments), None)
    assert opened == [("int8", "torch.bfloat16", "reference")]
