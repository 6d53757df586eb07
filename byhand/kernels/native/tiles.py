"""Dot products of some weight rows with some rows of activations: the heart of every product, in every format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from byhand.formats import formats
from byhand.kernels.native import llvm
from byhand.kernels.native.llvm import LANES, cgutils
from byhand.kernels.native.vectors import typed

# How far ahead memory is asked for: past the end of a page, which the processor by itself never crosses.
# It was measured to take a tenth off a product's time.
AHEAD = 4096
CACHE_LINE = 64


class TileFormat:
    """How a weight row is read: `block` numbers at a time, which are `block_bytes` bytes.

    A quantised block has `scale_bytes` bytes more, elsewhere: what its codes are multiplied by, and what is added.
    `unroll`: blocks of two rows at a time; `in_whole_numbers`: one row of activations is taken in them (codes.py).
    """

    def __init__(
        self,
        block: int,
        block_bytes: int,
        load: Callable[[Any, Any], list[Any]],
        scale_bytes: int = 0,
        load_scale: Callable[[Any, Any], list[Any]] = llvm.load_scale,
        load_scaled: Callable[[Any, Any, list[Any]], list[Any]] | None = None,
        unroll: int = 2,
        *,
        in_whole_numbers: bool = False,
    ) -> None:
        self.block = block
        self.block_bytes = block_bytes
        self.load = load
        self.scale_bytes = scale_bytes
        self.load_scale = load_scale
        self.load_scaled = load_scaled
        self.unroll = unroll
        self.in_whole_numbers = in_whole_numbers

    def load_numbers(self, builder: Any, weights: Any, affine: list[Any]) -> list[Any]:
        """The numbers that a group's codes at an address stand for."""
        if self.load_scaled is not None:
            return self.load_scaled(builder, weights, affine)
        codes = self.load(builder, weights)
        if len(affine) == 1:
            return [builder.fmul(code, affine[0]) for code in codes]
        return [llvm.fma(builder, code, *affine) for code in codes]


# How each format's own file says that its rows are read.
FORMATS = {name: TileFormat(**weight_format.tile(llvm)) for name, weight_format in formats().items()}


# Dot products of some weight rows with some activation rows, the heart of every product.


_FOUR = ir.VectorType(llvm.FLOAT, 4)


def _fold(builder: Any, a: Any, b: Any, width: int) -> Any:
    """Halve two vectors and add the halves: pieces of `width` lanes, a's sums beside b's."""
    pieces = range(0, 2 * LANES, 2 * width)
    masks = [[piece + half + lane for piece in pieces for lane in range(width)] for half in (0, width)]
    halves = [builder.shuffle_vector(a, b, ir.Constant(llvm.INTS, mask)) for mask in masks]
    return builder.fadd(*halves)


def _four_totals(builder: Any, sums: list[Any]) -> Any:
    """The totals of four vectors as one of four lanes: they are folded into each other, with half the work of each."""
    pairs = [_fold(builder, sums[0], sums[1], 8), _fold(builder, sums[2], sums[3], 8)]
    quarters = _fold(builder, pairs[0], pairs[1], 4)  # four lanes of each
    eighths = _fold(builder, quarters, quarters, 2)
    totals = _fold(builder, eighths, eighths, 1)
    mask = ir.Constant(ir.VectorType(llvm.I32, 4), [0, 1, 2, 3])
    return builder.shuffle_vector(totals, totals, mask)


