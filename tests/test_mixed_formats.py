"""Checkpoints whose matrices have different formats, and several matrices in one tensor."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from byhand import LLM
from byhand.checkpoint import StoredFormats, open_checkpoint
from byhand.cli.main import main
from byhand.convert import _plan_codes, quantize_checkpoint
from byhand.errors import BadConfig, BadRequest
from byhand.formats import Weight, described, float_formats, formats, quantized_formats
from byhand.kernels import reference
from byhand.kernels.cpu import Cpu
from byhand.models import build
from byhand.quantize import quantize, shrinker
from byhand.weights import DTYPES, StoredTensor, Weights
from tests.checkpoints import CONFIGS, logits_of, open_model, random_prompt, relative_error, rewrite_config, tiny
from tests.test_quantized_folder import tiny_llama

IDS = random_prompt(128, 40, seed=1)
MIXED = [("lm_head.weight", "int8"), ("*.down_proj.weight", "bfloat16"), ("*.1.*", "int8"), ("*.v_proj.*", "float32")]


MIXED_OF = ("tiny", "tied", "biases", "350m")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return quantize_checkpoint(tiny_llama(tmp_path / "old"), tmp_path / "mixed", "int4", tensor_types=MIXED).folder


def test_a_folder_says_what_it_holds(mixed: Path) -> None:
    stored = open_checkpoint(mixed).stored_formats()
    assert stored is not None
    assert stored.default == "int4"
    assert stored.of("lm_head.weight") == "int8"
    assert stored.of("model.layers.1.mlp.down_proj.weight") == "bfloat16", "the first pattern that fits counts"
    assert stored.of("model.layers.1.self_attn.v_proj.weight") == "int8"
    assert stored.of("model.layers.2.self_attn.v_proj.weight") == "float32"
    assert stored.of("model.layers.0.mlp.up_proj.weight") == "int4"
    said = json.loads((mixed / "config.json").read_text())["quantization_config"]
    assert (said["version"], said["format"]) == (2, "int4")
    tensors = load_file(mixed / "model.safetensors")
    for name, found in said["formats"].items():
        assert (name in tensors) == formats()[found].is_float
        assert (f"{name}.codes" in tensors) != formats()[found].is_float
    assert tensors["model.layers.0.mlp.down_proj.weight"].dtype == torch.bfloat16


def test_one_format_for_all_is_written_as_before(tmp_path: Path) -> None:
    old = tiny_llama(tmp_path / "old")
    folder = quantize_checkpoint(old, tmp_path / "new", "int8").folder
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert said["version"] == 1
    assert "formats" not in said


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_each_matrix_is_what_it_would_be_alone(kernels: str, mixed: Path, tmp_path: Path) -> None:
    ours = open_model(mixed, kernels=kernels)
    assert ours.dtype == "int4, int8, bfloat16 and float32"
    plain = Weights.open(open_checkpoint(tmp_path / "old"))
    held = Weights.open(open_checkpoint(mixed))
    for name, found in ours.formats.items():
        shape = load_file(tmp_path / "old" / "model.safetensors")[name].shape
        truth, weight = plain.matrix(name, *shape), held.matrix(name, *shape)
        assert weight.format == found
        if formats()[found].is_float:
            assert torch.equal(weight.tensors[0], truth.tensors[0].to(DTYPES[found]))
        else:
            assert all(map(torch.equal, weight.tensors, quantize(truth, found).tensors))


@pytest.mark.parametrize(("family", "variant"), [key for key in CONFIGS if key[1] in MIXED_OF])
@pytest.mark.parametrize("pair", [*product(formats(), quantized_formats())], ids="-".join)
def test_both_backends_read_a_mixture(family: str, variant: str, pair: tuple[str, str], tmp_path: Path) -> None:
    other, default = pair
    folder = tiny(tmp_path / "old", family, variant)
    names = ["*.0.*", "*up_proj*", "*c_fc*", "*fc1*", "*k_proj*"]
    known = open_model(folder).formats
    types = [(name, other) for name in names if any(fnmatchcase(each, name) for each in known)]
    new = quantize_checkpoint(folder, tmp_path / "new", default, tensor_types=types).folder
    truth = logits_of(open_model(new, kernels="reference"), IDS)
    assert relative_error(logits_of(open_model(new, kernels="cpu"), IDS), truth) < 2e-5


def test_a_mixture_is_compiled_for_before_it_runs(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Cpu()
    model = build(open_checkpoint(mixed), kernels)
    kernels.prepare({spec.head_dim for spec in model.layer_specs}, torch.float32)
    expected = set(kernels._ready)
    assert {f"linear_{name}" for name in ("int4", "int8", "bfloat16", "float32")} <= expected
    logits_of(model, IDS[:3])
    assert set(kernels._machine_code) <= expected


def test_the_prefix_cache_tells_mixtures_apart(tmp_path: Path) -> None:
    """Pages of one are not taken for pages of the other, though all that the folders say else is the same."""
    old = tiny_llama(tmp_path / "old")
    roots = set()
    for number, options in enumerate(({}, {"quantize": "int8"}, {"quantize": "int4"}, {"dtype": "bfloat16"})):
        with LLM(old, cache_tokens=64, **options) as llm:  # type: ignore[arg-type]
            roots.add(llm.engine.manager.root)
        assert len(roots) == number + 1
    for types in ([("lm_head.weight", "int8")], [("*.0.*.up_proj.weight", "int8")], []):
        folder = tmp_path / f"new {len(types)} {types}"
        with LLM(quantize_checkpoint(old, folder, "int4", tensor_types=types).folder, cache_tokens=64) as llm:
            roots.add(llm.engine.manager.root)
    assert len(roots) == 7


def test_a_tied_pair_of_two_formats_is_two_matrices(tmp_path: Path) -> None:
    old = tiny_llama(tmp_path / "old")
    new = quantize_checkpoint(old, tmp_path / "new", "int4", tensor_types=[("lm_head.weight", "int8")]).folder
    rewrite_config(new, tie_word_embeddings=True)
    model: Any = open_model(new)
    assert (model.embed_tokens.weight.format, model.lm_head.weight.format) == ("int4", "int8")


def test_codes_are_no_numbers_of_a_tied_pair() -> None:
    """A float matrix that happens to hold another's codes is not that matrix."""
    head = quantize(Weight.of(torch.randn(8, 32)), "int8")
    tensors = {"e": head.tensors[0].float(), "h.codes": head.tensors[0], "h.scales": head.tensors[1]}
    stored = {name: StoredTensor(Path("here"), lambda x=x: x) for name, x in tensors.items()}
    weights = Weights.of(stored, "here", quantized=StoredFormats("int8", {"e": "float32"}))
    pair = weights.tied_pair("e", "h", (8, 32), tie=True)
    assert [weight.format for weight in pair] == ["float32", "int8"]


