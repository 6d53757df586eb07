"""What a checkpoint is, from its config and its tensors' headers: nothing is loaded, no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import Any

from byhand.checkpoint import Checkpoint, open_checkpoint, read_json_object
from byhand.errors import BadWeights, ByhandError, CheckpointNotFound

# A safetensors header is JSON; one of 100 MB is no header.
LONGEST_HEADER = 100_000_000

# config.json's names of today, and those that GPT-2's still has.
SHAPE = {
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "n_positions",
    "sliding_window": "sliding_window",
}


def describe(source: str | None, revision: str | None, known: Collection[str]) -> dict[str, Any]:
    """Name, architecture, shape, weights, tokenizer, template and sampling settings of a checkpoint."""
    checkpoint = open_checkpoint(source, revision, weights=False)
    config = checkpoint.config
    return {
        "name": checkpoint.identity.name,
        "folder": str(checkpoint.folder),
        "architecture": checkpoint.model_type,
        "can_be_opened": checkpoint.model_type in known,
        "shape": _shape(config),
        "stored_as": config.get("dtype", config.get("torch_dtype")),
        "weights": _weights(source, revision, checkpoint),
        "tokenizer": _tokenizer(checkpoint.folder),
        "chat_template": _has_template(checkpoint.folder),
        "generation_config": checkpoint.generation_config,
    }


def _shape(config: dict[str, Any]) -> dict[str, int]:
    """The fields of SHAPE that a config.json has, under today's names."""
    values = {name: config.get(name, config.get(old)) for name, old in SHAPE.items()}
    return {name: value for name, value in values.items() if isinstance(value, int) and value}


def _weights(source: str | None, revision: str | None, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Files, bytes, and for safetensors parameters by dtype; None while they are not on this machine."""
    is_remote = source is not None and not Path(source).expanduser().exists()
    try:
        opened = open_checkpoint(checkpoint.folder if is_remote else source)
    except CheckpointNotFound:
        if is_remote:
            return None
        raise
    files = opened.weight_files
    counts: Counter[str] = Counter()
    for file in files:
        if file.suffix == ".safetensors":
            counts.update(_parameters(file))
    return {
        "files": [file.name for file in files],
        "bytes": opened.weight_bytes,
        "parameters": sum(counts.values()) or None,
        "dtypes": dict(counts),
    }


def _parameters(file: Path) -> Counter[str]:
    """Parameters of one safetensors file by dtype, from its header alone."""
    header = read_header(file)
    counts: Counter[str] = Counter()
    try:
        for name, entry in header.items():
            if name != "__metadata__":
                counts[str(entry["dtype"])] += prod(int(size) for size in entry["shape"])
    except (KeyError, TypeError, ValueError):
        raise BadWeights(f"{file}: the header of tensor {name!r} has no dtype and shape") from None
    return counts


def read_header(file: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: eight bytes of its length, then itself."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        data = opened.read(length) if length <= LONGEST_HEADER else b""
    try:
        header = json.loads(data) if len(data) == length else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise BadWeights(f"{file} has no safetensors header: it is truncated, or another kind of file")
    return header


def _tokenizer(folder: Path) -> str | None:
    for names in (("tokenizer.json",), ("vocab.json", "merges.txt")):
        if all((folder / name).is_file() for name in names):
            return " + ".join(names)
    return None


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    config = folder / "tokenizer_config.json"
    try:
        return config.is_file() and bool(read_json_object(config).get("chat_template"))
    except ByhandError:
        return False
