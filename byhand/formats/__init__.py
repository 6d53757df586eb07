"""Weight formats: one file for each, found by looking. It tells how a matrix lies, how it is read and how it is made.

Importing this loads no torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from byhand.errors import BadRequest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix of (out, in), or several as (how many, out, in), as stored: `format` says how `tensors` are to be read.

    A float format: one tensor of that dtype and shape, which may be a transposed view. A quantised one: its parts.
    """

    format: str
    tensors: tuple[torch.Tensor, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Weight:
        """Wrap a plain (out, in) or (how many, out, in) tensor of a float dtype."""
        return cls(str(tensor.dtype).removeprefix("torch."), (tensor,), tuple(tensor.shape))

    def __getitem__(self, index: int) -> Weight:
        """One of several matrices, say an expert's, where it lies: nothing is copied."""
        return Weight(self.format, tuple(tensor[index] for tensor in self.tensors), self.shape[1:])

    def flat(self) -> Weight:
        """Several matrices as one of all their rows, (how many · out, in), where they lie."""
        tensors = tuple(tensor.flatten(0, -2) for tensor in self.tensors)
        return Weight(self.format, tensors, (tensors[0].shape[0], self.shape[-1]))

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.tensors[0].device

    @property
    def nbytes(self) -> int:
        """Bytes that a pass reads to use it once."""
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a quantised matrix, in memory and in a file, where the matrix's name goes on with `suffix`."""

    suffix: str
    dtype: str  # torch's name
    shape: tuple[int, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of that name."""
        import torch

        found: torch.dtype = getattr(torch, self.dtype)
        return found


class WeightFormat(ABC):
    """A format. A file of this folder that names one FORMAT adds it everywhere: loading, kernels, commands, docs."""

    name: ClassVar[str]
    bits: ClassVar[float]  # a weight, what is shared by several included
    is_float: ClassVar[bool] = False
    group: ClassVar[int] = 1  # numbers of a row that share a scale; a row is filled up to whole groups

    @abstractmethod
    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The tensors of a matrix (..., out, in); the codes first."""

    @abstractmethod
    def rows(self, weight: Weight, rows: slice | torch.Tensor) -> torch.Tensor:
        """Some rows of a matrix as float32, (rows, in): the slow truth that every kernel is held to."""

    @abstractmethod
    def tile(self, llvm: Any) -> dict[str, Any]:
        """How a kernel reads a row: the fields of `kernels.native.tiles.Format`; `llvm` writes the instructions."""

    def quantize_blocks(self, weight: Weight) -> Iterator[tuple[torch.Tensor, ...]]:
        """The parts of a float matrix, block of rows by block: no float copy of the whole is ever held."""
        raise BadRequest(f"nothing is quantised to {self.name}", param="quantize")


@cache
def formats() -> dict[str, WeightFormat]:
    """All of them by name, those with the most bits first."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    found = [module.FORMAT for module in modules if hasattr(module, "FORMAT")]
    return {
        weight_format.name: weight_format
        for weight_format in sorted(found, key=lambda weight_format: (-weight_format.bits, weight_format.name))
    }


def float_formats() -> tuple[str, ...]:
    """Those whose numbers are one tensor of torch's dtype of that name."""
    return tuple(name for name, weight_format in formats().items() if weight_format.is_float)


def quantized_formats() -> tuple[str, ...]:
    """Those that are made of codes."""
    return tuple(name for name, weight_format in formats().items() if not weight_format.is_float)


def check_quantized(name: str, param: str) -> WeightFormat:
    """A format that weights can be quantised to; refused where there is none of this name."""
    if name not in quantized_formats():
        raise BadRequest(f"{param} is {name!r}; it must be one of {', '.join(quantized_formats())}", param=param)
    return formats()[name]


def described(names: Iterable[str]) -> str:
    """Formats as people read them, those with the fewest bits first: "int4, int8 and bfloat16"."""
    known = sorted(set(names), key=lambda name: (formats()[name].bits, name))
    return " and ".join(filter(None, (", ".join(known[:-1]), known[-1] if known else "")))
