"""Checkpoints as people have them: wrapped names, and what lies where weights should be, each told in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from byhand import LLM
from byhand.checkpoint import open_checkpoint
from byhand.cli.main import main
from byhand.convert import convert
from byhand.errors import BadConfig, BadWeights, ByhandError, CheckpointError, CheckpointNotFound, UnknownArchitecture
from byhand.kernels import backend
from byhand.lookalikes import explain_repository
from byhand.models import build
from byhand.text.template import read_sources
from tests.checkpoints import greedy, open_model, random_prompt, rewrite_config, rewrite_tensors, tiny, to_pickle

PROMPTS = [random_prompt(128, 9, seed=1)]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 538090408\n".format("0" * 64)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, with its tokenizer."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def refusal(kind: type[ByhandError], action: Callable[[], object]) -> str:
    """The sentence of a refusal, which says what to do too."""
    with pytest.raises(kind) as refused:
        action()
    assert "\n" not in str(refused.value)
    assert refused.value.hint
    return str(refused.value)


# ---- names that a wrapper has left --------------------------------------------------------------------------------

WRAPPED: dict[str, Callable[[str], str]] = {
    "module.": lambda name: f"module.{name}",
    "_orig_mod.": lambda name: f"_orig_mod.{name}",
    "_orig_mod.module.": lambda name: f"_orig_mod.module.{name}",
    "module._orig_mod.": lambda name: f"module._orig_mod.{name}",
    "_fsdp_wrapped_module.": lambda name: f"_fsdp_wrapped_module.{name}",
    "_checkpoint_wrapped_module.": lambda name: f"_checkpoint_wrapped_module.{name}",
    "base_model.model.": lambda name: f"base_model.model.{name}",
    "module.base_model.model.": lambda name: f"module.base_model.model.{name}",
    "each block": lambda name: re.sub(r"(\.\d+\.)", r"\1_orig_mod.", name),
    "each block of a wrapped model": lambda name: "module." + re.sub(r"(\.\d+\.)", r"\1_orig_mod.", name),
}


@pytest.mark.parametrize("is_pickle", [False, True], ids=["safetensors", "pickle"])
@pytest.mark.parametrize(
    ("family", "kind"),
    [*(("llama", kind) for kind in WRAPPED), ("gpt2", "module."), ("gpt2", "base_model.model.")],
)
def test_wrapped_names_open(family: str, kind: str, is_pickle: bool, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "old", family)
    expected = greedy(open_model(folder), PROMPTS, 6)

    def wrap(tensors: dict[str, Any]) -> dict[str, Any]:
        return {WRAPPED[kind](name): tensor for name, tensor in tensors.items()}

    if is_pickle:
        to_pickle(folder, wrap)
    else:
        rewrite_tensors(folder, wrap)
    notes: list[str] = []
    model = build(open_checkpoint(folder), backend("reference"), note=notes.append)
    assert greedy(model, PROMPTS, 6) == expected
    [note] = notes
    wrapped = f".{WRAPPED[kind]('a.1.b')}"
    for wrapper in (
        "module.",
        "_orig_mod.",
        "_fsdp_wrapped_module.",
        "_checkpoint_wrapped_module.",
        "base_model.model.",
    ):
        assert (f"`{wrapper}`" in note) == (f".{wrapper}" in wrapped)


def test_the_note_of_wrapped_names_is_told(folder: Path, tmp_path: Path) -> None:
    plain = LLM(folder)
    assert plain.notes == []
    expected = plain.generate("the dog").ids  # type: ignore[union-attr]
    rewrite_tensors(folder, lambda tensors: {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()})
    told: list[str] = []
    llm = LLM(folder, note=told.append)
    assert llm.generate("the dog").ids == expected  # type: ignore[union-attr]
    assert [line for line in told if "_orig_mod" in line] == llm.notes
    names = load_file(convert(folder, tmp_path / "new") / "model.safetensors")
    assert "model.norm.weight" in names


def test_one_name_in_two_wrappings_is_refused(folder: Path) -> None:
    rewrite_tensors(folder, lambda tensors: tensors | {"module.model.norm.weight": torch.ones(48)})
    with pytest.raises(BadWeights, match=r"`model\.norm\.weight` lies twice in model\.safetensors"):
        open_model(folder)


@pytest.mark.parametrize("prefix", ["base_model.model.", "", "module.base_model.model."])
@pytest.mark.parametrize(
    "part", ["lora_A.default.weight", "lora_B.weight", "lora_embedding_A.default", "base_layer.weight"]
)
def test_parts_of_an_adapter_among_the_weights(part: str, prefix: str, folder: Path) -> None:
    def unmerged(tensors: dict[str, Any]) -> dict[str, Any]:
        return {prefix + name: tensor for name, tensor in tensors.items()} | {f"{prefix}model.a.{part}": torch.ones(1)}

    rewrite_tensors(folder, unmerged)
    sentence = refusal(BadWeights, lambda: open_model(folder))
    assert sentence.startswith(
        f"{folder / 'model.safetensors'} holds a LoRA adapter's `model.a.{part}`, not a whole model"
    )
    assert "merge_and_unload" in sentence


# ---- pointers of git-LFS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "config.json", "tokenizer.json"],
)
def test_a_pointer_in_place_of_a_file(name: str, folder: Path) -> None:
    if name in ("pytorch_model.bin", "model.safetensors.index.json"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(POINTER)
    sentence = refusal(CheckpointError, lambda: LLM(folder))
    assert sentence.startswith(f"{folder / name} is a git-LFS pointer, not the file itself")
    assert "git lfs pull" in sentence


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_pointer_in_place_of_an_older_tokenizer(name: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "gpt2", "gpt2")
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    assert LLM(folder).tokenize("ab")[0].id == 2
    (folder / name).write_text(POINTER)
    assert f"{folder / name} is a git-LFS pointer" in refusal(CheckpointError, lambda: LLM(folder))


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "chat_template.json",
        "tokenizer_config.json",
    ],
)
def test_a_pointer_in_place_of_a_template(name: str, folder: Path) -> None:
    for other in (folder / "chat_template.jinja", folder / "tokenizer_config.json"):
        other.unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(POINTER)
    sentence = refusal(BadConfig, lambda: read_sources(folder))
    assert sentence.startswith(f"{folder / name} is a git-LFS pointer, not the file itself")


def test_a_pointer_among_shards(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model-1.safetensors")
    (folder / "model-2.safetensors").write_text(POINTER)
    shards = dict.fromkeys(tensors, "model-1.safetensors") | {"more": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "model-2.safetensors is a git-LFS pointer" in refusal(BadWeights, lambda: LLM(folder))


# ---- another thing in place of weights ----------------------------------------------------------------------------


def bare(folder: Path, *, config: bool = True) -> Path:
    """The folder without weights, and maybe without its config.json."""
    (folder / "model.safetensors").unlink()
    if not config:
        (folder / "config.json").unlink()
    return folder


@pytest.mark.parametrize("config", [False, True], ids=["no config.json", "config.json"])
def test_only_a_lora_adapter(config: bool, folder: Path) -> None:
    said = {"peft_type": "LORA", "base_model_name_or_path": "org/base\n7B"}
    (bare(folder, config=config) / "adapter_config.json").write_text(json.dumps(said))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    for source in (folder, folder / "adapter_model.safetensors"):
        sentence = refusal(CheckpointNotFound, lambda source=source: open_checkpoint(source))  # type: ignore[misc]
        assert sentence.startswith(f"{folder} is a LoRA adapter for 'org/base\\n7B', not a whole model")
        assert "merge_and_unload" in sentence
    (folder / "adapter_config.json").write_text("{")
    assert f"{folder} is a LoRA adapter, not" in refusal(CheckpointNotFound, lambda: open_checkpoint(folder))


def test_an_adapter_beside_a_whole_model_is_noted(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    [note] = open_checkpoint(folder).notes
    assert "a LoRA adapter lies in the folder too; it is not applied" in note


@pytest.mark.parametrize("config", [False, True], ids=["no config.json", "config.json"])
@pytest.mark.parametrize(("name", "content"), [("tiny-Q4_K_M.gguf", b"GGUF\x03\x00\x00\x00"), ("M.GGUF", b"")])
def test_a_gguf_file(name: str, content: bytes, config: bool, folder: Path) -> None:
    file = bare(folder, config=config) / name
    file.write_bytes(content)
    for source in (file, folder):
        sentence = refusal(CheckpointNotFound, lambda source=source: open_checkpoint(source))  # type: ignore[misc]
        assert sentence.startswith(f"{file} is a GGUF file, llama.cpp's format, which byhand does not read")
        assert "safetensors" in sentence


def test_a_gguf_file_of_the_hub_in_upper_case() -> None:
    assert "M.GGUF: a GGUF file" in str(explain_repository("org/model", ["README.md", "M.GGUF"]))


OTHERS = {
    "gguf": (b"GGUF\x03\x00\x00\x00", "is a GGUF file, llama.cpp's format, which byhand does not read"),
    "html": (b"\n<!DOCTYPE html>\n<html><title>404</title>", "begins like an HTML page"),
    "html with a mark": (b"\xef\xbb\xbf<HTML lang=en>", "begins like an HTML page"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "shard-1.safetensors"])
def test_another_kind_of_file_by_a_name_of_weights(name: str, kind: str, folder: Path) -> None:
    content, words = OTHERS[kind]
    (bare(folder) / name).write_bytes(content)
    if name.startswith("shard"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    for source in (folder, folder / name):
        sentence = refusal(CheckpointError, lambda source=source: open_checkpoint(source))  # type: ignore[misc]
        assert sentence.startswith(f"{folder / name} {words}")
    (folder / "config.json").unlink()
    assert words in refusal(CheckpointError, lambda: open_checkpoint(folder / name))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_a_page_in_place_of_a_file(name: str, folder: Path) -> None:
    if name.endswith("index.json"):
        bare(folder)
    (folder / name).write_bytes(OTHERS["html"][0])
    assert refusal(CheckpointError, lambda: LLM(folder)).startswith(f"{folder / name} begins like an HTML page")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "M.gguf", "tuned.safetensors"]
)
def test_a_folder_by_a_name_of_weights(name: str, folder: Path) -> None:
    (bare(folder) / name).mkdir()
    sentence = refusal(CheckpointNotFound, lambda: open_checkpoint(folder))
    assert sentence.startswith(f"{folder / name} is a folder, where a file of weights should be")


def test_a_gguf_file_by_another_name(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert "is a GGUF file" in refusal(CheckpointNotFound, lambda: open_checkpoint(tmp_path / "blob"))


@pytest.mark.parametrize("kind", ["phi", "phi3", "gemma", "gemma3", "mamba"])
@pytest.mark.parametrize("weights", [False, True], ids=["no weights", "weights"])
def test_an_architecture_that_is_not_here(kind: str, weights: bool, folder: Path) -> None:
    rewrite_config(folder, model_type=kind)
    if not weights:
        bare(folder)
    sentence = refusal(UnknownArchitecture, lambda: LLM(folder))
    assert f"`model_type` is '{kind}' in {folder / 'config.json'}" in sentence
    assert "gpt2, llama, mistral, olmo2, opt, qwen2, qwen3" in sentence


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model-00001-of-00002.safetensors", "but no model.safetensors.index.json, which says what lies where"),
        ("tuned.safetensors", "give that file itself"),
        ("tf_model.h5", "which byhand does not read"),
        ("flax_model.msgpack", "which byhand does not read"),
        ("consolidated.00.pth", "which byhand does not read"),
        ("model.onnx", "which byhand does not read"),
        ("weights.npz", "which byhand does not read"),
    ],
)
def test_weights_of_another_kind_or_name(name: str, words: str, folder: Path) -> None:
    (bare(folder) / name).write_bytes(b"")
    sentence = refusal(CheckpointNotFound, lambda: open_checkpoint(folder))
    assert name in sentence
    assert words in sentence


def test_a_configuration_alone(folder: Path) -> None:
    sentence = refusal(CheckpointNotFound, lambda: open_checkpoint(bare(folder)))
    assert "it has a config.json but neither model.safetensors nor pytorch_model.bin" in sentence
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointNotFound, match=r"is not a checkpoint: it has no config\.json$"):
        open_checkpoint(folder)


@pytest.mark.parametrize("command", ["run", "models"])
@pytest.mark.parametrize("made", ["phi", "adapter", "gguf", "pointer"])
def test_commands_tell_it_in_one_sentence(
    command: str, made: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if made == "phi":
        rewrite_config(bare(folder), model_type="phi")
    elif made == "pointer":
        (folder / "model.safetensors").write_text(POINTER)
    else:
        name = "adapter_config.json" if made == "adapter" else "a.gguf"
        (bare(folder, config=False) / name).write_bytes(b"GGUF")
    argv = ["models", str(folder)] if command == "models" else ["run", "the dog", "--model", str(folder)]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "unexpected" not in err
