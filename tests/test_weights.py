"""Weights: mapped, strict, and every damage a sentence."""

from __future__ import annotations

import json
import pickle
import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from byhand.checkpoint import open_checkpoint
from byhand.errors import BadRequest, BadWeights, CheckpointNotFound
from byhand.formats import Weight
from byhand.weights import StoredTensor, Weights, map_tensors
from tests.checkpoints import (
    CONFIGS,
    greedy,
    make_checkpoint,
    open_model,
    random_prompt,
    rewrite_config,
    rewrite_tensors,
    tiny,
    to_pickle,
)

PROMPTS = [random_prompt(128, 9, seed=1)]
NORM = "model.norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny(tmp_path / "tiny")


def weights_of(**tensors: torch.Tensor) -> Weights:
    def reader(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: tensor

    stored = {name.replace("_", "."): StoredTensor(Path("file"), reader(tensor)) for name, tensor in tensors.items()}
    return Weights.of(stored, "here")


def refusal(folder: Path) -> str:
    """The sentence with which a folder is refused."""
    with pytest.raises(BadWeights) as refused:
        open_model(folder)
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


# ---- reading ------------------------------------------------------------------------------------------------------


def test_scopes_reach_tensors_by_their_whole_names() -> None:
    weights = weights_of(a_0_b=torch.ones(3), a_0_c=torch.zeros(2, 4))
    inner = weights.at("a").at(0)
    assert inner.name("b") == "a.0.b"
    assert "b" in inner
    assert "b" not in weights
    assert inner.vector("b", 3).tolist() == [1, 1, 1]
    assert inner.matrix("c", 2, 4).shape == (2, 4)
    weights.finish()


def test_first_scope_that_has_the_tensor() -> None:
    weights = weights_of(inner_norm=torch.ones(1))
    assert weights.under_first(("outer", "inner", ""), "norm").name("norm") == "inner.norm"
    assert weights.under_first(("outer", ""), "norm").name("norm") == "outer.norm"


def test_missing_unexpected_and_misshapen_are_named() -> None:
    weights = weights_of(a_b=torch.ones(3), c_d=torch.ones(3), c_e=torch.ones(3), buffer_x=torch.ones(1))
    with pytest.raises(BadWeights, match=r"`a\.missing` is missing in here"):
        weights.at("a").vector("missing", 3)
    with pytest.raises(BadWeights, match=re.escape("`a.b` has the shape (3,); the config asks for (4,)")):
        weights.at("a").vector("b", 4)
    with pytest.raises(BadWeights, match=re.escape("`a.b` has the shape (3,); the config asks for (3, 1)")):
        weights.at("a").matrix("b", 3, 1)
    weights.at("a").vector("b", 3)
    with pytest.raises(BadWeights, match=r"file holds the tensor `buffer\.x` and 2 more"):
        weights.finish()
    with pytest.raises(BadWeights, match=r"file holds the tensor `c\.d`, which"):
        weights.finish([r"buffer\..*", r"c\.e"])
    weights.finish([r"buffer\..*", r"c\..*"])


def test_ignored_patterns_match_whole_names() -> None:
    weights = weights_of(attn_bias_extra=torch.ones(1))
    with pytest.raises(BadWeights):
        weights.finish([r"attn\.bias"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn, torch.bool])
def test_dtypes_that_are_not_run_are_refused(dtype: torch.dtype) -> None:
    weights = weights_of(w=torch.ones(2, 2).to(dtype))
    with pytest.raises(BadWeights, match=f"`w` is stored as {dtype}; known are float32, bfloat16, float16"):
        weights.matrix("w", 2, 2)


def test_transposed_is_a_view() -> None:
    stored = torch.arange(6.0).view(2, 3)
    weight = weights_of(w=stored).matrix("w", 3, 2, transposed=True)
    assert weight.shape == (3, 2)
    assert torch.equal(weight.tensors[0], stored.T)
    assert weight.tensors[0].data_ptr() == stored.data_ptr()


def test_vectors_meet_activations_in_float32() -> None:
    assert weights_of(v=torch.ones(2).bfloat16()).vector("v", 2).dtype == torch.float32


def test_dtype_must_be_known(folder: Path) -> None:
    with pytest.raises(BadRequest, match="dtype is 'int3'; it must be one of auto, float32, bfloat16, float16"):
        open_model(folder, "int3")


def test_weight_counts_its_bytes() -> None:
    weight = Weight.of(torch.zeros(4, 8, dtype=torch.bfloat16))
    assert (weight.format, weight.nbytes, weight.device.type) == ("bfloat16", 64, "cpu")


# ---- mapping ------------------------------------------------------------------------------------------------------

RESIDENT = """
import sys
from pathlib import Path
from byhand.checkpoint import open_checkpoint
from byhand.kernels import backend
from byhand.models import build

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

build(open_checkpoint(sys.argv[1]), backend())
before = anonymous()
model = build(open_checkpoint(sys.argv[2]), backend())
loaded = anonymous() - before
total = float(model.lm_head.weight.tensors[0].sum())
print(loaded, anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_weights_are_mapped_not_copied(kind: str, tmp_path: Path) -> None:
    small = tiny(tmp_path / "small")
    big = make_checkpoint(tmp_path / "big", {**CONFIGS["llama", "tiny"], "vocab_size": 200_000}, dtype=torch.bfloat16)
    if kind == "pickle":
        small, big = to_pickle(small), to_pickle(big)
    size = open_checkpoint(big).weight_bytes
    assert size > 38e6
    run = [sys.executable, "-c", RESIDENT, str(small), str(big)]
    root = Path(__file__).parents[1]
    out = subprocess.run(run, capture_output=True, text=True, check=True, cwd=root).stdout.split()
    assert int(out[0]) < size / 10
    assert int(out[1]) < size / 4


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings are read from /proc")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_tensors_lie_in_the_file(kind: str, family: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path, family)
    ours: Any = open_model(to_pickle(folder) if kind == "pickle" else folder)
    linear = ours.blocks[0].mlp.up
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if str(folder) in line]
    address = linear.weight.tensors[0].data_ptr()
    assert any(int(low, 16) <= address < int(high, 16) for low, high in ranges)


# ---- shards and pickles -------------------------------------------------------------------------------------------


def shard(folder: Path, save: Callable[[dict[str, torch.Tensor], Path], None], stem: str, extension: str) -> None:
    """Split model.safetensors in two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {f"{stem}-00001-of-00002.{extension}": names[::2], f"{stem}-00002-of-00002.{extension}": names[1::2]}
    for file, held in halves.items():
        save({name: tensors[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in halves.items() for name in held}
    (folder / f"{stem}.{extension}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_sharded_equals_single(folder: Path) -> None:
    expected = greedy(open_model(folder), PROMPTS, 8)
    shard(folder, save_file, "model", "safetensors")
    checkpoint = open_checkpoint(folder)
    assert [file.name[-22:-12] for file in checkpoint.weight_files] == ["1-of-00002", "2-of-00002"]
    assert greedy(open_model(folder), PROMPTS, 8) == expected


@pytest.mark.parametrize("kind", ["zip", "legacy", "sharded", "parameters"])
def test_pickles_equal_safetensors(kind: str, folder: Path) -> None:
    expected = greedy(open_model(folder), PROMPTS, 8)
    if kind == "sharded":
        shard(folder, torch.save, "pytorch_model", "bin")
    elif kind == "parameters":
        to_pickle(folder, lambda held: {name: torch.nn.Parameter(tensor) for name, tensor in held.items()})
    else:
        to_pickle(folder, _use_new_zipfile_serialization=kind == "zip")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.weight_files[0].suffix == ".bin"
    assert len(checkpoint.notes) == 1
    assert "pickle" in checkpoint.notes[0]
    assert greedy(open_model(folder), PROMPTS, 8) == expected


def test_tied_head_in_a_pickle_is_one_storage(tmp_path: Path) -> None:
    folder = tiny(tmp_path, "opt")
    expected = greedy(open_model(folder), PROMPTS, 8)
    to_pickle(folder, lambda held: held | {"lm_head.weight": held["model.decoder.embed_tokens.weight"]})
    assert greedy(open_model(folder), PROMPTS, 8) == expected


def test_safetensors_win_over_pickles(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    checkpoint = open_checkpoint(folder)
    assert [file.name for file in checkpoint.weight_files] == ["model.safetensors"]
    assert checkpoint.notes == ()
    open_model(folder)


class Payload:
    """Writes a file when it is unpickled without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(zipped: bool, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    target, file = folder / "owned", folder / "pytorch_model.bin"
    torch.save({"weight": Payload(target)}, file, _use_new_zipfile_serialization=zipped)
    sentence = refusal(folder)
    assert "refused by torch's restricted unpickler" in sentence
    file.write_bytes(pickle.dumps(Payload(target)))
    refusal(folder)
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list, not a dictionary"),
        ({"a": 1}, "the entry 'a' is a int, not a tensor"),
        ({1: torch.ones(1)}, "the entry 1 is a Tensor, not a tensor with a name"),
        ({"model": {"a": torch.ones(1)}}, "the entry 'model' is a dict"),
    ],
)
def test_pickles_of_other_things_are_refused(content: Any, words: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    assert words in refusal(folder)


# ---- damage -------------------------------------------------------------------------------------------------------


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write_header(file: Path, header: Any, data: bytes) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def only_size(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:8])


def huge_header(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 2**60) + file.read_bytes()[8:])


def header_beyond_file(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 10**6) + file.read_bytes()[8:])


def not_json(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:8] + b"x" + file.read_bytes()[9:])


def overlapping(file: Path) -> None:
    header, data = header_of(file)
    names = [name for name in header if name != "__metadata__"]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    write_header(file, header, data)


def offsets_beyond_file(file: Path) -> None:
    header, data = header_of(file)
    header[NORM]["data_offsets"][1] += 10**9
    write_header(file, header, data)


def shape_unlike_size(file: Path) -> None:
    header, data = header_of(file)
    header[NORM]["shape"] = [10**15]
    write_header(file, header, data)


def unknown_dtype(file: Path) -> None:
    header, data = header_of(file)
    header[NORM]["dtype"] = "F7"
    write_header(file, header, data)


def nested_header(file: Path) -> None:
    text = b"[" * 200_000
    file.write_bytes(struct.pack("<Q", len(text)) + text)


def html_page(file: Path) -> None:
    file.write_text("<!doctype html><title>Too many requests</title>" * 20)


DAMAGES = [
    truncate, empty, only_size, huge_header, header_beyond_file, not_json, overlapping, offsets_beyond_file,
    shape_unlike_size, unknown_dtype, nested_header, html_page,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_safetensors(damage: Callable[[Path], None], folder: Path) -> None:
    damage(folder / "model.safetensors")
    sentence = refusal(folder)
    assert str(folder / "model.safetensors") in sentence
    assert ("begins like an HTML page" if damage is html_page else "is not a whole safetensors file") in sentence


@pytest.mark.parametrize("damage", [truncate, empty, only_size, html_page], ids=lambda d: d.__name__)
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_pickles(damage: Callable[[Path], None], zipped: bool, folder: Path) -> None:
    to_pickle(folder, _use_new_zipfile_serialization=zipped)
    damage(folder / "pytorch_model.bin")
    assert str(folder / "pytorch_model.bin") in refusal(folder)


def test_missing_tensor(folder: Path) -> None:
    rewrite_tensors(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != NORM})
    assert refusal(folder) == f"the tensor `{NORM}` is missing in {folder / 'model.safetensors'}"
    shard(folder, save_file, "model", "safetensors")
    assert refusal(folder) == f"the tensor `{NORM}` is missing in {folder}"


def test_unexpected_tensor(folder: Path) -> None:
    rewrite_tensors(folder, lambda tensors: tensors | {"model.layers.3.adapter": torch.ones(1)})
    assert refusal(folder) == (
        f"{folder / 'model.safetensors'} holds the tensor `model.layers.3.adapter`, "
        "which this architecture does not have"
    )


def test_names_in_a_file_cannot_write_on_the_terminal(folder: Path) -> None:
    rewrite_tensors(folder, lambda tensors: tensors | {"\x1b[2J\nall is well": torch.ones(1)})
    assert "`\\x1b[2J\\nall is well`" in refusal(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_random_damage_is_read_or_refused(kind: str, folder: Path) -> None:
    if kind != "safetensors":
        to_pickle(folder, _use_new_zipfile_serialization=kind == "zip")
    file = open_checkpoint(folder).weight_files[0]
    whole, refused = file.read_bytes(), 0
    for seed in range(60):
        dice = random.Random(seed)
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 2, 20])):
            damaged[dice.choice([1, -1]) * dice.randrange(4000)] = dice.randrange(256)
        file.write_bytes(damaged)
        try:
            open_model(folder)
        except BadWeights:
            refused += 1
    assert refused > 20


def test_layers_that_the_config_does_not_count_are_unexpected(folder: Path) -> None:
    rewrite_config(folder, num_hidden_layers=2)
    assert "`model.layers.2.input_layernorm.weight` and 8 more" in refusal(folder)


def test_wrong_shape(folder: Path) -> None:
    rewrite_config(folder, intermediate_size=81)
    assert "has the shape (80, 48); the config asks for (81, 48)" in refusal(folder)


def write_index(folder: Path, index: Any) -> None:
    shard(folder, save_file, "model", "safetensors")
    (folder / "model.safetensors.index.json").write_text(index if isinstance(index, str) else json.dumps(index))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 200_000, "nested too deeply"),
        ([], "must be a JSON object"),
        ({}, "`weight_map` must be an object"),
        ({"weight_map": {}}, "`weight_map` must be an object"),
        ({"weight_map": ["a"]}, "`weight_map` must be an object"),
        ({"weight_map": {"a": "gone.safetensors"}}, "names the shard gone.safetensors, which is not there"),
        (
            {"weight_map": {"a": "../../etc/passwd"}},
            "names the shard '../../etc/passwd'; it must be a .safetensors file in",
        ),
        ({"weight_map": {"a": "../x.safetensors"}}, "names the shard '../x.safetensors'; it must be a .safetensors"),
        ({"weight_map": {"a": "/etc/passwd"}}, "it must be a .safetensors file in the same folder"),
        ({"weight_map": {"a": ".."}}, "it must be a .safetensors file in the same folder"),
        ({"weight_map": {"a": 3}}, "names the shard '3'; it must be a .safetensors file in the same folder"),
        ({"weight_map": {"a": "model.bin"}}, "names the shard 'model.bin'; it must be a .safetensors file"),
    ],
)
def test_damaged_indexes(index: Any, words: str, folder: Path) -> None:
    write_index(folder, index)
    sentence = refusal(folder)
    assert words in sentence
    assert str(folder / "model.safetensors.index.json") in sentence


def test_a_tensor_in_two_shards(folder: Path) -> None:
    shard(folder, save_file, "model", "safetensors")
    first, second = sorted(folder.glob("model-*.safetensors"))
    name = sorted(load_file(first))[0]
    save_file({**load_file(second), name: torch.ones(1)}, second)
    assert refusal(folder) == f"the tensor `{name}` lies in two files: {first.name} and {second.name}"


def test_a_file_that_goes_after_it_was_found(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadWeights, match="is not a whole safetensors file"):
        map_tensors(checkpoint)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointNotFound, match="neither model"):
        open_model(folder)
