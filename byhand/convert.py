"""Writes any checkpoint that can be opened as safetensors: strictly read, without what nobody needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from byhand.checkpoint import Checkpoint, open_checkpoint
from byhand.errors import BadRequest, CheckpointError
from byhand.hub import DESCRIPTION
from byhand.kernels import backend
from byhand.models import architecture_of, read_config
from byhand.weights import DTYPES, StoredTensor, Weights

# A shard is held in memory while it is written.
SHARD_BYTES = 2 * 2**30


def _needed_tensors(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The tensors that the architecture reads: no masks of old files, no second copy of a tied head."""
    architecture = architecture_of(checkpoint)
    weights = Weights.open(checkpoint)
    architecture.Model(read_config(checkpoint), weights, backend("reference"))
    weights.finish(architecture.IGNORED)
    return weights.needed()


def _convert_tensor(name: str, stored: StoredTensor, dtype: torch.dtype | None) -> torch.Tensor:
    tensor = stored.read()
    # A copy, for pickles may hold two names of one storage, and safetensors may not.
    converted = tensor.to(dtype or tensor.dtype, copy=True).contiguous()
    if dtype == torch.float16 and tensor.isfinite().all() and not converted.isfinite().all():
        raise BadRequest(
            f"`{name}` holds {tensor.abs().max().item():g}; float16 ends at 65504", param="dtype", hint="use bfloat16"
        )
    return converted


def _shards(tensors: dict[str, StoredTensor], dtype: torch.dtype | None) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    for name, stored in tensors.items():
        tensor = _convert_tensor(name, stored, dtype)
        if shard and sum(held.nbytes for held in shard.values()) + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard


def _write_weights(tensors: dict[str, StoredTensor], target: Path, dtype: torch.dtype | None) -> None:
    names: list[list[str]] = []
    total = 0
    for shard in _shards(tensors, dtype):
        names.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
        save_file(shard, target / f"shard-{len(names)}", metadata={"format": "pt"})
    if len(names) == 1:
        (target / "shard-1").rename(target / "model.safetensors")
        return
    files = [f"model-{number:05}-of-{len(names):05}.safetensors" for number in range(1, len(names) + 1)]
    for number, file in enumerate(files, start=1):
        (target / f"shard-{number}").rename(target / file)
    weight_map = {name: file for file, held in zip(files, names, strict=True) for name in held}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_description(checkpoint: Checkpoint, target: Path, dtype: str | None) -> None:
    for name in DESCRIPTION:
        if name != "config.json" and (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, target / name)
    config = dict(checkpoint.config)
    if dtype is not None:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    # Last, so that a folder that was never finished has no config.json and is no checkpoint.
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _write(checkpoint: Checkpoint, target: Path, dtype: str | None) -> None:
    tensors = _needed_tensors(checkpoint)
    try:
        target.mkdir(parents=True, exist_ok=True)
        _write_weights(tensors, target, DTYPES.get(dtype) if dtype else None)
        _write_description(checkpoint, target, dtype)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def convert(source: str | Path | None, target: Path, dtype: str | None = None, revision: str | None = None) -> Path:
    """Write a checkpoint as safetensors into a new or empty folder, in its own dtype or in another."""
    if dtype is not None and dtype not in DTYPES:
        raise BadRequest(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}", param="dtype")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadRequest(f"{target} exists already; it must be a new or an empty folder", param="target")
    try:
        _write(open_checkpoint(source, revision), target, dtype)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target} could not be written: {error}") from error
    return target