class Tile:
    """Writes the loop over a tile's inner dimension: columns (weight rows) times rows (of activations)."""

    def __init__(self, builder: Any, weight_format: TileFormat, columns: int, rows: int, unroll: int) -> None:
        self.builder, self.weight_format, self.columns, self.rows, self.unroll = (
            builder,
            weight_format,
            columns,
            rows,
            unroll,
        )
        zero = llvm.all_lanes(llvm.FLOAT, 0.0)
        # Some sums at a time for each dot product: one alone would wait for its own last addition.
        self.sums = {
            (column, row, turn): cgutils.alloca_once_value(builder, zero)
            for column in range(columns)
            for row in range(rows)
            for turn in range(unroll)
        }

    def _offset(self, address: Any, stride: Any, count: int) -> Any:
        return self.builder.add(address, self.builder.mul(stride, llvm.I64(count)))

    def _accumulate(self, key: tuple[int, int, int], weights: list[Any], x: list[Any]) -> None:
        builder, total = self.builder, self.sums[key]
        value = builder.load(total)
        for weight, activation in zip(weights, x, strict=True):
            value = llvm.fma(builder, weight, activation, value)
        builder.store(value, total)

    def _accumulate_scaled(self, key: tuple[int, int, int], codes: list[Any], x: list[Any], affine: list[Any]) -> None:
        # (Σ code · x) · scale + offset · Σ x: cheaper than to scale every code, while there is but one row.
        builder, total = self.builder, self.sums[key]
        part = llvm.fma(builder, codes[1], x[1], builder.fmul(codes[0], x[0]))
        value = llvm.fma(builder, part, affine[0], builder.load(total))
        if len(affine) > 1:
            value = llvm.fma(builder, affine[1], builder.fadd(x[0], x[1]), value)
        builder.store(value, total)

    def _fetch_early(self, turn: int, weights: Any, weight_stride: Any, at: Any) -> None:
        """Ask for the weights that come AHEAD, or with four columns for those of the next tile."""
        builder, weight_format = self.builder, self.weight_format
        if turn * weight_format.block_bytes % CACHE_LINE:
            return
        for column in range(self.columns):
            address = self._offset(weights, weight_stride, column + (4 if self.columns == 4 else 0))
            ahead = builder.add(at, llvm.I64(0 if self.columns == 4 else AHEAD))
            llvm.fetch_early(builder, builder.add(address, ahead))

    def _step(self, turn: int, block: Any, arguments: tuple[Any, ...]) -> None:
        weights, weight_stride, scales, scale_stride, x, x_stride = arguments
        builder, weight_format = self.builder, self.weight_format
        self._fetch_early(turn, weights, weight_stride, builder.mul(block, llvm.I64(weight_format.block_bytes)))
        at = builder.mul(block, llvm.I64(weight_format.block * 4))
        activations = []
        for row in range(self.rows):
            address = builder.add(self._offset(x, x_stride, row), at)
            parts = range(0, weight_format.block, LANES)
            activations.append([llvm.load_float32(builder, builder.add(address, llvm.I64(4 * part))) for part in parts])
        for column in range(self.columns):
            at = builder.mul(block, llvm.I64(weight_format.block_bytes))
            row_address = builder.add(self._offset(weights, weight_stride, column), at)
            if not weight_format.scale_bytes:
                values = weight_format.load(builder, row_address)
            else:
                at = builder.mul(block, llvm.I64(weight_format.scale_bytes))
                affine = weight_format.load_scale(builder, builder.add(self._offset(scales, scale_stride, column), at))
                if self.rows == 1 and weight_format.load_scaled is None:
                    self._accumulate_scaled(
                        (column, 0, turn), weight_format.load(builder, row_address), activations[0], affine
                    )
                    continue
                values = weight_format.load_numbers(builder, row_address, affine)
            for row in range(self.rows):
                self._accumulate((column, row, turn), values, activations[row])

    def write(
        self, arguments: tuple[Any, ...], blocks: Any, out: Any, out_stride: Any, out_apart: Any, more: Any
    ) -> None:
        """The loop over the blocks, and the sums into memory."""
        builder = self.builder
        self._sum_up(arguments, blocks)
        is_more = builder.icmp_signed("!=", more, llvm.I64(0))
        if self.columns == 4:
            for row in range(self.rows):
                sums = [self._sum_of(column, row) for column in range(4)]
                self._put(self._offset(out, out_stride, row), _FOUR, _four_totals(builder, sums), is_more)
            return
        for column in range(self.columns):
            address = self._offset(out, out_apart, column)
            for first in range(0, self.rows, 4):
                sums = [self._sum_of(column, row) for row in range(first, min(first + 4, self.rows))]
                for row, value in enumerate(self._totals(sums), first):
                    self._put(self._offset(address, out_stride, row), llvm.FLOAT, value, is_more)

    def _sum_up(self, arguments: tuple[Any, ...], blocks: Any) -> None:
        """In turns of `unroll` blocks, and what is left block by block."""
        builder = self.builder
        whole = builder.udiv(blocks, llvm.I64(self.unroll))
        done = builder.mul(whole, llvm.I64(self.unroll))
        with cgutils.for_range(builder, whole, intp=llvm.I64) as loop:
            first = builder.mul(loop.index, llvm.I64(self.unroll))
            for turn in range(self.unroll):
                self._step(turn, builder.add(first, llvm.I64(turn)), arguments)
        if self.unroll > 1:
            with cgutils.for_range(builder, builder.sub(blocks, done), intp=llvm.I64) as loop:
                self._step(0, builder.add(done, loop.index), arguments)

    def _totals(self, sums: list[Any]) -> list[Any]:
        if len(sums) < 4:
            return [llvm.total(self.builder, value) for value in sums]
        totals = _four_totals(self.builder, sums)
        return [self.builder.extract_element(totals, llvm.I32(number)) for number in range(4)]

    def _put(self, address: Any, kind: Any, value: Any, is_more: Any) -> None:
        """Store, or add to what is there."""
        builder, pointer = self.builder, self.builder.inttoptr(address, kind.as_pointer())
        added = builder.fadd(value, builder.load(pointer, align=4))
        builder.store(builder.select(is_more, added, value), pointer, align=4)

    def _sum_of(self, column: int, row: int) -> Any:
        turns = [self.builder.load(self.sums[column, row, turn]) for turn in range(self.unroll)]
        while len(turns) > 1:
            turns = [*turns[2:], self.builder.fadd(turns[0], turns[1])]
        return turns[0]


