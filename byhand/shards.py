"""Writes tensors as safetensors files, each tensor in pieces as they are made: what is written is never held whole.

The format: https://huggingface.co/docs/safetensors. Eight bytes with the header's length, the header (JSON: dtype,
shape, first and last byte of every tensor), and the numbers, without gaps.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from byhand.errors import BadRequest, CheckpointError

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8", torch.uint8: "U8"}

# A file of a checkpoint; another is begun before one grows larger, unless by a single tensor.
SHARD_BYTES = 4 * 2**30
# Where the numbers begin, and with the usual sizes every tensor: a processor's cache line.
ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor that is to be written: `pieces` gives its numbers, in order, when its turn has come."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[torch.Tensor]]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.dtype.itemsize


def _header(tensors: Sequence[Planned]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        entries[tensor.name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(piece: torch.Tensor) -> memoryview:
    return piece.contiguous().view(-1).view(torch.uint8).numpy().data


def _write_file(file: Path, tensors: Sequence[Planned]) -> None:
    with file.open("wb") as opened:
        opened.write(_header(tensors))
        for tensor in tensors:
            written = sum(opened.write(_bytes(piece)) for piece in tensor.pieces() if piece.numel())
            assert written == tensor.nbytes, tensor.name
        opened.flush()
        os.fsync(opened.fileno())


def _shards(tensors: Sequence[Planned]) -> list[list[Planned]]:
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def write_shards(tensors: Sequence[Planned], folder: Path) -> None:
    """Write model.safetensors, or several files and their index."""
    shards = _shards(tensors)
    if len(shards) == 1:
        _write_file(folder / "model.safetensors", tensors)
        return
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        _write_file(folder / file, shard)
    weight_map = {tensor.name: file for file, shard in zip(files, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def check_new(target: Path) -> None:
    """Refuse a target that is anything but a new or an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadRequest(f"{target} exists already; it must be a new or an empty folder", param="target")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside the target to write in; it takes the target's name when all is written, and else is removed."""
    check_new(target)
    draft = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        draft.mkdir(parents=True)
        yield draft
        if target.exists():
            target.rmdir()
        draft.rename(target)
    except OSError as error:
        raise CheckpointError(f"{target} could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
