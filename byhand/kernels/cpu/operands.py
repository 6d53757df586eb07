"""What kernels work on: weights, caches and batches as they take them, in addresses, strides and counts."""

from __future__ import annotations

import sys
import weakref
from array import array
from collections.abc import Callable
from itertools import pairwise
from math import prod

import numpy as np
import torch
from torch import Tensor

from byhand.cache.kv_cache import Batch, KVCache
from byhand.errors import BadRequest
from byhand.formats import Weight, formats
from byhand.kernels import Rotary
from byhand.kernels.native.arguments import ANGLES, BATCH, BatchRows
from byhand.kernels.native.panels import WIDE
from byhand.weights import FORMATS


def address(tensor: Tensor | None) -> int:
    """Where a tensor begins; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def address_and_stride(x: Tensor | None) -> tuple[int, int]:
    """The address of x's first row, and the bytes from row to row."""
    if x is None:
        return 0, 0
    assert x.stride(1) == 1
    return x.data_ptr(), 4 * x.stride(0)


def rows_apart(x: Tensor) -> Tensor:
    """x (N, size) with each row in one piece; the rows may lie apart."""
    return x if x.stride(1) == 1 else x.contiguous()


class Spare:
    """Memory of large results that nobody holds any more, for the next ones.

    Given back and asked for anew, a page at a time, it costs a prompt up to a tenth of its time.
    """

    # float32 numbers: from how many on a result is large, and how many are kept in all (256 MiB).
    LARGE, MOST = 2**18, 2**26

    def __init__(self) -> None:
        self._arrays: list[np.ndarray[tuple[int], np.dtype[np.float32]]] = [np.empty(0, np.float32)]
        self._alone = sys.getrefcount(self._arrays[0])  # how often one is held whose tensors are gone

    def take(self, *shape: int) -> Tensor:
        """An uninitialised float32 tensor of this shape, which shares its memory with none that is alive."""
        count, arrays = prod(shape), self._arrays
        free = [index for index in range(len(arrays)) if sys.getrefcount(arrays[index]) == self._alone]
        fitting = [index for index in free if count <= arrays[index].size <= 2 * count]
        if fitting:
            array = arrays[min(fitting, key=lambda index: arrays[index].size)]
        else:
            if sum(array.size for array in arrays) + count > self.MOST:
                self._arrays = [array for index, array in enumerate(arrays) if index not in free]
            array = np.empty(count, np.float32)
            self._arrays.append(array)
        return torch.from_numpy(array)[:count].view(shape)


class Matrix:
    """A weight as kernels take it."""

    __slots__ = ("format", "inner", "numbers", "out", "scales", "stored_in_columns", "weight")

    def __init__(self, weight: Weight) -> None:
        self.weight = weight  # keeps the memory alive
        self.out, self.inner = weight.shape
        self.format = weight.format
        codes = weight.tensors[0]
        self.stored_in_columns = not codes.is_contiguous()
        if self.stored_in_columns and not codes.T.is_contiguous():
            raise BadRequest(f"a weight of shape {weight.shape} is neither stored by rows nor by columns")
        self.numbers = codes.data_ptr()
        self.scales = weight.tensors[1].data_ptr() if len(weight.tensors) > 1 else 0
        group = formats()[weight.format].group
        self.inner = -(-self.inner // group) * group

    @property
    def can_be_transposed(self) -> bool:
        """Whether its product with many rows is made of whole pieces."""
        return self.inner % WIDE == 0 and self.out >= WIDE

    @property
    def tiles(self) -> int:
        """Of how many tiles its product with many rows is made."""
        return -(-self.out // WIDE)


class LayerCache:
    """One layer's pages as attention takes them."""

    __slots__ = ("cache", "format", "group", "head_dim", "keys", "kv_heads", "values")

    def __init__(self, cache: KVCache, layer: int) -> None:
        self.cache = cache  # keeps the memory alive
        self.group = cache.group_of[layer]
        keys = cache.keys[layer]
        self.kv_heads, self.head_dim = keys.shape[2:]
        self.keys, self.values = keys.data_ptr(), cache.values[layer].data_ptr()
        self.format = FORMATS.get(keys.dtype)


class Pass:
    """What changes from pass to pass, in a table (`BatchRows`) that stays for each group of layers."""

    def __init__(self) -> None:
        self.at: list[int] = []  # the address of each group's table
        self.batch: Batch | None = None
        self.most_rows = self.longest = 0  # rows of one run, context
        self._tables: list[array[int]] = []
        self._kept: list[array[int]] = []  # what they point to

    def enter(self, batch: Batch) -> None:
        """Lay out a batch, unless it is the one that lies there already."""
        if batch is self.batch:
            return
        self.batch, starts = batch, batch.query_starts
        self.most_rows = max((stop - start for start, stop in pairwise(starts)), default=0)
        self.longest = max(batch.context_lens, default=0)
        while len(self._tables) < len(batch.page_tables):
            self._tables.append(array("q", [0] * len(BATCH)))
            self.at.append(self._tables[-1].buffer_info()[0])
        kept: list[array[int]] = []
        for group, tables in enumerate(batch.page_tables):
            numbers = array("q", [page for table in tables for page in table] or [0])
            plan, runs, pages = array("q"), array("q"), numbers.buffer_info()[0]
            for run, (context, table) in enumerate(zip(batch.context_lens, tables, strict=True)):
                rows = starts[run + 1] - starts[run]
                runs.extend((starts[run], rows, pages, context))
                for position in range(context - rows, context):
                    plan.append(position)
                    plan.append(pages)
                pages += 8 * len(table)
            kept += numbers, plan, runs
            laid_out = BatchRows(
                rows=len(plan) // 2,
                slots=batch.slot_mappings[group].data_ptr(),
                plan=plan.buffer_info()[0],
                longest=self.longest,
                runs=runs.buffer_info()[0],
                run_count=len(batch.context_lens),
            )
            self._tables[group][:] = array("q", laid_out)
        self._kept = kept


class Angles:
    """The cosines and sines that one rotary embedding gives a pass, in a table (`arguments.Angles`) that stays."""

    def __init__(self, rotary: Rotary | None) -> None:
        # Weakly: the kernels must not keep a closed model's.
        self._rotary: Callable[[], Rotary | None] = weakref.ref(rotary) if rotary is not None else lambda: None
        self._batch: Batch | None = None
        self.table = array("q", [0] * len(ANGLES))
        self.at = self.table.buffer_info()[0]

    def enter(self, batch: Batch) -> None:
        """Lay out those of a batch's positions, unless it is the one that lies there already."""
        if batch is not self._batch and (rotary := self._rotary()) is not None:
            cos, sin = rotary(batch.position_ids)
            self._batch, self._cos, self._sin = batch, cos.contiguous(), sin.contiguous()
            self.table[ANGLES.cos], self.table[ANGLES.sin] = self._cos.data_ptr(), self._sin.data_ptr()
