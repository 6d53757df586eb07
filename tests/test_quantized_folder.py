"""Folders that byhand quantised: what they hold, that they load at once and strictly, and how writing one can fail."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from byhand import LLM, SamplingParams, shards
from byhand.checkpoint import open_checkpoint
from byhand.cli.describe import describe
from byhand.cli.main import main
from byhand.convert import convert, quantize_checkpoint
from byhand.errors import BadConfig, BadRequest, BadWeights, CheckpointError
from byhand.formats import Weight, quantized_formats
from byhand.kernels import backend
from byhand.models import build
from byhand.quantize import quantize
from byhand.verify import verify
from tests.checkpoints import (
    CONFIGS,
    greedy,
    logits_of,
    open_model,
    random_prompt,
    rewrite_config,
    rewrite_tensors,
    tiny,
)
from tests.conftest import tiny_llama

EACH_FORM = pytest.mark.parametrize("form", quantized_formats())
IDS = random_prompt(128, 40, seed=1)


@pytest.fixture(params=quantized_formats())
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny Llama in one of the forms."""
    return quantize_checkpoint(tiny_llama(tmp_path / "old"), tmp_path / "new", request.param).folder


def form_of(folder: Path) -> str:
    form = open_checkpoint(folder).quantized_as()
    assert form is not None
    return form


# ---- what is written ----------------------------------------------------------------------------------------------


@EACH_FORM
@pytest.mark.parametrize("config", CONFIGS, ids="-".join)
def test_a_folder_equals_quantising_on_load(form: str, config: tuple[str, str], tmp_path: Path) -> None:
    folder = tiny(tmp_path / "old", *config, dtype=torch.bfloat16)
    on_load = build(open_checkpoint(folder), backend("reference"), quantize=form)
    stored = open_model(quantize_checkpoint(folder, tmp_path / "new", form).folder)
    assert stored.dtype == on_load.dtype == form
    assert torch.equal(logits_of(stored, IDS), logits_of(on_load, IDS))


@EACH_FORM
def test_what_is_in_codes_and_what_is_not(form: str, tmp_path: Path) -> None:
    done = quantize_checkpoint(tiny(tmp_path / "old", "opt"), tmp_path / "new", form)
    assert any(name.endswith("embed_tokens.weight") for name in done.matrices)
    assert any(name.endswith("embed_positions.weight") for name in done.kept)
    assert all("norm" in name or "positions" in name or name.endswith(".bias") for name in done.kept)
    tensors = load_file(done.folder / "model.safetensors")
    assert set(tensors) == {*done.kept, *(name + part for name in done.matrices for part in (".codes", ".scales"))}
    old = load_file(tmp_path / "old" / "model.safetensors")
    assert all(torch.equal(tensors[name], old[name]) for name in done.kept)
    for name in done.matrices:
        expected = quantize(Weight.of(old[name]), form).tensors
        assert torch.equal(tensors[f"{name}.codes"], expected[0])
        assert torch.equal(tensors[f"{name}.scales"], expected[1])
    assert done.bytes_before == sum(old[name].nbytes for name in (*done.kept, *done.matrices))
    assert done.bytes_after == sum(tensor.nbytes for tensor in tensors.values())


def test_the_config_and_what_lies_beside_it(written: Path) -> None:
    old = written.parent / "old"
    config = json.loads((written / "config.json").read_text())
    said = config.pop("quantization_config")
    assert config == json.loads((old / "config.json").read_text())
    assert said == {
        "quant_method": "byhand",
        "version": 1,
        "format": form_of(written),
        "group_size": 32,
        "source": str(open_checkpoint(old).identity),
        "parameters": sum(tensor.numel() for tensor in load_file(old / "model.safetensors").values()),
    }
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (written / name).read_bytes() == (old / name).read_bytes()
    assert [path.name for path in written.parent.iterdir() if path.name.startswith(".")] == []


def test_the_file_is_one_that_safetensors_reads(written: Path) -> None:
    with safe_open(written / "model.safetensors", framework="pt") as opened:  # type: ignore[no-untyped-call]
        assert opened.metadata() == {"format": "pt"}
        mapped = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert mapped.keys() == load_file(written / "model.safetensors").keys()
    start = int.from_bytes((written / "model.safetensors").read_bytes()[:8], "little") + 8
    assert start % 64 == 0


