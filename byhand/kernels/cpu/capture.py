"""Blocks of a model, run once kernel by kernel and from then on as one call: what was called, and where it all lies.

Nothing about a block is written down twice: its own Python code is the capture. It is made once for each number of
rows, in memory that stays, so that all addresses hold. Blocks take turns with two such memories: one reads in the other
what the block before it has left there, and so their lists, merged end to end, are one.
"""

from __future__ import annotations

import ctypes
import weakref
from array import array
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from operator import is_
from typing import Any

import torch
from torch import Tensor

from byhand.cache.kv_cache import Batch
from byhand.kernels.cpu.gaps import Gap, Gaps, is_alive
from byhand.kernels.cpu.operands import Angles
from byhand.kernels.native.team import ENTRY

# Numbers in a piece of an arena, at least: 1 MiB of float32.
PIECE = 2**18
# Numbers to which the parts of an arena are rounded up, so that each begins a line of the processor's cache.
CACHE_LINE = 16


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
                self._used += -(-count // CACHE_LINE) * CACHE_LINE
                return piece[start : start + count].view(shape)
            self._piece, self._used = self._piece + 1, 0

    def holds(self, x: Tensor) -> bool:
        """Whether a tensor lies here."""
        at = x.data_ptr()
        return any(piece.data_ptr() <= at < piece.data_ptr() + 4 * piece.numel() for piece in self._pieces)


@dataclass(slots=True)
class Capture:
    """The list of kernels of one block. `kept` are the tables and tensors whose addresses are in it.

    `angles` are those that it reads, and that must be laid out for each pass. `gaps` are operations of torch's between
    its kernels, each with the number of kernels before it, found by `watch` if that looks on. `why`: what makes the
    list useless, if anything does.
    """

    x: Tensor
    arena: Arena
    entries: array[int] = field(default_factory=lambda: array("q"))
    names: list[str] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    angles: list[Angles] = field(default_factory=list)
    gaps: list[tuple[int, Gap]] = field(default_factory=list)
    watch: Gaps | None = None
    threads: int = 1
    why: str = ""

    def take(self, *shape: int) -> Tensor:
        """Memory for a result."""
        return self.arena.take(*shape)

    def holds(self, x: Tensor) -> bool:
        """Whether x lies in what the block was given, or in what it works in."""
        first = self.x.data_ptr()
        return first <= x.data_ptr() < first + 4 * self.x.numel() or self.arena.holds(x)

    def read(self, x: Tensor) -> None:
        """Note that a kernel reads x. What something else has made would be missing when the list is run again."""
        if not self.holds(x) and not (self.watch is not None and self.watch.knows(x)):
            self.why = self.why or "a kernel reads what no kernel of this block has made"

    def read_angles(self, angles: Angles, batch: Batch) -> None:
        """Note that a kernel reads these; they are laid out at each replay."""
        if angles not in self.angles:
            self.angles.append(angles)
        with nullcontext() if self.watch is None else self.watch.aside():
            angles.enter(batch)

    def finish(self, out: Tensor) -> Tensor:
        """The block's result, where the next one finds it; the list is whole then, or `why` says why not."""
        self.read(out)
        if self.watch is not None:
            if not self.arena.holds(out) and self.watch.knows(out):
                with self.watch:
                    out = self.take(*out.shape).copy_(out)
            self.why = self.watch.why or self.why
            self.gaps = [(gap.start, gap) for gap in self.watch.needed()]
            self.watch = None
        if not self.arena.holds(out):
            self.why = self.why or "the block gives back what it was given"
        return out

    def add(self, name: str, address: int, table: array[int], threads: int) -> None:
        """Note a call."""
        self.names.append(name)
        self.entries.extend((address, table.buffer_info()[0], table[0], 0, 0))
        self.kept.append(table)
        self.threads = max(self.threads, threads)

    def extend(self, other: Capture) -> None:
        """Add another's calls behind."""
        self.gaps += [(len(self.names) + start, gap) for start, gap in other.gaps]
        self.entries += other.entries
        self.names += other.names
        self.kept += other.kept
        self.angles += [angles for angles in other.angles if angles not in self.angles]
        self.threads = max(self.threads, other.threads)


class Block:
    """A captured block, or several in a row: the inlet, the list of kernels, and the result."""

    __slots__ = ("at", "cache", "capture", "count", "is_checked", "layers", "out", "x_at", "x_bytes")

    def __init__(self, layers: list[weakref.ref[Any]], cache: weakref.ref[Any], capture: Capture, out: Tensor) -> None:
        # Weakly: the kernels must not keep a closed model's weights.
        self.layers, self.cache, self.capture, self.out = layers, cache, capture, out
        self.at, self.count = capture.entries.buffer_info()[0], len(capture.entries) // ENTRY
        self.x_at, self.x_bytes = capture.x.data_ptr(), 4 * capture.x.numel()
        # Operations that read what differs from pass to pass in a way that nobody saw give other bits the next time.
        self.is_checked = not capture.gaps

    def is_of(self, layers: Sequence[Any], cache: Any) -> bool:
        """Whether it is these layers': another one may have got the same id since."""
        own = [layer() for layer in self.layers]
        return self.cache() is cache and len(own) == len(layers) and all(map(is_, own, layers))

    @property
    def is_alive(self) -> bool:
        """Whether everything that its operations read is there still."""
        return not self.capture.gaps or is_alive([gap for _, gap in self.capture.gaps])

    def take(self, x: Tensor) -> None:
        """Put x where the first kernel reads it, unless the block before has left it there."""
        x = x.contiguous()
        at = x.data_ptr()
        if at != self.x_at:
            ctypes.memmove(self.x_at, at, self.x_bytes)


def merge(parts: Sequence[Block | None]) -> Block | None:
    """Blocks in a row as one, if there are all of them and each reads where the one before it leaves its result."""
    blocks = [part for part in parts if part is not None and part.is_checked]
    if len(blocks) < len(parts) or any(first.out.data_ptr() != second.x_at for first, second in pairwise(blocks)):
        return None
    whole = Capture(blocks[0].capture.x, blocks[0].capture.arena)
    for block in blocks:
        whole.extend(block.capture)
    merged = Block([layer for block in blocks for layer in block.layers], blocks[0].cache, whole, blocks[-1].out)
    merged.is_checked = True
    return merged
