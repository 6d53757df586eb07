"""Finding and opening checkpoints; every wrong one a sentence. And writing them anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from byhand import shards as shards_room
from byhand.checkpoint import EMBEDDED, Checkpoint, open_checkpoint
from byhand.convert import convert
from byhand.errors import BadConfig, BadRequest, BadWeights, CheckpointError, CheckpointNotFound
from tests.checkpoints import greedy, open_model, random_prompt, rewrite_config, rewrite_tensors, tiny, to_pickle
from tests.test_house import modules_after

PROMPTS = [random_prompt(128, 9, seed=1), random_prompt(128, 3, seed=2)]
ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny(tmp_path / "tiny")


def refusal(kind: type[CheckpointError], source: Any, **options: Any) -> str:
    """The sentence with which a source is refused."""
    with pytest.raises(kind) as refused:
        open_checkpoint(source, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ---- sources ------------------------------------------------------------------------------------------------------


def test_a_folder(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint == open_checkpoint(str(folder))
    assert (checkpoint.folder, checkpoint.model_type, checkpoint.identity.name) == (folder, "llama", "tiny")
    assert checkpoint.config == json.loads((folder / "config.json").read_text())
    assert checkpoint.weight_files == (folder / "model.safetensors",)
    assert checkpoint.weight_bytes == (folder / "model.safetensors").stat().st_size
    assert checkpoint.notes == ()


def test_a_relative_folder_has_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert open_checkpoint(".").identity.name == "tiny"
    assert open_checkpoint("model.safetensors").identity.name == "tiny"


def test_a_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert open_checkpoint("~/tiny").identity.name == "tiny"


def test_one_file_beside_its_config(folder: Path) -> None:
    other = folder / "tuned.safetensors"
    other.write_bytes((folder / "model.safetensors").read_bytes())
    checkpoint = open_checkpoint(other)
    assert checkpoint.weight_files == (other,)
    assert checkpoint.identity.name == "tuned"
    assert greedy(open_model(other), PROMPTS, 4) == greedy(open_model(folder), PROMPTS, 4)


def test_the_embedded_model_is_named() -> None:
    if not (ROOT / "byhand/assets/tiny/model.safetensors").exists():
        pytest.skip("the embedded model has not been trained yet")
    checkpoint = open_checkpoint()
    assert checkpoint.identity.name == EMBEDDED
    assert checkpoint.model_type == "llama"


def test_generation_config_is_read(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    assert open_checkpoint(folder).generation_config == {"temperature": 0.6}
    (folder / "generation_config.json").unlink()
    assert open_checkpoint(folder).generation_config == {}
    (folder / "generation_config.json").write_text("[1]")
    assert open_checkpoint(folder).generation_config == {}


def test_without_weights_only_the_description_is_needed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    checkpoint = open_checkpoint(folder, weights=False)
    assert (checkpoint.weight_files, checkpoint.model_type) == ((), "llama")
    refusal(CheckpointNotFound, folder)


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c", "no such", "gone.safetensors", "../x", ""])
def test_nothing_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name:
        assert refusal(CheckpointNotFound, name) == f"{name} does not exist: no such folder or file"
        assert refusal(CheckpointNotFound, Path(name)) == f"{Path(name)} does not exist: no such folder or file"
    else:
        refusal(CheckpointNotFound, name)


def test_a_path_is_never_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such folder or file" in refusal(CheckpointNotFound, Path("owner/model"))


def test_not_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (
        refusal(CheckpointNotFound, tmp_path / "empty")
        == f"{tmp_path / 'empty'} is not a checkpoint: it has no config.json"
    )
    (tmp_path / "alone.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert "it has no config.json" in refusal(CheckpointNotFound, tmp_path / "alone.safetensors")
    (tmp_path / "model.bin").write_bytes(b"another kind of file")
    assert "give a folder, a .safetensors file or a hub id" in refusal(CheckpointNotFound, tmp_path / "model.bin")


def test_a_revision_of_a_local_folder_is_refused(folder: Path) -> None:
    with pytest.raises(BadRequest, match=r"revision is 'v1', but .* is on this machine"):
        open_checkpoint(folder, revision="v1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000 + "]" * 200_000, "is nested too deeply to be read"),
        ('{"a":' * 200_000 + "1" + "}" * 200_000, "is nested too deeply to be read"),
        ("", "is not JSON"),
        ("{'a': 1}", "is not JSON"),
        ('{"a": 1', "is not JSON"),
        ("[]", "holds a list; it must be a JSON object"),
        ("null", "holds a NoneType; it must be a JSON object"),
        ('"llama"', "holds a str; it must be a JSON object"),
        ('{"a": ' + "9" * 10_000 + "}", "is not JSON"),
    ],
)
def test_configs_that_cannot_be_read(text: str, words: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    sentence = refusal(BadConfig, folder)
    assert sentence.startswith(f"{folder / 'config.json'} ")
    assert words in sentence


def test_a_config_that_is_no_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00\xd8" * 30)
    assert "is not JSON" in refusal(BadConfig, folder)


def test_model_type_must_be_a_word(folder: Path) -> None:
    rewrite_config(folder, model_type=None)
    with pytest.raises(BadConfig, match="`model_type` is None; it must be a word"):
        _ = open_checkpoint(folder).model_type


# ---- identity -----------------------------------------------------------------------------------------------------


def test_identity_is_stable_and_tells_checkpoints_apart(folder: Path, tmp_path: Path) -> None:
    first = open_checkpoint(folder).identity
    assert first == open_checkpoint(folder).identity
    assert str(first) == f"tiny@{first.digest}"
    assert len(first.digest) == 32
    assert open_checkpoint(tiny(tmp_path / "again")).identity.digest == first.digest
    # The same sizes and header, other numbers.
    assert open_checkpoint(tiny(tmp_path / "other", seed=1)).identity.digest != first.digest
    rewrite_config(folder, rope_theta=10001.0)
    assert open_checkpoint(folder).identity.digest != first.digest


def test_identity_sees_both_ends_of_a_file(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    digests = {open_checkpoint(folder).identity.digest}
    for place in (9, -1):
        changed = data.copy()
        changed[place] ^= 1
        file.write_bytes(changed)
        digests.add(open_checkpoint(folder).identity.digest)
    assert len(digests) == 3


def test_opening_loads_no_torch(folder: Path) -> None:
    loaded = modules_after(f"from byhand.checkpoint import open_checkpoint; open_checkpoint({str(folder)!r})")
    assert not {"torch", "huggingface_hub", "transformers"} & loaded


# ---- convert ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_convert_a_pickle(family: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "old", family)
    expected = greedy(open_model(folder), PROMPTS, 8)
    to_pickle(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "vocab.json").write_text("{}")
    (folder / "secret.txt").write_text("not ours to copy")
    target = convert(folder, tmp_path / "deep" / "new")
    assert sorted(file.name for file in target.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "vocab.json",
    ]  # fmt: skip
    assert open_checkpoint(target).notes == ()
    assert greedy(open_model(target), PROMPTS, 8) == expected
    assert json.loads((target / "config.json").read_text()) == json.loads((folder / "config.json").read_text())


def test_convert_leaves_out_what_nobody_reads(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "old", "gpt2")
    expected = greedy(open_model(folder), PROMPTS, 8)
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(8, 8) for layer in range(3)}
    rewrite_tensors(folder, lambda held: held | masks | {"lm_head.weight": held["transformer.wte.weight"].clone()})
    target = convert(folder, tmp_path / "new")
    names = load_file(target / "model.safetensors").keys()
    assert not any(name.endswith(".attn.bias") or name == "lm_head.weight" for name in names)
    assert greedy(open_model(target), PROMPTS, 8) == expected


def test_convert_keeps_one_storage_with_two_untied_names(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "old")
    to_pickle(folder, lambda held: held | {"lm_head.weight": held["model.embed_tokens.weight"]})
    target = convert(folder, tmp_path / "new")
    assert "lm_head.weight" in load_file(target / "model.safetensors")
    assert greedy(open_model(target), PROMPTS, 8) == greedy(open_model(folder), PROMPTS, 8)


def test_convert_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny(tmp_path / "old")
    monkeypatch.setattr(shards_room, "SHARD_BYTES", 60_000)
    target = convert(folder, tmp_path / "new")
    files = open_checkpoint(target).weight_files
    assert len(files) > 3
    assert all(file.stat().st_size < 70_000 for file in files)
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert greedy(open_model(target), PROMPTS, 8) == greedy(open_model(folder), PROMPTS, 8)


@pytest.mark.parametrize("word", ["dtype", "torch_dtype"])
def test_convert_to_another_dtype(word: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "old")
    rewrite_config(folder, **{word: "float32"})
    target = convert(folder, tmp_path / "new", "bfloat16")
    assert json.loads((target / "config.json").read_text())[word] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(target / "model.safetensors").values()} == {torch.bfloat16}
    assert greedy(open_model(target), PROMPTS, 8) == greedy(open_model(folder, "bfloat16"), PROMPTS, 8)


def test_convert_refuses_what_float16_cannot_hold(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "old")
    rewrite_tensors(folder, lambda tensors: tensors | {"model.norm.weight": torch.full((48,), 1e5)})
    with pytest.raises(BadRequest, match=r"`model\.norm\.weight` holds 100000; float16 ends at 65504"):
        convert(folder, tmp_path / "new", "float16")
    assert not (tmp_path / "new").exists()


def test_convert_refuses_bad_arguments(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="dtype is 'int8'; it must be one of float32, bfloat16, float16"):
        convert(folder, tmp_path / "new", "int8")
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(BadRequest, match="exists already; it must be a new or an empty folder"):
        convert(folder, folder)
    with pytest.raises(BadRequest, match="exists already"):
        convert(folder, folder / "config.json")
    assert (folder / "model.safetensors").read_bytes() == before
    (tmp_path / "empty").mkdir()
    assert open_checkpoint(convert(folder, tmp_path / "empty")).model_type == "llama"


def test_convert_of_a_bad_checkpoint_writes_nothing(folder: Path, tmp_path: Path) -> None:
    rewrite_tensors(folder, lambda tensors: tensors | {"extra": torch.ones(1)})
    with pytest.raises(BadWeights, match="`extra`"):
        convert(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_convert_that_cannot_write_says_so(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"new could not be written: .*Not a directory"):
        convert(folder, tmp_path / "file" / "new")
