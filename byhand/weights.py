"""Weights: tensors of a checkpoint by name, mapped into memory, in the dtype they are stored in; read strictly."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from byhand.checkpoint import Checkpoint, StoredFormats, read_header
from byhand.errors import BadRequest, BadWeights
from byhand.formats import Weight, WeightFormat, float_formats, formats
from byhand.lookalikes import unwrapped

# The float formats by torch's dtypes, and the other way round.
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in float_formats()}
FORMATS = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file; `read` maps it, and costs nothing until its numbers are used."""

    file: Path
    read: Callable[[], torch.Tensor]


def _plain(text: str) -> str:
    # Names and messages come from files; a line break or a terminal's escape code in them stays harmless text.
    return repr(text)[1:-1][:200]


def _first_line(error: BaseException) -> str:
    return _plain((str(error).strip() or type(error).__name__).splitlines()[0])


def _map_safetensors(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    try:
        mapped: Any = safe_open(file, framework="pt")
        names = list(mapped.keys())
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise BadWeights(f"{file} is not a whole safetensors file: {_first_line(error)}") from error

    def reader(name: str) -> Callable[[], torch.Tensor]:
        def read() -> torch.Tensor:
            try:
                tensor: torch.Tensor = mapped.get_tensor(name)
            except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
                raise BadWeights(f"{file}: the tensor `{_plain(name)}` cannot be read: {_first_line(error)}") from error
            return tensor

        return read

    for name in names:
        yield name, StoredTensor(file, reader(name))


# What torch.load has been seen to raise on damaged or hostile files, and the kinds they belong to.
UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _unpickle(file: Path) -> Any:
    # Files from before 2020 are no zip archives and cannot be mapped; the restricted unpickler reads both kinds.
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UNREADABLE as error:
        raise BadWeights(
            f"{file} is refused by torch's restricted unpickler: {_first_line(error)}",
            hint="only a plain dictionary of tensors is read; use a checkpoint in safetensors",
        ) from error


def _map_pytorch(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    tensors = _unpickle(file)
    if not isinstance(tensors, dict):
        raise BadWeights(f"{file} holds a {type(tensors).__name__}, not a dictionary of tensors")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise BadWeights(
                f"{file}: the entry {repr(name)[:200]} is a {type(tensor).__name__}, not a tensor with a name"
            )
        # Saved parameters ask for gradients; no one here computes any.
        yield name, StoredTensor(file, tensor.detach)


def map_tensors(checkpoint: Checkpoint, wrappers: set[str] | None = None) -> dict[str, StoredTensor]:
    """Open every weight file of a checkpoint and give its tensors by name, without what trainers wrapped them in.

    Names of wrappers that were found are added to `wrappers`.
    """
    found: dict[str, StoredTensor] = {}
    for file in checkpoint.weight_files:
        mapping = _map_safetensors if file.suffix == ".safetensors" else _map_pytorch
        for stored_name, stored in mapping(file):
            name, around = unwrapped(file, stored_name)
            if wrappers is not None:
                wrappers.update(around)
            if name in found:
                first = found[name].file.name
                where = f"in two files: {first} and {file.name}" if first != file.name else f"twice in {file.name}"
                raise BadWeights(f"the tensor `{_plain(name)}` lies {where}")
            found[name] = stored
    return found


# A safetensors header's words for the formats that a processor's kernels know.
_HEADER_WORDS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def format_of(checkpoint: Checkpoint, dtype: str = "auto") -> str:
    """The format that the matrices will have, as far as it can be told before they are mapped; else float32."""
    if dtype != "auto":
        return dtype
    if (stored := checkpoint.stored_formats()) is not None:
        return stored.default
    try:
        header = read_header(checkpoint.weight_files[0])
    except BadWeights:  # a pickle has none; what is wrong with a file is said by whoever maps it
        header = {}
    entries = (entry for entry in header.values() if isinstance(entry, dict) and "shape" in entry)
    dtypes = (
        str(entry.get("dtype")) for entry in entries if isinstance(entry["shape"], list) and len(entry["shape"]) == 2
    )
    return _HEADER_WORDS.get(next(dtypes, ""), "float32")


@dataclass(frozen=True, slots=True)
class _Book:
    """What all scopes of one reading share."""

    stored: dict[str, StoredTensor]
    place: str
    dtype: torch.dtype | None
    device: torch.device
    shrink: Callable[[Weight], Weight] | None
    quantized: StoredFormats | None  # of matrices, some of which are stored as codes and scales
    formats: dict[str, str] = field(default_factory=dict)  # of the matrices that were handed out
    used: set[str] = field(default_factory=set)
    copies: set[str] = field(default_factory=set)
    matrices: dict[str, Weight] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Weights:
    """Hands out a checkpoint's tensors by name, each checked for shape, and at the end knows what no one asked for."""

    def __init__(self, book: _Book, scope: str = "") -> None:
        self._book = book
        self._scope = scope

    @classmethod
    def open(
        cls,
        checkpoint: Checkpoint,
        dtype: str = "auto",
        device: torch.device | str = "cpu",
        shrink: Callable[[Weight], Weight] | None = None,
    ) -> Weights:
        """Map the checkpoint's files. `dtype` "auto" keeps what is stored; another one converts, which copies.

        `shrink` is done to every matrix that a product reads: quantisation.
        """
        quantized, said = checkpoint.stored_formats(), checkpoint.quantized_as()
        if quantized is not None and shrink is not None:
            raise BadRequest(f"{checkpoint.folder} is quantised to {said} already", param="quantize")
        if quantized is not None and dtype != "auto":
            raise BadRequest(f"dtype is {dtype!r}; {checkpoint.folder} is quantised to {said}", param="dtype")
        files = checkpoint.weight_files
        place = files[0] if len(files) == 1 else checkpoint.folder
        wrappers: set[str] = set()
        weights = cls.of(map_tensors(checkpoint, wrappers), str(place), dtype, device, shrink, quantized)
        if wrappers:
            names = " and ".join(f"`{name}.`" for name in sorted(wrappers))
            weights.notes.append(f"names of tensors hold {names}, left by their training; they are read without it")
        return weights

    @classmethod
    def of(
        cls,
        stored: dict[str, StoredTensor],
        place: str,
        dtype: str = "auto",
        device: torch.device | str = "cpu",
        shrink: Callable[[Weight], Weight] | None = None,
        quantized: StoredFormats | None = None,
    ) -> Weights:
        """Read from tensors that are mapped already; `place` is where errors say they came from."""
        if dtype != "auto" and dtype not in DTYPES:
            raise BadRequest(f"dtype is {dtype!r}; it must be one of auto, {', '.join(DTYPES)}", param="dtype")
        return cls(_Book(stored, place, DTYPES.get(dtype), torch.device(device), shrink, quantized))

    @property
    def device(self) -> torch.device:
        """Where the tensors are put."""
        return self._book.device

    @property
    def notes(self) -> list[str]:
        """What a person should know of them."""
        return self._book.notes

    def at(self, scope: str | int) -> Weights:
        """The tensors whose names go on from here: `weights.at("model.layers").at(0).at("self_attn")`."""
        return Weights(self._book, f"{self._scope}{scope}." if scope != "" else self._scope)

    def under_first(self, prefixes: Iterable[str], name: str) -> Weights:
        """The first of these scopes that has the tensor `name`: files differ in how deep they put the model."""
        scopes = [self.at(prefix) for prefix in prefixes]
        return next((scope for scope in scopes if name in scope), scopes[0])

    def name(self, name: str) -> str:
        """The whole name, in the checkpoint, of a tensor of this scope."""
        return self._scope + name

    @property
    def label(self) -> str:
        """The last part of this scope's name: "q_proj"."""
        return self._scope.rstrip(".").rpartition(".")[2]

    def __contains__(self, name: str) -> bool:
        full = self.name(name)
        return full in self._book.stored or f"{full}.codes" in self._book.stored

    def _map(self, name: str, shape: tuple[int, ...], dtypes: Collection[torch.dtype]) -> torch.Tensor:
        """A tensor as it is stored, once its shape and its dtype are found right."""
        full = self.name(name)
        if full not in self._book.stored:
            raise BadWeights(f"the tensor `{full}` is missing in {self._book.place}")
        stored = self._book.stored[full]
        tensor = stored.read()
        self._book.used.add(full)
        if tuple(tensor.shape) != shape:
            raise BadWeights(
                f"{stored.file}: `{full}` has the shape {tuple(tensor.shape)}; the config asks for {shape}"
            )
        if tensor.dtype not in dtypes:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise BadWeights(f"{stored.file}: `{full}` is stored as {tensor.dtype}; known are {known}")
        return tensor

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = self._map(name, shape, FORMATS)
        return tensor.to(device=self._book.device, dtype=self._book.dtype or tensor.dtype)

    def _in_codes(self, name: str) -> WeightFormat | None:
        """The format of a matrix that is stored as codes; None for one of floats."""
        if self._book.quantized is None:
            return None
        stored = formats()[self._book.quantized.of(self.name(name))]
        return None if stored.is_float else stored

    def _stored_parts(self, name: str, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """The tensors of one matrix by their whole names."""
        if (stored := self._in_codes(name)) is None:
            return {self.name(name): self._map(name, shape, FORMATS)}
        return {
            self.name(name + part.suffix): self._map(name + part.suffix, part.shape, (part.torch_dtype,))
            for part in stored.parts(shape)
        }

    def vector(self, name: str, size: int) -> torch.Tensor:
        """A bias or a norm's gain: (size,), always float32, as it meets activations."""
        return self._read(name, (size,)).float()

    def matrix(self, name: str, out_features: int, in_features: int, *, transposed: bool = False) -> Weight:
        """A matrix of (out, in); one that is stored as (in, out) is turned by a view, not by a copy."""
        if self._in_codes(name) is not None:
            return self._of_codes(name, (out_features, in_features))
        return self._of_floats(name, self.table(name, out_features, in_features, transposed=transposed))

    def matrices_of(self, name: str, count: int, out_features: int, in_features: int) -> Weight:
        """Several matrices that are stored as one tensor, (count, out, in): `weight[e]` is one of them."""
        shape = (count, out_features, in_features)
        if self._in_codes(name) is not None:
            return self._of_codes(name, shape)
        return self._of_floats(name, Weight.of(self._read(name, shape)))

    def _of_codes(self, name: str, shape: tuple[int, ...]) -> Weight:
        stored = self._in_codes(name)
        assert stored is not None
        parts = tuple(part.to(self._book.device) for part in self._stored_parts(name, shape).values())
        self._book.formats[self.name(name)] = stored.name
        return Weight(stored.name, parts, shape)

    def _of_floats(self, name: str, weight: Weight) -> Weight:
        if self._book.shrink is not None:
            weight = self._book.shrink(weight)
        else:
            self._book.matrices[self.name(name)] = weight
        self._book.formats[self.name(name)] = weight.format
        return weight

    def table(self, name: str, out_features: int, in_features: int, *, transposed: bool = False) -> Weight:
        """The same, always as it is stored: of a table of positions only single rows are read."""
        if transposed:
            return Weight.of(self._read(name, (in_features, out_features)).T)
        return Weight.of(self._read(name, (out_features, in_features)))

    def tied_pair(self, embedding: str, head: str, shape: tuple[int, int], *, tie: bool) -> tuple[Weight, Weight]:
        """The token embedding and the head, both (vocab, hidden), which are one matrix where the config ties them.

        A tied pair may be stored once under either name, or twice. Twice and different is not tied, whatever the
        config says: so transformers reads it.
        """
        if tie and head not in self:
            head = embedding
        if tie and embedding not in self:
            embedding = head
        if tie and embedding != head and self._are_equal(embedding, head, shape):
            head = embedding
        first = self.matrix(embedding, *shape)
        return first, first if embedding == head else self.matrix(head, *shape)

    def _are_equal(self, name: str, copy: str, shape: tuple[int, int]) -> bool:
        """Whether two matrices are stored with the same numbers; if so the second one is a copy."""
        if self._in_codes(name) is not self._in_codes(copy):
            return False
        first, second = (self._stored_parts(one, shape) for one in (name, copy))
        are_equal = all(map(torch.equal, first.values(), second.values()))
        if are_equal:
            self._book.copies.update(second)
        return are_equal

    @property
    def formats(self) -> dict[str, str]:
        """The format of each matrix that was handed out, by its whole name: what products read."""
        return dict(self._book.formats)

    def needed(self) -> dict[str, StoredTensor]:
        """The tensors that were read, second copies of a tied matrix left out."""
        names = self._book.used - self._book.copies
        return {name: stored for name, stored in self._book.stored.items() if name in names}

    def matrices(self) -> dict[str, Weight]:
        """Of these, the float matrices that products read: what quantisation works on."""
        return dict(self._book.matrices)

    def finish(self, ignored: Iterable[str] = ()) -> None:
        """Refuse tensors that nobody read, except those whose whole name matches one of the patterns."""
        left = sorted(self._book.stored.keys() - self._book.used)
        patterns = [re.compile(pattern) for pattern in ignored]
        unexpected = [name for name in left if not any(pattern.fullmatch(name) for pattern in patterns)]
        if unexpected:
            more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
            file = self._book.stored[unexpected[0]].file
            raise BadWeights(
                f"{file} holds the tensor `{_plain(unexpected[0])}`{more}, which this architecture does not have"
            )