class PairTile(Tile):
    """The same where activations are bfloat16 as the weights are: 32 of both at a time, multiplied as they are."""

    def _step(self, turn: int, block: Any, arguments: tuple[Any, ...]) -> None:
        weights, weight_stride, _, _, x, x_stride = arguments
        builder, at = self.builder, self.builder.mul(block, llvm.I64(CACHE_LINE))
        self._fetch_early(turn, weights, weight_stride, at)
        pairs = [
            llvm.read(builder, builder.add(self._offset(x, x_stride, row), at), llvm.INTS) for row in range(self.rows)
        ]
        for column in range(self.columns):
            values = llvm.read(builder, builder.add(self._offset(weights, weight_stride, column), at), llvm.INTS)
            for row, activations in enumerate(pairs):
                total = self.sums[column, row, turn]
                builder.store(llvm.add_pairs(builder, values, activations, builder.load(total)), total)


PAIRS = TileFormat(32, CACHE_LINE, lambda builder, address: [llvm.read(builder, address, llvm.INTS)])


def tile(weight_format: TileFormat, columns: int, rows: int, unroll: int = 1, kind: type[Tile] = Tile) -> Any:
    """An intrinsic: the dot products of `columns` weight rows and `rows` activation rows, into memory.

    Its arguments: weights, bytes from one weight row to the next, scales, bytes from one row of them to the next,
    x, bytes from row to row, blocks of the inner dimension, out, bytes from row to row, bytes from column to column
    (four columns lie side by side), and whether to add to what is there.
    """
    kind = PairTile if weight_format is PAIRS else kind

    @typed(types.void, *(types.int64,) * 11)
    def dots(builder: Any, *arguments: Any) -> None:
        kind(builder, weight_format, columns, rows, unroll).write(arguments[:6], *arguments[6:])

    return dots


def unpacking(weight_format: TileFormat) -> Any:
    """An intrinsic: a row of weights as float32. Its arguments: weights, scales, blocks, out."""

    @typed(types.void, *(types.int64,) * 4)
    def unpack(builder: Any, weights: Any, scales: Any, blocks: Any, out: Any) -> None:
        with cgutils.for_range(builder, blocks, intp=llvm.I64) as loop:
            address = builder.add(weights, builder.mul(loop.index, llvm.I64(weight_format.block_bytes)))
            if weight_format.scale_bytes:
                affine = weight_format.load_scale(
                    builder, builder.add(scales, builder.mul(loop.index, llvm.I64(weight_format.scale_bytes)))
                )
                values = weight_format.load_numbers(builder, address, affine)
            else:
                values = weight_format.load(builder, address)
            for part, value in enumerate(values):
                at = builder.add(builder.mul(loop.index, llvm.I64(4 * weight_format.block)), llvm.I64(64 * part))
                llvm.write(builder, builder.add(out, at), value)

    return unpack


