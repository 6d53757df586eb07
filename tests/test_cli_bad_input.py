"""Bad input through the command line: each kind gets one sentence on stderr, exit code 2, and no traceback."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from byhand.cli.main import main
from byhand.cli.views.safe import safe_line
from tests.checkpoints import rewrite_config

Run = Callable[..., str]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line that must fail, and give its one sentence."""
    monkeypatch.delenv("BYHAND_MODEL", raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*argv: str, stdin: bytes = b"") -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = main(argv)
        out, err = capsys.readouterr()
        assert code == 2, (code, out, err)
        assert out == ""
        assert err.startswith("byhand: ")
        assert err.count("\n") == 1, "one sentence on one line"
        assert "Traceback" not in err
        assert "unexpected" not in err, "an error that byhand does not know"
        return err

    return run


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be broken."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def run_on(refuse: Run, folder: Path, *argv: str) -> str:
    """Refuse `run` on a folder."""
    return refuse("run", "the dog", "--max-tokens", "1", "--model", str(folder), *argv)


# The checkpoint


def test_no_such_folder(refuse: Run, tmp_path: Path) -> None:
    for command in ("run", "tokenize", "read"):
        assert "no such folder or file" in refuse(command, "x", "--model", str(tmp_path / "nowhere"))
    assert "no such folder or file" in refuse("models", "./nowhere/at/all")
    assert "no such folder or file" in refuse("convert", "./nowhere/at/all", str(tmp_path / "target"))
    assert "no such folder or file" in refuse("chat", "--model", "./nowhere/at/all")


