"""How kernels are called: their tables and partitions, the memory they write to, and blocks that run as one call."""

from __future__ import annotations

import struct
import weakref
from array import array
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from math import prod
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from byhand.cache.kv_cache import Batch, KVCache
from byhand.collector import without_collector
from byhand.formats import Weight
from byhand.kernels import Rotary, native, reference
from byhand.kernels.cpu import expected
from byhand.kernels.cpu.capture import Arena, Block, Capture, merge
from byhand.kernels.cpu.gaps import Gaps, same_bits
from byhand.kernels.cpu.operands import Angles, LayerCache, Matrix, Pass, Spare
from byhand.kernels.native.compiling import compile_kernels
from byhand.kernels.native.team import ENTRY
from byhand.weights import FORMATS

# Rows of one run from which attention takes blocks of them.
MANY_QUERIES = 32
# Rows of a pass up to which a block is captured and run as one call; with more, its kernels are long enough.
CAPTURED_ROWS = 64
# Multiplications below which waking a second thread costs more than it saves.
SMALL = 2**16

# Numba's simplest threads cannot be called from two threads at once, and end the process if they are.
_ONE_AT_A_TIME = Lock()


@lru_cache(maxsize=256)
def bits(number: float) -> int:
    """A float32 as it stands in a table of int64: in the lower half."""
    found: int = struct.unpack("<q", struct.pack("<fi", number, 0))[0]
    return found


