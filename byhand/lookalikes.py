"""What lies where a checkpoint should be: each kind is told in one sentence, with what to do. No torch here."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from byhand.errors import BadConfig, CheckpointError, CheckpointNotFound, UnknownArchitecture

ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
# Weights that other programs read.
FOREIGN = ("*.h5", "*.msgpack", "*.onnx", "*.npz", "*.pth", "*.pt", "*.ckpt")

_POINTER = b"version https://git-lfs.github.com/spec/"
_GGUF = b"GGUF"
_MODELS = Path(__file__).with_name("models")


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


def check_no_pointer(file: Path, error: type[CheckpointError]) -> None:
    """Refuse what a clone without git-LFS leaves in place of a large file."""
    if _begins(file, _POINTER):
        raise error(
            f"{file} is a git-LFS pointer, not the file itself",
            hint="`git lfs pull` in its folder fetches the file, and so does opening the model by its hub id",
        )


def explain_file(file: Path) -> CheckpointNotFound:
    """Why a file is no checkpoint."""
    if file.suffix == ".gguf" or _begins(file, _GGUF):
        return _explain_gguf(f"{file} is")
    return CheckpointNotFound(f"{file} is not a checkpoint: give a folder, a .safetensors file or a hub id")


def explain_folder(folder: Path, config: Mapping[str, Any] | None) -> CheckpointError:
    """Why a folder that lacks a config.json (None), or the weights to it, is no checkpoint."""
    if (folder / ADAPTER).is_file():
        return _explain_adapter(folder)
    if gguf := sorted(folder.glob("*.gguf")):
        return explain_file(gguf[0])
    if config is None:
        return CheckpointNotFound(f"{folder} is not a checkpoint: it has no config.json")
    check_architecture(folder, config)
    missing = f"{folder} is not a checkpoint: it has a config.json but neither model.safetensors nor pytorch_model.bin"
    if shards := sorted(folder.glob("model-*-of-*.safetensors")):
        return CheckpointNotFound(
            f"{folder} has {shards[0].name} but no {INDEX}, which says what lies where",
            hint=f"fetch {INDEX} from where the others came",
        )
    if others := sorted(folder.glob("*.safetensors")):
        return CheckpointNotFound(f"{missing}, only {others[0].name}", hint="give that file itself")
    if foreign := sorted(file for pattern in FOREIGN for file in folder.glob(pattern)):
        return CheckpointNotFound(
            f"{folder} has its weights in {foreign[0].name}, which byhand does not read",
            hint="transformers' save_pretrained writes a model.safetensors",
        )
    return CheckpointNotFound(missing, hint="fetch the weights, or open the model by its hub id")


def explain_repository(repo_id: str, names: Iterable[str]) -> CheckpointNotFound:
    """Why a repository of the hub that has no config.json, but files of these names, is no checkpoint."""
    if gguf := sorted(name for name in names if name.endswith(".gguf")):
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
        hint="merge it into its base first: peft's merge_and_unload, then save_pretrained",
    )


def _begins(file: Path, magic: bytes) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(magic)) == magic
    except OSError:
        return False  # whoever reads it says so


def _short(value: object) -> str:
    return repr(value)[:120]