def test_the_environment_names_a_model_too(refuse: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYHAND_MODEL", str(tmp_path / "nowhere"))
    assert "nowhere does not exist" in refuse("verify")


def test_not_a_checkpoint(refuse: Run, tmp_path: Path, model: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "it has no config.json" in run_on(refuse, tmp_path / "empty")
    (tmp_path / "file.txt").write_text("hello")
    assert "is not a checkpoint" in run_on(refuse, tmp_path / "file.txt")
    (model / "model.safetensors").unlink()
    assert "neither model.safetensors nor pytorch_model.bin" in run_on(refuse, model)


def test_unknown_architecture_names_those_we_have(refuse: Run, model: Path) -> None:
    rewrite_config(model, model_type="mamba")
    found = run_on(refuse, model)
    assert "'mamba'" in found
    for name in ("gpt2", "llama", "mistral", "olmo2", "opt", "qwen2", "qwen3"):
        assert name in found


@pytest.mark.parametrize("kept", [0, 5, 100, -1000])
def test_truncated_safetensors(refuse: Run, model: Path, kept: int) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "model.safetensors" in run_on(refuse, model)
    if kept in (0, 5, 100):
        assert "truncated" in refuse("models", str(model))


def test_mismatched_and_missing_tensors(refuse: Run, model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    name = "model.norm.weight"
    save_file({**tensors, name: tensors[name][:-1].clone()}, model / "model.safetensors")
    assert name in run_on(refuse, model)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, model / "model.safetensors")
    assert name in run_on(refuse, model)
    save_file({**tensors, "surplus": tensors[name].clone()}, model / "model.safetensors")
    assert "surplus" in run_on(refuse, model)


def test_configs_that_cannot_be_read(refuse: Run, model: Path) -> None:
    for text in ("[" * 200_000, '{"a":' * 200_000, "[]", "{", "\x00", '"' * 3):
        (model / "config.json").write_text(text)
        for argv in (["run", "x"], ["tokenize", "x"], ["models"]):
            named = [str(model)] if argv == ["models"] else ["--model", str(model)]
            assert "config.json" in refuse(*argv, *named)
    (model / "config.json").write_bytes(b"\xff\xfe")
    assert "config.json" in refuse("models", str(model))


def test_a_tokenizer_that_cannot_be_read(refuse: Run, model: Path) -> None:
    (model / "tokenizer.json").write_text('{"model": 3}')
    assert "tokenizer" in run_on(refuse, model)


def test_names_in_a_checkpoint_cannot_speak_to_the_terminal(refuse: Run, model: Path) -> None:
    rewrite_config(model, model_type="\x1b[31mred\x07")
    found = run_on(refuse, model)
    assert "\x1b" not in found
    assert safe_line(found.rstrip("\n")) == found.rstrip("\n")


def test_header_without_shapes(refuse: Run, model: Path) -> None:
    header = b'{"a": {"dtype": "F32"}}'
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "has no dtype and shape" in refuse("models", str(model))


# The prompt


def test_prompts_that_are_too_long_or_empty(refuse: Run, model: Path) -> None:
    for command in ("run", "read", "step"):
        found = refuse(command, "dog " * 1000, "--model", str(model))
        assert "this model reads 256" in found
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    for command in ("run", "read", "step"):
        assert "the prompt is empty" in refuse(command, "", "--model", str(model))
    assert "the prompt is empty" in refuse("verify", "", "--model", str(model))


def test_token_ids_out_of_range(refuse: Run, model: Path) -> None:
    for command in ("run", "read", "step"):
        assert "token id 384" in refuse(command, "--ids", "3,384", "--model", str(model))
        assert "token id -1" in refuse(command, "--ids=-1", "--model", str(model))
    for flag in ("--banned-ids", "--allowed-ids"):
        assert "384" in run_on(refuse, model, flag, "384")
    assert "384" in run_on(refuse, model, "--logit-bias", "384=1")


def test_prompts_that_are_given_twice_or_not_at_all(refuse: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "PROMPT and --ids were both given" in refuse("run", "x", "--ids", "5")
    assert "cannot go through a chat template" in refuse("run", "--ids", "5", "--chat")
    for command in ("run", "tokenize", "read"):
        monkeypatch.setattr("byhand.cli.request.is_terminal", lambda stream: True)
        assert f"`byhand {command}` needs a text" in refuse(command)


def test_text_that_is_not_utf8(refuse: Run) -> None:
    assert "stdin is not UTF-8: byte 0xff at 2" in refuse("run", "-", stdin=b"ab\xff")
    for argv in (
        ["run", "a\udcff"],
        ["tokenize", "a\udcff"],
        ["verify", "a\udcff"],
        ["run", "a", "--system", "\udcff"],
    ):
        assert "is not UTF-8" in refuse(*argv)
    assert "stdin is not UTF-8" in refuse("tokenize", stdin=b"\xff")


# Chat templates


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10000000) %}{% for j in range(10000000) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{{ ''.__class__.__mro__ }}",
        "{% if %}",
        "{{ raise_exception('no\x1b[31m') }}",
    ],
)
def test_templates_that_loop_or_break_out(refuse: Run, model: Path, template: str) -> None:
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    assert "template" in run_on(refuse, model, "--chat")
    assert "template" in refuse("chat", "--model", str(model))


def test_no_template(refuse: Run, model: Path) -> None:
    (model / "tokenizer_config.json").unlink()
    assert "template" in run_on(refuse, model, "--chat")
    assert "template" in refuse("chat", "--model", str(model))