class Calls:
    """What the backend's products, norms and attention are called with."""

    def __init__(self, threads: int | None, note: Callable[[str], None] | None, fuse: bool, *, fast: bool) -> None:
        self.threads = threads or torch.get_num_threads()
        self.fuse, self.fast = fuse, fast
        self._note: Callable[[str], None] = note or (lambda message: None)
        self._run_list: Callable[[int, int, int], None] | None = None
        self._machine_code: dict[str, int] = {}
        self._expected: set[str] = set()  # kernels that layers have told of
        self._ready: set[str] = set()  # kernels that need not be compiled any more
        self._matrices: dict[int, Matrix] = {}
        self._layers: dict[tuple[int, int], LayerCache] = {}
        self._ticket = array("q", [0])
        self._work = torch.empty(0)
        self._spare = Spare()
        self._pass = Pass()
        self._angles: MutableMapping[Rotary, Angles] = weakref.WeakKeyDictionary()
        self._no_angles = Angles(None)
        self._arenas = (Arena(), Arena())
        self._capture: Capture | None = None
        # Each layer's block, None where it cannot be captured; and several as one, by the first: layer, cache, rows.
        self.captured: dict[tuple[int, int, int], Block | None] = {}
        self.captured_all: dict[tuple[int, int, int], Block] = {}
        self.uncaptured: list[str] = []  # why, for people
        # Kinds of layers in which torch computed nothing when somebody looked on: to look costs a prompt a tenth.
        self._kernels_only: set[type] = set()

    # Kernels, and what they work on.

    def expect(self, call: str, *weights: Weight) -> None:
        """Take note that a method of this name will be called, with these weights."""
        self._expected |= expected.of_layer(call, [self._matrix(weight) for weight in weights], fast=self.fast)

    def load(self, weight_format: str, cache_dtype: torch.dtype) -> None:
        """Load what most models of a format call, as far as it was compiled before."""
        usual = expected.usual(weight_format, FORMATS[cache_dtype], fast=self.fast)
        self._load(name for name in usual if native.kernel(name).is_kept)

    def prepare(self, head_dims: Iterable[int], cache_dtype: torch.dtype) -> None:
        """Compile what was expected, and attention over such a cache; and load what short prompts need of it."""
        of_attention = expected.of_attention(head_dims, FORMATS[cache_dtype], fast=self.fast)
        names = sorted({*self._expected, *expected.ALWAYS, *of_attention})
        self._compile(names)
        self._load(expected.loaded_at_once(names))

    def _load(self, names: Iterable[str]) -> None:
        """Have the machine code at hand, compiled now if it never was."""
        with without_collector():
            for name in names:
                self._address_of(name)

    def _compile(self, names: Sequence[str]) -> None:
        """Compile those that the cache lacks, and say so."""
        missing = [name for name in names if name not in self._ready and not native.kernel(name).is_kept]
        if missing:
            count = f"{len(missing)} kernels" if len(missing) > 1 else "one kernel"
            self._note(f"compiling {count} for this processor: {native.whether_kept()}")
            compile_kernels(missing, self._note)
        self._ready.update(names)

    def _address_of(self, name: str) -> int:
        address = self._machine_code.get(name)
        if address is None:
            self._compile([name])  # what no layer has told of is made when one asks for it
            with without_collector():
                address = self._machine_code[name] = native.kernel(name).address
        return address

    def _start(self, at: int, count: int, threads: int) -> None:
        """Run a list of kernels."""
        if self._run_list is None:
            with without_collector():
                self._run_list = native.kernel("run_list").load()
        with _ONE_AT_A_TIME:
            self._run_list(at, count, threads)

    def _run(self, names: str | Sequence[str], threads: int, *numbers: int, partitions: int = 0) -> None:
        """Run kernels one after another over one table of arguments, each in so many partitions, or one a thread."""
        partitions = partitions or threads
        table = array("q", (partitions, *numbers))
        entries = array("q")
        names = (names,) if isinstance(names, str) else names
        for name in names:
            address = self._address_of(name)
            entries.extend((address, table.buffer_info()[0], partitions, 0, 0))
            if self._capture is not None:
                self._capture.add(name, address, table, threads)
        self._start(entries.buffer_info()[0], len(names), threads)

    def _matrix(self, weight: Weight) -> Matrix:
        matrix = self._matrices.get(id(weight))
        if matrix is None:
            matrix = self._matrices[id(weight)] = Matrix(weight)
        return matrix

    def _empty(self, *shape: int) -> Tensor:
        """Memory for a result."""
        if self._capture is not None:
            return self._capture.take(*shape)
        return torch.empty(shape) if prod(shape) < Spare.LARGE else self._spare.take(*shape)

    def _scratch(self, count: int) -> int:
        """The address of `count` float32 to work in, until the next call."""
        if self._capture is not None:
            return self._capture.take(count).data_ptr()
        if self._work.numel() < count:
            self._work = torch.empty(count)
        return self._work.data_ptr()

    def _read(self, *activations: Tensor | None) -> None:
        """Say which activations the next kernel reads."""
        if self._capture is not None:
            for x in activations:
                if x is not None:
                    self._capture.read(x)

    def _angles_of(self, rotary: Rotary | None, batch: Batch) -> Angles:
        """A rotary embedding's angles of a batch; where a block is captured, they are laid out at each replay."""
        if rotary is None:
            return self._no_angles
        angles = self._angles.get(rotary)
        if angles is None:
            angles = self._angles[rotary] = Angles(rotary)
        if self._capture is None:
            angles.enter(batch)
        else:
            self._capture.read_angles(angles, batch)
        return angles

    def _threads_for(self, multiplications: int) -> int:
        return self.threads if multiplications >= SMALL else 1

    # Whole blocks.

    def blocks(self, layers: Sequence[Callable[..., Tensor]], x: Tensor, batch: Batch, cache: KVCache) -> Tensor:
        """`reference.blocks`, with few rows as one call. The next call may overwrite the result."""
        rows = x.shape[0]
        if not self.fuse or rows > CAPTURED_ROWS:
            return reference.blocks(layers, x, batch, cache)
        self._pass.enter(batch)
        if self._pass.most_rows >= MANY_QUERIES:
            return reference.blocks(layers, x, batch, cache)
        merged = self._merged(layers, cache, rows)
        if merged is not None:
            return self._replay(merged, x, batch)
        for layer in layers:
            x = self._block(layer, x, batch, cache)
        return x

    def captured_with(self, rows: int) -> dict[str, Any]:
        """Of the blocks that have run with so many rows: how many, how many of them are captured, and what is not.

        `torch`: the operations of torch's that run between kernels. `uncaptured`: why blocks run kernel by kernel.
        """
        blocks = [block for (_, _, count), block in self.captured.items() if count == rows]
        captured = [block.capture for block in blocks if block is not None]
        names = sorted({gap.name for capture in captured for _, gap in capture.gaps})
        return {"blocks": len(blocks), "captured": len(captured), "torch": names, "uncaptured": self.uncaptured}

    def _merged(self, layers: Sequence[Callable[..., Tensor]], cache: KVCache, rows: int) -> Block | None:
        """All the blocks as one, if each is captured and reads what the one before it has left."""
        first = (id(layers[0]), id(cache), rows)
        merged = self.captured_all.get(first)
        if merged is None or not merged.is_of(layers, cache) or not merged.is_alive:
            merged = merge([self._known(layer, cache, rows) for layer in layers])
            if merged is not None:
                self.captured_all[first] = merged
        return merged

    def _known(self, layer: Callable[..., Tensor], cache: KVCache, rows: int) -> Block | None:
        block = self.captured.get((id(layer), id(cache), rows))
        return block if block is not None and block.is_of([layer], cache) else None

    def _replay(self, block: Block, x: Tensor, batch: Batch) -> Tensor:
        block.take(x)
        for angles in block.capture.angles:
            angles.enter(batch)
        done, threads = 0, block.capture.threads
        for start, gap in block.capture.gaps:
            if start > done:
                self._start(block.at + 8 * ENTRY * done, start - done, threads)
            done = start
            gap.run()
        if block.count > done:
            self._start(block.at + 8 * ENTRY * done, block.count - done, threads)
        for _, gap in block.capture.gaps:
            gap.fresh = []  # views, which would keep a closed model's tensors
        return block.out

    def _block(self, layer: Callable[..., Tensor], x: Tensor, batch: Batch, cache: KVCache) -> Tensor:
        """One of them by itself: captured the first time, unless it cannot be."""
        key = (id(layer), id(cache), x.shape[0])
        block = self._known(layer, cache, x.shape[0])
        if block is None:
            if key in self.captured and self.captured[key] is None:
                return reference.blocks([layer], x, batch, cache)
            return self._capture_block(key, layer, x, batch, cache)
        if block.is_alive and block.is_checked:
            return self._replay(block, x, batch)
        x = x.clone()  # it may lie where this block works
        found = self._replay(block, x, batch).clone() if block.is_alive else None
        truth = reference.blocks([layer], x, batch, cache)
        block.is_checked = found is not None and same_bits(found, truth)
        if not block.is_checked:
            self._leave(key, "what torch computes in it differs from pass to pass in more than its input")
        return truth

    def _capture_block(
        self, key: tuple[int, int, int], layer: Callable[..., Tensor], x: Tensor, batch: Batch, cache: KVCache
    ) -> Tensor:
        """Run a block kernel by kernel, and keep the list if nothing but kernels made its result."""
        first, second = self._arenas
        inside, outside = (second, first) if first.holds(x) else (first, second)
        inside.restart()
        if not outside.holds(x):
            outside.restart()
            x = outside.take(*x.shape).copy_(x)
        capture = self._capture = Capture(x, inside)
        is_watched = type(layer) not in self._kernels_only
        if is_watched:
            capture.watch = Gaps(lambda: len(capture.names), capture.holds, batch.tensors)
        try:
            with capture.watch or nullcontext():
                out = reference.blocks([layer], x, batch, cache)
        finally:
            self._capture = None
        out = capture.finish(out)
        self.captured_all.clear()  # the one that was captured before may be a part of any
        if not capture.why:
            if not capture.gaps:
                self._kernels_only.add(type(layer))
            self.captured[key] = Block([weakref.ref(layer)], weakref.ref(cache), capture, out)
            return out
        if is_watched:
            self._leave(key, capture.why)
        self._kernels_only.discard(type(layer))  # the next time somebody looks on
        return out.clone()

    def _leave(self, key: tuple[int, int, int], why: str) -> None:
        """Capture a block no more, and say so once."""
        self.captured[key] = None
        self.captured_all.clear()
        if why not in self.uncaptured:
            self.uncaptured.append(why)
            self._note(f"the model has a block that runs kernel by kernel, which is slower: {why}")
