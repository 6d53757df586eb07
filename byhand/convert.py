"""Writes any checkpoint that can be opened as safetensors, as it is, in another dtype or quantised.

Strictly read, without what nobody needs; block by block, into a folder that has its name only when it is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch

from byhand.checkpoint import MIXED_VERSION, QUANTIZATION_VERSION, Checkpoint, open_checkpoint
from byhand.errors import BadRequest, BadWeights
from byhand.formats import Weight, check_quantized, formats
from byhand.hub import DESCRIPTION
from byhand.kernels import backend
from byhand.models import architecture_of, read_config
from byhand.quantize import quantize_blocks
from byhand.shards import Planned, check_new, new_folder, write_shards
from byhand.weights import DTYPES, StoredTensor, Weights

# Numbers that are converted at once.
BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class Quantized:
    """What `quantize_checkpoint` wrote: the matrices in codes, and the tensors that stay in floating point."""

    folder: Path
    matrices: tuple[str, ...]
    kept: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def _read_strictly(checkpoint: Checkpoint) -> Weights:
    """The checkpoint's weights once its architecture has asked for all that it reads."""
    architecture = architecture_of(checkpoint)
    weights = Weights.open(checkpoint)
    architecture.Model(read_config(checkpoint), weights, backend("reference"))
    weights.finish(architecture.IGNORED)
    return weights


# Tensors as they are, or in another dtype.


