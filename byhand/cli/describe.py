"""What a checkpoint is, from its config and its tensors' headers: nothing is loaded, no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Any

from byhand.checkpoint import Checkpoint, StoredFormats, open_checkpoint, read_header, read_json_object
from byhand.context import read_context
from byhand.errors import BadConfig, BadWeights, ByhandError, CheckpointNotFound
from byhand.lookalikes import learned_positions

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
    opened = _opened(source, revision, checkpoint)
    quantized, refusal = _quantized(checkpoint)
    return {
        "name": checkpoint.identity.name,
        "folder": str(checkpoint.folder),
        "architecture": checkpoint.model_type,
        "can_be_opened": checkpoint.model_type in known and refusal is None,
        "quantized": quantized,
        "refusal": refusal,
        "shape": _shape(config),
        "context": _context(checkpoint),
        "stored_as": config.get("dtype", config.get("torch_dtype")),
        "weights": None if opened is None else _weights(opened, quantized),
        "quality": None if opened is None else quality_of(opened, quantized),
        "tokenizer": _tokenizer(checkpoint.folder),
        "chat_template": _has_template(checkpoint.folder),
        "generation_config": checkpoint.generation_config,
        "notes": list((opened or checkpoint).notes),
    }


def _shape(config: dict[str, Any]) -> dict[str, int]:
    """The fields of SHAPE that a config.json has, under today's names."""
    values = {name: config.get(name, config.get(old)) for name, old in SHAPE.items()}
    return {name: value for name, value in values.items() if isinstance(value, int) and value}


def _context(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """How many tokens it reads, and why; None where its config does not say."""
    try:
        found = read_context(checkpoint.config, learned_positions(checkpoint.model_type))
    except BadConfig:
        return None
    return {"length": found.length, "origin": found.origin, "note": found.note}


def _opened(source: str | None, revision: str | None, checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint with its weight files; None while they are not on this machine."""
    is_remote = source is not None and not Path(source).expanduser().exists()
    try:
        return open_checkpoint(checkpoint.folder if is_remote else source)
    except CheckpointNotFound:
        if is_remote:
            return None
        raise


def _quantized(checkpoint: Checkpoint) -> tuple[str | None, str | None]:
    """The format of quantised weights, and why they cannot be read."""
    try:
        return checkpoint.quantized_as(), None
    except BadConfig as error:
        return None, error.message


def _weights(opened: Checkpoint, quantized: str | None) -> dict[str, Any]:
    """Files, bytes, and for safetensors parameters by dtype."""
    counts: Counter[str] = Counter()
    stored = opened.stored_formats() if quantized else None
    for file in opened.weight_files:
        if file.suffix == ".safetensors":
            counts.update(_parameters(file, stored))
    # Codes fill their last group up, so what was quantised is written beside them.
    said = opened.config["quantization_config"].get("parameters") if quantized else None
    return {
        "files": [file.name for file in opened.weight_files],
        "bytes": opened.weight_bytes,
        "parameters": said if isinstance(said, int) else sum(counts.values()) or None,
        "dtypes": dict(counts),
    }


def _parameters(file: Path, quantized: StoredFormats | None) -> Counter[str]:
    """Parameters of one safetensors file by dtype, from its header alone; codes count as what they stand for."""
    header = read_header(file)
    counts: Counter[str] = Counter()
    try:
        for name, entry in header.items():
            size = 0 if name == "__metadata__" else prod(int(size) for size in entry["shape"])
            if quantized is not None and name.endswith(".codes"):
                stored = quantized.of(name.removesuffix(".codes"))
                counts[stored] += size * (2 if stored == "int4" else 1)
            elif size and not (quantized is not None and name.endswith(".scales")):
                counts[str(entry["dtype"])] += size
    except (KeyError, TypeError, ValueError):
        raise BadWeights(f"{file}: the header of tensor {name!r} has no dtype and shape") from None
    return counts


def quality_of(opened: Checkpoint, quantized: str | None) -> dict[str, Any] | None:
    """What quantising this very model costs, where it was measured (benchmarks/quality.py): date, texts, variants."""
    measured = json.loads((files("byhand") / "assets" / "quality.json").read_bytes())
    digest = opened.identity.digest
    if quantized is not None:
        digest = str(opened.config["quantization_config"].get("source")).rpartition("@")[2]
    for model in measured["models"]:
        if model["digest"] == digest:
            return {"date": measured["date"], "texts": model["texts"]}
    return None


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