def test_odd_sizes_still_begin_at_a_multiple_of_their_numbers(tmp_path: Path) -> None:
    planned = [
        shards.Planned(name, tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: [tensor])  # type: ignore[misc]
        for name, tensor in {"a": torch.ones(3), "b": torch.ones(3).bfloat16(), "c": torch.ones(5, 7).char()}.items()
    ]
    shards.write_shards(planned, tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert {name: (tensor.dtype, tuple(tensor.shape), int(tensor.sum())) for name, tensor in found.items()} == {
        "a": (torch.float32, (3,), 3),
        "b": (torch.bfloat16, (3,), 3),
        "c": (torch.int8, (5, 7), 35),
    }


def test_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny(tmp_path / "old")
    whole = quantize_checkpoint(folder, tmp_path / "whole", "int4").folder
    monkeypatch.setattr(shards, "SHARD_BYTES", 6_000)
    cut = quantize_checkpoint(folder, tmp_path / "cut", "int4").folder
    files = open_checkpoint(cut).weight_files
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert torch.equal(logits_of(open_model(cut), IDS), logits_of(open_model(whole), IDS))


def test_the_embedded_model_speaks_from_8_bits(tmp_path: Path) -> None:
    folder = quantize_checkpoint(None, tmp_path / "tiny-int8", "int8").folder
    params = SamplingParams(max_tokens=12)
    with LLM(folder) as ours, LLM(quantize="int8") as on_load, LLM() as full:
        answers = [llm.generate("A list of colors: red", params) for llm in (ours, on_load, full)]
        assert ours.identity.dtype == "int8"
        assert ours.identity.digest != full.identity.digest
        replayed = LLM(folder).start("A list of colors: red").record()
        assert replayed.model == ours.identity
    assert answers[0].ids == answers[1].ids == answers[2].ids  # type: ignore[union-attr]


# ---- reading is strict --------------------------------------------------------------------------------------------


def change(name: str, make: Any) -> Any:
    return lambda tensors: tensors | {name: make(tensors[name])}


CODES = "model.layers.0.mlp.up_proj.weight.codes"
SCALES = "model.layers.0.mlp.up_proj.weight.scales"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change(CODES, lambda codes: codes[:, 1:]), r"up_proj\.weight\.codes` has the shape .* the config asks for"),
        (change(SCALES, lambda scales: scales.float()), r"scales` is stored as torch\.float32; known are bfloat16"),
        (change(CODES, lambda codes: codes.float()), r"codes` is stored as torch\.float32; known are u?int8"),
        (lambda held: {name: held[name] for name in held if name != SCALES}, r"`.*\.scales` is missing"),
        (lambda held: held | {"extra.codes": torch.ones(1)}, r"`extra\.codes`.*this architecture does not have"),
    ],
)
def test_damaged_parts_are_refused(written: Path, damage: Any, words: str) -> None:
    rewrite_tensors(written, damage)
    with pytest.raises(BadWeights, match=words):
        open_model(written)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("version", 3, "`version` is 3; it must be a whole number from 1 to 2"),
        ("group_size", 64, "`group_size` is 64; it must be a whole number from 32 to 32"),
        ("format", "int3", "`format` is 'int3'; it must be one of int4, int8"),
        ("format", None, "`format` is missing"),
        ("quant_method", "gptq", "`quantization_config` is of 'gptq'; only unquantized weights and byhand's are read"),
        ("quant_method", None, "`quantization_config` names no `quant_method`; only"),
    ],
)
def test_other_quantisations_are_refused(written: Path, field: str, value: object, words: str) -> None:
    said = json.loads((written / "config.json").read_text())["quantization_config"]
    rewrite_config(written, quantization_config={**said, field: value})
    with pytest.raises(BadConfig, match=words):
        open_model(written)


def test_what_cannot_be_done_with_one(written: Path, tmp_path: Path) -> None:
    form = form_of(written)
    with pytest.raises(BadRequest, match=f"is quantised to {form} already"):
        LLM(written, quantize="int8")
    with pytest.raises(BadRequest, match=f"dtype is 'float32'; .* is quantised to {form}"):
        LLM(written, dtype="float32")
    for again in (
        lambda: convert(written, tmp_path / "again"),
        lambda: quantize_checkpoint(written, tmp_path / "again", "int8"),
    ):
        with pytest.raises(BadRequest, match=f"is quantised to {form} already .give what it was made from"):
            again()
    with LLM(written) as llm, pytest.raises(BadRequest, match=f"is quantised to {form}, which transformers cannot"):
        verify(llm, ["a"])
    assert not (tmp_path / "again").exists()


def test_a_tied_pair_that_is_stored_twice(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "old", "llama", "multi_query")
    written = quantize_checkpoint(folder, tmp_path / "new", "int8").folder
    names = load_file(written / "model.safetensors").keys()
    assert not any(name.startswith("lm_head") for name in names)
    expected = logits_of(open_model(written), IDS)
    parts = ("codes", "scales")
    rewrite_tensors(
        written,
        lambda held: (
            held | {f"lm_head.weight.{part}": held[f"model.embed_tokens.weight.{part}"].clone() for part in parts}
        ),
    )
    model: Any = open_model(written)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert torch.equal(logits_of(model, IDS), expected)


# ---- writing that fails -------------------------------------------------------------------------------------------