# Flags


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--temperature", "-1"], "`temperature` is -1.0; it must be a number at least 0"),
        (["--temperature", "nan"], "`temperature` is nan"),
        (["--temperature", "hot"], "--temperature: 'hot' is no number"),
        (["--top-p", "0"], "`top_p` is 0.0; it must be a number above 0"),
        (["--top-k", "-1"], "`top_k` is -1"),
        (["--top-k", "1.5"], "--top-k: '1.5' is no integer"),
        (["--top-k", "9" * 5000], "--top-k"),
        (["--logit-bias", "5"], "'5' is not of the form ID=BIAS"),
        (["--logit-bias", "5=x"], "'x' is no number"),
        (["--logit-bias", "5=1000"], "`logit_bias` gives token 5"),
        (["--banned-ids", "5,"], "'' is no integer"),
        (["--stop", ""], "`stop` holds ''"),
        (["--min-tokens", "9", "--max-tokens", "3"], "`min_tokens` is 9"),
        (["--max-tokens", "none", "--min-tokens", "-1"], "`min_tokens` is -1"),
        (["--seed", "99999999999999999999999"], "`seed`"),
        (["--watch", "--json"], "--watch, --steps and --json each fill stdout"),
        (["--record", "/nowhere/at/all/r.json"], "there is no folder /nowhere/at/all"),
        (["--record", "."], "--record: . is a folder"),
        (["--threads", "0"], "`threads` is 0"),
        (["--cache-tokens", "-5"], "`cache_tokens` is -5"),
        (["--device", "abacus"], "`device` is 'abacus'"),
        (["--dtype", "int3"], "--dtype: invalid choice"),
        (["--model", ""], "--model is empty"),
        (["--warmth", "1"], "`byhand run` has no flag --warmth"),
        (["--revision", "main", "--model", "."], "revision is 'main'"),
    ],
)
def test_flags(refuse: Run, flags: list[str], sentence: str) -> None:
    assert sentence in refuse("run", "x", *flags)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--regex", "[a&&b]"], "`regex` cannot be followed: no text fits it"),
        (["--regex", "one", "--banned-ids", "1"], "ends a run by the end-of-sequence token, which `banned_ids` takes"),
        (["--choices", "one", "--allowed-ids", "1,2"], "`choices` and `allowed_ids` leave no token to begin with"),
    ],
)
def test_constraints_that_cannot_be_followed(refuse: Run, tiny_folder: Path, flags: list[str], sentence: str) -> None:
    assert sentence in run_on(refuse, tiny_folder, *flags)


def test_a_dead_end_of_a_run(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--regex", "one", "--min-tokens", "9", "--max-tokens", "20"]
    assert main(["run", "x", "--model", str(tiny_folder), *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "one\n"
    assert err.startswith("byhand: `regex` and `min_tokens` leave no token that may follow 'one' (")


def test_other_commands_flags(refuse: Run, tmp_path: Path) -> None:
    assert "--top is 0" in refuse("read", "x", "--top", "0")
    assert "--top is 0" in refuse("step", "x", "--top", "0")
    assert "`max_tokens` is 0" in refuse("verify", "x", "--max-tokens", "0")
    assert "there is no command 'sing'" in refuse("sing")
    assert "must be a new or an empty folder" in refuse("convert", "byhand-tiny", str(tmp_path.parent))


# Records


def test_records_that_are_none(refuse: Run, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert "cannot read the record" in refuse("replay", str(path))
    assert "cannot read the record" in refuse("replay", str(tmp_path))
    for text in ("", "{", "[" * 100_000, "[]", "{}", '{"format": "\\u001b[31m"}', '{"format": "byhand.record"}'):
        path.write_text(text)
        assert "record" in refuse("replay", str(path))
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not JSON" in refuse("replay", str(path))
    assert "record" in refuse("replay", str(path), "--model", "byhand-tiny")


# The last line of defence


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied", "a/file"), "byhand: a/file: permission denied"),
        (OSError(28, "No space left on device"), "byhand: no space left on device"),
        (MemoryError(), "byhand: there is not enough memory"),
        (RecursionError("deep"), "byhand: the input is nested too deeply"),
        (KeyError("x"), "byhand: KeyError: 'x' (unexpected; BYHAND_TRACEBACK=1 shows where)"),
        (ValueError("a\nb"), "byhand: ValueError: a (unexpected"),
    ],
)
def test_errors_that_nobody_foresaw(
    error: Exception, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr("byhand.cli.main._run", fail)
    monkeypatch.delenv("BYHAND_TRACEBACK", raising=False)
    assert main(["models"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(sentence)
    monkeypatch.setenv("BYHAND_TRACEBACK", "1")
    assert main(["models"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_closed_stdin_is_an_empty_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_folder: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["tokenize", "--json", "--model", str(tiny_folder)]) == 2
    assert "found nothing on standard input" in capsys.readouterr().err
    assert main(["step", "dog", "--model", str(tiny_folder)]) == 0
