"""What lies where a checkpoint should be: each kind is told in one sentence, with what to do. No torch here."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from byhand.errors import BadConfig, BadWeights, CheckpointError, CheckpointNotFound, UnknownArchitecture

ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
# Weights that other programs read.
FOREIGN = ("*.h5", "*.msgpack", "*.onnx", "*.npz", "*.pth", "*.pt", "*.ckpt")

_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json", "*.[gG][gG][uU][fF]", *FOREIGN)
_MERGE = "merge it into its base first: peft's merge_and_unload, then save_pretrained"

_POINTER = b"version https://git-lfs.github.com/spec/"
_GGUF = b"GGUF"
_PAGE = (b"<!doctype html", b"<html")
_MODELS = Path(__file__).with_name("models")

# What trainers wrap a model or its blocks in, and what is then left in the names: DataParallel, torch.compile, FSDP.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# What peft wraps a whole model in, and what its adapters put into the place of a matrix.
_PEFT = "base_model.model"
_OF_ADAPTER = re.compile(r"\blora_\w+|\bbase_layer\b")


def architectures() -> dict[str, str]:
    """Every `model_type` and the file that holds it, read from the files' text: importing them would load torch."""
    return {name: file.name for file in sorted(_MODELS.glob("*.py")) for name in _literal(file, "MODEL_TYPES") or ()}


def learned_positions(model_type: str) -> str | None:
    """The config's field that counts an architecture's learned positions, where it has such."""
    file = architectures().get(model_type)
    found = None if file is None else _literal(_MODELS / file, "LEARNED_POSITIONS")
    return None if found is None else str(found)


def _literal(file: Path, name: str) -> Any:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    return None


def check_architecture(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a `model_type` that has no file in models/."""
    name, known = config.get("model_type"), architectures()
    if not isinstance(name, str):
        raise BadConfig(f"{folder / 'config.json'}: `model_type` is {_short(name)}; it must be a word")
    if name not in known:
        raise unknown_architecture(folder, name, known)


def unknown_architecture(folder: Path, name: str, known: Iterable[str]) -> UnknownArchitecture:
    """The refusal of a `model_type` beside those that are known."""
    return UnknownArchitecture(
        f"`model_type` is {_short(name)} in {folder / 'config.json'}, an architecture that byhand does not have",
        hint=f"it opens {', '.join(sorted(known))}; transformers, vLLM or llama.cpp may open this one",
    )


def check_itself(file: Path, error: type[CheckpointError]) -> None:
    """Refuse what a clone without git-LFS, or a failed download, leaves in place of a file."""
    beginning = _beginning(file)
    if beginning.startswith(_POINTER):
        raise error(
            f"{file} is a git-LFS pointer, not the file itself",
            hint="`git lfs pull` in its folder fetches the file, and so does opening the model by its hub id",
        )
    if beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGE):
        raise error(
            f"{file} begins like an HTML page: its download failed, and this is what the site said instead",
            hint="fetch it again, or open the model by its hub id",
        )


def check_weights(file: Path) -> None:
    """Refuse what begins like another kind of file by the name of weights."""
    check_itself(file, BadWeights)
    if _is_gguf(file):
        raise _explain_gguf(f"{file} is")


def unwrapped(file: Path, name: str) -> tuple[str, set[str]]:
    """A tensor's name without what training wrapped the model in, and the wrappers; an adapter's part is refused."""
    parts = name.split(".")
    found = {part for part in parts if part in _WRAPPERS}
    name = ".".join(part for part in parts if part not in _WRAPPERS)
    if name.startswith(f"{_PEFT}."):
        name = name.removeprefix(f"{_PEFT}.")
        found.add(_PEFT)
    if _OF_ADAPTER.search(name):
        raise BadWeights(f"{file} holds a LoRA adapter's `{_short(name)[1:-1]}`, not a whole model", hint=_MERGE)
    return name, found


def explain_file(file: Path) -> CheckpointNotFound:
    """Why a file is no checkpoint."""
    if _is_gguf(file):  # a pointer to one too: fetching it would not help
        return _explain_gguf(f"{file} is")
    check_itself(file, BadWeights)
    return CheckpointNotFound(f"{file} is not a checkpoint: give a folder, a .safetensors file or a hub id")


def explain_folder(folder: Path, config: Mapping[str, Any] | None) -> CheckpointError:
    """Why a folder that lacks a config.json (None), or the weights to it, is no checkpoint."""
    if (folder / ADAPTER).is_file():
        return _explain_adapter(folder)
    files = [file for file in sorted(folder.glob("*")) if file.is_file()]
    if gguf := [file for file in files if file.suffix.lower() == ".gguf"]:
        return explain_file(gguf[0])
    if config is None:
        return CheckpointNotFound(f"{folder} is not a checkpoint: it has no config.json")
    check_architecture(folder, config)
    missing = f"{folder} is not a checkpoint: it has a config.json but neither model.safetensors nor pytorch_model.bin"
    if shards := [file for file in files if file.match("model-*-of-*.safetensors")]:
        return CheckpointNotFound(
            f"{folder} has {shards[0].name} but no {INDEX}, which says what lies where",
            hint=f"fetch {INDEX} from where the others came",
        )
    if others := [file for file in files if file.match("*.safetensors")]:
        return CheckpointNotFound(f"{missing}, only {others[0].name}", hint="give that file itself")
    if foreign := [file for file in files if any(map(file.match, FOREIGN))]:
        return CheckpointNotFound(
            f"{folder} has its weights in {foreign[0].name}, which byhand does not read",
            hint="transformers' save_pretrained writes a model.safetensors",
        )
    if folders := sorted(each for pattern in _WEIGHTS for each in folder.glob(pattern) if each.is_dir()):
        return CheckpointNotFound(
            f"{folders[0]} is a folder, where a file of weights should be",
            hint="if the file lies in it, move it up; else fetch the weights again",
        )
    return CheckpointNotFound(missing, hint="fetch the weights, or open the model by its hub id")


def explain_repository(repo_id: str, names: Iterable[str]) -> CheckpointNotFound:
    """Why a repository of the hub that has no config.json, but files of these names, is no checkpoint."""
    if gguf := sorted(name for name in names if name.lower().endswith(".gguf")):
        return _explain_gguf(f"{repo_id} holds {gguf[0]}:")
    return CheckpointNotFound(f"{repo_id} is not a checkpoint: it has no config.json")


def adapter_note(folder: Path) -> tuple[str, ...]:
    """What to say of an adapter beside a whole model."""
    is_there = (folder / ADAPTER).is_file()
    return ("a LoRA adapter lies in the folder too; it is not applied",) if is_there else ()


def _explain_gguf(what: str) -> CheckpointNotFound:
    return CheckpointNotFound(
        f"{what} a GGUF file, llama.cpp's format, which byhand does not read",
        hint="open what it was made from: a folder or hub id with safetensors",
    )


def _explain_adapter(folder: Path) -> CheckpointNotFound:
    try:
        base = json.loads((folder / ADAPTER).read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        base = None
    of_base = f" for {_short(base)}" if isinstance(base, str) else ""
    return CheckpointNotFound(
        f"{folder} is a LoRA adapter{of_base}, not a whole model",
        hint=_MERGE,
    )


def _is_gguf(file: Path) -> bool:
    return file.suffix.lower() == ".gguf" or _beginning(file).startswith(_GGUF)


def _beginning(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(128)
    except OSError:
        return b""  # whoever reads it says so


def _short(value: object) -> str:
    return repr(value)[:120]