def _converted(name: str, stored: StoredTensor, dtype: torch.dtype | None) -> Iterator[torch.Tensor]:
    tensor = stored.read()
    rows = max(1, BLOCK * len(tensor) // max(1, tensor.numel()))
    for block in torch.split(tensor, rows):
        converted = block.to(dtype or block.dtype)
        if dtype == torch.float16 and (block.isfinite() & ~converted.isfinite()).any():
            largest = block[block.isfinite()].abs().max().item()
            raise BadRequest(f"`{name}` holds {largest:g}; float16 ends at 65504", param="dtype", hint="use bfloat16")
        yield converted


def _planned(name: str, stored: StoredTensor, dtype: torch.dtype | None) -> Planned:
    tensor = stored.read()
    return Planned(name, dtype or tensor.dtype, tuple(tensor.shape), partial(_converted, name, stored, dtype))


def _plan(tensors: dict[str, StoredTensor], dtype: torch.dtype | None = None) -> list[Planned]:
    """The widest numbers first: so every tensor begins at a multiple of its numbers' size."""
    planned = [_planned(name, stored, dtype) for name, stored in tensors.items()]
    return sorted(planned, key=lambda tensor: -tensor.dtype.itemsize)


# Matrices in codes.


def _plan_codes(name: str, weight: Weight, weight_format: str) -> tuple[Planned, Planned]:
    """The codes, which are made and written block by block, and the scales, which come of that and are written next."""
    parts = formats()[weight_format].parts(weight.shape)
    kept: list[torch.Tensor] = []

    def codes() -> Iterator[torch.Tensor]:
        # Laid out at once: many small pieces that stay, among large ones that go, would leave the heap in splinters.
        scales, row = torch.empty(parts[1].shape, dtype=parts[1].torch_dtype), 0
        kept.append(scales)
        try:
            for some_codes, some_scales in quantize_blocks(weight, weight_format):
                scales.flatten(0, -2)[row : row + len(some_scales)] = some_scales
                row += len(some_scales)
                yield some_codes
        except BadWeights as error:
            raise BadWeights(f"`{name}`: {error.message}") from error

    def kept_scales() -> Iterator[torch.Tensor]:
        yield kept.pop()

    made: tuple[Callable[[], Iterator[torch.Tensor]], ...] = (codes, kept_scales)
    first, second = (
        Planned(name + part.suffix, part.torch_dtype, part.shape, pieces)
        for part, pieces in zip(parts, made, strict=True)
    )
    return first, second


# Folders.


def _write_description(checkpoint: Checkpoint, folder: Path, changes: dict[str, Any]) -> None:
    for name in DESCRIPTION:
        if name != "config.json" and (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
    config = {**checkpoint.config, **changes}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write(checkpoint: Checkpoint, target: Path, tensors: list[Planned], changes: dict[str, Any]) -> None:
    with new_folder(target) as folder:
        write_shards(tensors, folder)
        _write_description(checkpoint, folder, changes)


def _open_float(source: str | Path | None, revision: str | None) -> Checkpoint:
    checkpoint = open_checkpoint(source, revision)
    if (weight_format := checkpoint.quantized_as()) is not None:
        raise BadRequest(
            f"{checkpoint.folder} is quantised to {weight_format} already",
            param="source",
            hint="give what it was made from",
        )
    return checkpoint


def convert(source: str | Path | None, target: Path, dtype: str | None = None, revision: str | None = None) -> Path:
    """Write a checkpoint as safetensors into a new or empty folder, in its own dtype or in another."""
    if dtype is not None and dtype not in DTYPES:
        raise BadRequest(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}", param="dtype")
    check_new(target)
    checkpoint = _open_float(source, revision)
    tensors = _plan(_read_strictly(checkpoint).needed(), DTYPES.get(dtype) if dtype else None)
    said_in = "torch_dtype" if "torch_dtype" in checkpoint.config else "dtype"
    _write(checkpoint, target, tensors, {} if dtype is None else {said_in: dtype})
    return target


def quantize_checkpoint(
    source: str | Path | None,
    target: Path,
    weight_format: str,
    revision: str | None = None,
    *,
    tensor_types: Sequence[tuple[str, str]] = (),
) -> Quantized:
    """Write a checkpoint with its matrices in `int8` or `int4` into a new or empty folder, which loads at once.

    Every matrix that a product reads is quantised, the embedding and the head too, tied or not. Norms, biases and
    tables of positions stay as they are stored. `tensor_types`: patterns of tensors' names (`*` is anything), each with
    the format of those that it fits, a float format too; of several that fit, the first counts.
    """
    format_ = check_quantized(weight_format, "format")
    check_new(target)
    checkpoint = _open_float(source, revision)
    weights = _read_strictly(checkpoint)
    matrices, needed = weights.matrices(), weights.needed()
    kept = _plan({name: stored for name, stored in needed.items() if name not in matrices})
    others = _other_formats(list(matrices), tensor_types)
    coded = [
        planned
        for name, weight in matrices.items()
        for planned in _plan_matrix(name, needed[name], weight, others.get(name, weight_format))
    ]
    tensors = sorted([*kept, *coded], key=lambda tensor: 0 if _is_coded(tensor) else -tensor.dtype.itemsize)
    said = {
        "quant_method": "byhand",
        "version": MIXED_VERSION if others else QUANTIZATION_VERSION,
        "format": weight_format,
        **({"formats": others} if others else {}),
        "group_size": format_.group,
        "source": str(checkpoint.identity),
        "parameters": sum(stored.read().numel() for stored in needed.values()),
    }
    _write(checkpoint, target, tensors, {"quantization_config": said})
    before = sum(stored.read().nbytes for stored in needed.values())
    after = sum(tensor.nbytes for tensor in tensors)
    in_codes = tuple(name for name in matrices if not formats()[others.get(name, weight_format)].is_float)
    left = tuple(tensor.name for tensor in tensors if not _is_coded(tensor))
    return Quantized(target, in_codes, left, before, after)


def _is_coded(tensor: Planned) -> bool:
    return tensor.name.endswith((".codes", ".scales"))


def _other_formats(names: Sequence[str], tensor_types: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The matrices that a pattern fits, and the format of the first that does."""
    found: dict[str, str] = {}
    for pattern, name in tensor_types:
        if name not in formats():
            raise BadRequest(
                f"tensor_types has {pattern}={name}; a format must be one of {', '.join(formats())}",
                param="tensor_types",
            )
        fitting = [matrix for matrix in names if fnmatchcase(matrix, pattern)]
        if not fitting:
            raise BadRequest(
                f"tensor_types has {pattern}={name}, which fits no matrix: there are {', '.join(names[:3])}, …",
                param="tensor_types",
            )
        found |= {matrix: name for matrix in fitting if matrix not in found}
    return found


def _plan_matrix(name: str, stored: StoredTensor, weight: Weight, weight_format: str) -> Iterable[Planned]:
    """A matrix in codes, or as floats of a dtype, as it is stored."""
    if formats()[weight_format].is_float:
        return (_planned(name, stored, DTYPES[weight_format]),)
    return _plan_codes(name, weight, weight_format)