# ---- several matrices in one tensor -------------------------------------------------------------------------------


def several(weight: torch.Tensor, name: str) -> Weight:
    return quantize(Weight.of(weight), name) if name in quantized_formats() else Weight.of(weight.to(DTYPES[name]))


@pytest.mark.parametrize("name", formats())
@pytest.mark.parametrize("inner", [64, 45])
def test_one_of_several_matrices_is_as_if_alone(name: str, inner: int) -> None:
    numbers = torch.randn(3, 21, inner, generator=torch.Generator().manual_seed(inner))
    weight = several(numbers, name)
    assert weight.shape == (3, 21, inner)
    x = torch.randn(5, inner)
    for expert in range(3):
        one, alone = weight[expert], several(numbers[expert], name)
        assert (one.format, one.shape) == (alone.format, (21, inner))
        assert all(map(torch.equal, one.tensors, alone.tensors))
        assert one.tensors[0].data_ptr() == weight.tensors[0][expert].data_ptr(), "nothing is copied"
        assert torch.equal(Cpu().linear(x, one), Cpu().linear(x, alone))
        assert torch.equal(reference.linear(x, one), reference.linear(x, alone))


@pytest.mark.parametrize("name", formats())
def test_several_matrices_are_read_from_a_checkpoint(name: str) -> None:
    weight = several(torch.randn(3, 21, 45), name)
    parts = formats()[name].parts((3, 21, 45))
    stored = {
        f"experts{part.suffix}": StoredTensor(Path("here"), lambda x=x: x)
        for part, x in zip(parts, weight.tensors, strict=True)
    }
    quantized = StoredFormats("int8", {"experts": name})
    weights = Weights.of(stored, "here", quantized=quantized)
    found = weights.matrices_of("experts", 3, 21, 45)
    weights.finish()
    assert (found.format, found.shape) == (name, (3, 21, 45))
    assert all(map(torch.equal, found.tensors, weight.tensors))
    assert weights.formats == {"experts": name}