def test_what_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "old")
    with pytest.raises(BadRequest, match="format is 'int3'; it must be one of int8, int4"):
        quantize_checkpoint(folder, tmp_path / "new", "int3")
    with pytest.raises(BadRequest, match="exists already; it must be a new or an empty folder"):
        quantize_checkpoint(folder, folder, "int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny(tmp_path / "old")
    written = 0

    def fill_up(file: Path, tensors: Any) -> None:
        nonlocal written
        file.write_bytes(b"half of it")
        written += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "_write_file", fill_up)
    with pytest.raises(CheckpointError, match=r"new could not be written: No space left on device"):
        quantize_checkpoint(folder, tmp_path / "new", "int8")
    assert written == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny(tmp_path / "old")

    def interrupted(*_: Any) -> Iterator[Any]:
        yield torch.zeros(1, 32, dtype=torch.int8), torch.zeros(1, 1).bfloat16()
        raise KeyboardInterrupt

    monkeypatch.setattr("byhand.convert.quantize_blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(folder, tmp_path / "new", "int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


def test_a_number_that_is_not_finite_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "old")
    rewrite_tensors(folder, lambda held: held | {"lm_head.weight": torch.full_like(held["lm_head.weight"], torch.nan)})
    with pytest.raises(BadWeights, match=r"`lm_head\.weight`: .* not finite"):
        quantize_checkpoint(folder, tmp_path / "new", "int4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


# ---- the command line ---------------------------------------------------------------------------------------------


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments])
    return (code, *capsys.readouterr())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, target = tiny_llama(tmp_path / "old"), tmp_path / "new"
    code, out, err = run_cli(capsys, "quantize", str(folder), "--to", "int4", str(target))
    assert (code, out) == (0, "")
    assert f"written: {target}, 23 matrices in int4, 7 small tensors" in err
    code, out, _ = run_cli(capsys, "quantize", str(folder), str(tmp_path / "8"), "--to", "int8", "--json")
    done = json.loads(out)
    assert (code, done["form"], len(done["matrices"]), len(done["kept"])) == (0, "int8", 23, 7)
    for arguments, words in (
        ([str(folder), str(target), "--to", "int4"], "exists already"),
        ([str(target), str(tmp_path / "again"), "--to", "int4"], "is quantised to int4 already"),
        ([str(folder), str(target)], "the following arguments are required: --to"),
        ([str(folder), str(target), "--to", "int2"], "invalid choice: 'int2'"),
    ):
        code, out, err = run_cli(capsys, "quantize", *arguments)
        assert (code, out) == (2, "")
        assert words in err
        assert "Traceback" not in err


def test_models_tells_the_form_and_the_true_count(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form = form_of(written)
    code, out, _ = run_cli(capsys, "models", str(written), "--json")
    facts = json.loads(out)
    old = json.loads(run_cli(capsys, "models", str(written.parent / "old"), "--json")[1])
    assert (code, facts["quantized"], facts["can_be_opened"], facts["quality"]) == (0, form, True, None)
    assert facts["weights"]["parameters"] == old["weights"]["parameters"]
    assert facts["weights"]["dtypes"].keys() == {form, "F32"}
    rewrite_config(written, quantization_config={"bits": 4})
    _, out, _ = run_cli(capsys, "models", str(written))
    assert "`quantization_config` names no `quant_method`" in " ".join(out.split())
    assert not any(line.endswith(" ") for line in out.splitlines())


def test_models_tells_measured_quality_of_the_very_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = quantize_checkpoint(None, tmp_path / "tiny-int4", "int4").folder
    quality = describe(str(written), None, {"llama"})["quality"]
    assert quality == describe(None, None, {"llama"})["quality"]
    stories = quality["texts"]["stories"]["variants"]
    assert stories["float32"]["perplexity"] <= stories["int8"]["perplexity"] * 1.001 < stories["int4"]["perplexity"]
    assert stories["int8"]["kl"] < stories["int4"]["kl"] / 50
    _, out, _ = run_cli(capsys, "models", str(written))
    assert f"int4: perplexity {stories['int4']['perplexity']:.3f}, KL" in out
    assert "int8: perplexity" not in out
    _, out, _ = run_cli(capsys, "models", "byhand-tiny")
    assert "int8: perplexity" in out


def test_generated_ids_are_the_same_from_the_folder_and_on_load(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "old")
    prompts = [random_prompt(128, 12, seed=seed) for seed in range(3)]
    written = quantize_checkpoint(folder, tmp_path / "new", "int4").folder
    on_load = build(open_checkpoint(folder), backend("cpu"), quantize="int4")
    assert greedy(open_model(written, kernels="cpu"), prompts, 20) == greedy(on_load, prompts, 20)


def test_opening_one_needs_no_work(written: Path) -> None:
    code = (
        "import sys, byhand.quantize as page\n"
        "def refuse(*_): raise SystemExit('quantised again')\n"
        "page.quantize_blocks = refuse\n"
        "import byhand\n"
        f"byhand.LLM({str(written)!r}).start('the quick').step()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
