"""A block of a model, run once kernel by kernel and from then on as one call: what was called, and where it all lies.

Nothing about a block is written down twice: its own Python code is the recording. It is made once for each number of
rows, in memory that stays, so that all addresses hold. What was computed on the way is still there after the call,
under its kernel's name, until the block after the next one runs.
"""

from __future__ import annotations

import ctypes
import weakref
from array import array
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from byhand.kernels.native.team import ENTRY

# Numbers in a piece of an arena, at least: 1 MiB of float32.
PIECE = 2**18
# Numbers to which the parts of an arena are rounded up, so that each begins a line of the processor's cache.
LINE = 16


class Arena:
    """Memory that a block works in, handed out anew to each."""

    def __init__(self) -> None:
        self._pieces: list[Tensor] = []
        self._piece = self._used = 0

    def restart(self) -> None:
        """Hand out from the beginning again."""
        self._piece = self._used = 0

    def take(self, *shape: int) -> Tensor:
        """An uninitialised float32 tensor of this shape."""
        count = prod(shape)
        while True:
            if self._piece == len(self._pieces):
                with torch.inference_mode(False):
                    self._pieces.append(torch.empty(max(PIECE, count)))
            piece = self._pieces[self._piece]
            if self._used + count <= piece.numel():
                start = self._used
                self._used += -(-count // LINE) * LINE
                return piece[start : start + count].view(shape)
            self._piece, self._used = self._piece + 1, 0

    def holds(self, x: Tensor) -> bool:
        """Whether a tensor lies here."""
        at = x.data_ptr()
        return any(piece.data_ptr() <= at < piece.data_ptr() + 4 * piece.numel() for piece in self._pieces)


@dataclass(slots=True)
class Recording:
    """The list of kernels of one block. `kept` are the tables and tensors whose addresses are in it."""

    x: Tensor
    arena: Arena
    entries: array[int] = field(default_factory=lambda: array("q"))
    names: list[str] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    threads: int = 1
    is_whole: bool = True

    def take(self, *shape: int) -> Tensor:
        """Memory for a result."""
        return self.arena.take(*shape)

    def read(self, x: Tensor) -> None:
        """Note that a kernel reads x. What something else has made would be missing when the list is run again."""
        if x.data_ptr() != self.x.data_ptr() and not self.arena.holds(x):
            self.is_whole = False

    def add(self, name: str, place: int, table: array[int], threads: int) -> None:
        """Note a call."""
        self.names.append(name)
        self.entries.extend((place, table.buffer_info()[0], table[0], 0, 0))
        self.kept.append(table)
        self.threads = max(self.threads, threads)


class Block:
    """A recorded block: its inlet, its list of kernels, and its result."""

    __slots__ = ("_cache", "_keep", "_layer", "at", "count", "names", "out", "threads", "x", "x_at", "x_bytes")

    def __init__(self, layer: Any, cache: Any, recording: Recording, out: Tensor) -> None:
        # Weakly: the kernels must not keep a closed model's weights.
        self._layer, self._cache = weakref.ref(layer), weakref.ref(cache)
        self._keep = (recording.kept, recording.entries)
        self.names, self.threads = recording.names, recording.threads
        self.at, self.count = recording.entries.buffer_info()[0], len(recording.entries) // ENTRY
        self.x, self.out = recording.x, out
        self.x_at, self.x_bytes = recording.x.data_ptr(), 4 * recording.x.numel()

    def is_of(self, layer: Any, cache: Any) -> bool:
        """Whether it is this layer's: another one may have got the same id since."""
        return self._layer() is layer and self._cache() is cache

    def take(self, x: Tensor) -> None:
        """Put x where the first kernel reads it, unless the block before has left it there."""
        at = x.data_ptr()
        if at != self.x_at:
            ctypes.memmove(self.x_at, at, self.x_bytes)