def test_several_matrices_are_quantised_on_load_and_written() -> None:
    numbers = torch.randn(3, 21, 45)
    for name in quantized_formats():
        stored = {"experts": StoredTensor(Path("here"), lambda: numbers)}
        found = Weights.of(stored, "here", shrink=shrinker(name)).matrices_of("experts", 3, 21, 45)
        truth = quantize(Weight.of(numbers), name)
        assert all(map(torch.equal, found.tensors, truth.tensors))
        for planned, part in zip(_plan_codes("experts", Weight.of(numbers), name), truth.tensors, strict=True):
            assert planned.shape == tuple(part.shape)
            assert torch.equal(torch.cat(list(planned.pieces())).view(part.shape), part)


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": 2}, "`formats` is missing"),
        ({"version": 3}, "`version` is 3; it must be a whole number from 1 to 2"),
        ({"version": 2, "formats": ["int8"]}, "`formats` is ['int8']; it must be an object"),
        ({"version": 2, "formats": {"lm_head.weight": 8}}, "it must be an object: a tensor's name, and its format"),
        ({"version": 2, "formats": {"lm_head.weight": "int3"}}, "`lm_head.weight` has 'int3'"),
    ],
)
def test_a_config_that_makes_no_sense(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    folder = quantize_checkpoint(tiny_llama(tmp_path / "old"), tmp_path / "new", "int4").folder
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    rewrite_config(folder, quantization_config={**said, **changes})
    with pytest.raises(BadConfig) as error:
        open_model(folder)
    assert sentence in error.value.message


@pytest.mark.parametrize(
    ("types", "sentence"),
    [
        ([("*", "int3")], "tensor_types has *=int3; a format must be one of float32, bfloat16, float16, int8, int4"),
        ([("*", "int8"), ("*.nothing", "int8")], "tensor_types has *.nothing=int8, which fits no matrix: there are "),
    ],
)
def test_types_that_make_no_sense(types: list[tuple[str, str]], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as error:
        quantize_checkpoint(tiny_llama(tmp_path / "old"), tmp_path / "new", "int4", tensor_types=types)
    assert sentence in error.value.message
    assert not (tmp_path / "new").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = str(tiny_llama(tmp_path / "old"))
    line = ["quantize", old, str(tmp_path / "new"), "--to", "int4", "--tensor-type", "lm_head.weight=int8"]
    assert main([*line, "--tensor-type", "*.0.*=bfloat16", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["tensor_types"] == {"lm_head.weight": "int8", "*.0.*": "bfloat16"}
    assert "lm_head.weight" in done["matrices"]
    assert "model.layers.0.mlp.up_proj.weight" in done["kept"]
    assert main(["models", str(tmp_path / "new"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["quantized"] == "int4, int8 and bfloat16"
    counted = sum(tensor.numel() for tensor in load_file(tmp_path / "old" / "model.safetensors").values())
    assert told["weights"]["parameters"] == counted
    assert {"int4", "int8", "BF16"} <= told["weights"]["dtypes"].keys()
    for wrong in ("lm_head.weight", "=int8", "lm_head.weight=int3"):
        assert main([*line[:2], "x", "--to", "int4", "--tensor-type", wrong]) == 2
        assert f"{wrong!r} is not of the form PATTERN=FORMAT with a format of float32" in capsys.readouterr().err


def test_formats_as_people_read_them() -> None:
    assert described([]) == ""
    assert described(["int8", "int8"]) == "int8"
    assert described(["float32", "int8", "int4"]) == "int4, int8 and float32"
    assert set(float_formats()) | set(quantized_formats()) == set(formats())