def pairing(weight_format: TileFormat) -> Any:
    """An intrinsic: two rows of numbers in pairs of bfloat16. Its arguments: the one, the other, vectors, out."""

    @typed(types.void, *(types.int64,) * 4)
    def pair(builder: Any, first: Any, second: Any, vectors: Any, out: Any) -> None:
        with cgutils.for_range(builder, vectors, intp=llvm.I64) as loop:
            at = builder.mul(loop.index, llvm.I64(weight_format.block_bytes))
            rows = [weight_format.load(builder, builder.add(row, at))[0] for row in (first, second)]
            address = builder.add(out, builder.mul(loop.index, llvm.I64(4 * LANES)))
            llvm.write(builder, address, llvm.rounded_pairs(builder, *rows))

    return pair


def transposing(weight_format: TileFormat, early: int = 0, *, pairs: bool = False) -> Any:
    """An intrinsic: a block of each of sixteen rows, transposed: a number of all rows side by side in float32.

    early: ask for the rows that lie so many further on. pairs: two numbers of all rows side by side, in bfloat16.

    Its arguments: weights, bytes from row to row, scales, bytes from one row of them to the next, out, bytes from one
    number of the block to the next.
    """

    @typed(types.void, *(types.int64,) * 6)
    def transpose(
        builder: Any, weights: Any, stride: Any, scales: Any, scale_stride: Any, out: Any, out_stride: Any
    ) -> None:
        rows = []
        for row in range(LANES):
            address = builder.add(weights, builder.mul(stride, llvm.I64(row)))
            if early:
                ahead = builder.mul(stride, llvm.I64(early))
                llvm.fetch_early(builder, builder.add(address, ahead), keep=True)
            if weight_format.scale_bytes:
                affine = weight_format.load_scale(
                    builder, builder.add(scales, builder.mul(scale_stride, llvm.I64(row)))
                )
                rows.append(weight_format.load_numbers(builder, address, affine))
            else:
                rows.append(weight_format.load(builder, address))
        columns = [column for part in zip(*rows, strict=True) for column in llvm.transposed(builder, list(part))]
        if pairs:
            columns = [llvm.rounded_pairs(builder, *both) for both in zip(columns[::2], columns[1::2], strict=True)]
        for number, value in enumerate(columns):
            at = builder.add(out, builder.mul(out_stride, llvm.I64(number)))
            llvm.write(builder, at, value)

    return transpose


def accumulation(weight_format: TileFormat, rows: int, vectors: int) -> Any:
    """An intrinsic: for `rows` rows, sums += Σ weights[i] · values[i], 16 · `vectors` numbers wide, i in first:last.

    Its arguments: sums, bytes from row to row, weights, bytes from row to row, values, bytes from one to the next,
    first, last.
    """

    @typed(types.void, *(types.int64,) * 8)
    def accumulate(
        builder: Any,
        sums: Any,
        sums_stride: Any,
        weights: Any,
        weights_stride: Any,
        values: Any,
        stride: Any,
        first: Any,
        last: Any,
    ) -> None:
        addresses = [
            builder.add(builder.add(sums, builder.mul(sums_stride, llvm.I64(row))), llvm.I64(64 * part))
            for row in range(rows)
            for part in range(vectors)
        ]
        totals = [cgutils.alloca_once_value(builder, llvm.load_float32(builder, address)) for address in addresses]
        add, kind = (llvm.add_pairs, llvm.I32) if weight_format is PAIRS else (llvm.fma, llvm.FLOAT)
        with cgutils.for_range(builder, last, start=first, intp=llvm.I64) as loop:
            value = builder.add(values, builder.mul(stride, loop.index))
            steps = (builder.add(value, llvm.I64(weight_format.block_bytes * part)) for part in range(vectors))
            numbers = [weight_format.load(builder, step)[0] for step in steps]
            for row in range(rows):
                at = builder.add(builder.mul(weights_stride, llvm.I64(row)), builder.mul(loop.index, llvm.I64(4)))
                weight = llvm.broadcast(builder, llvm.read(builder, builder.add(weights, at), kind))
                for number, total in zip(numbers, totals[row * vectors :], strict=False):
                    builder.store(add(builder, weight, number, builder.load(total)), total)
        for address, total in zip(addresses, totals, strict=True):
            llvm.write(builder, address, builder.load(total))

    return accumulate
