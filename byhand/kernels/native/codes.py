"""int4 weights times one row of activations in whole numbers: exact, and in half the steps of the way over float32.

Within a group of weights every activation is a whole number of 24 bits times one factor, the group's largest in size
over LARGEST: as near as float32 keeps their sums. Its three digits to the base 256 lie in three planes, and one
instruction (AVX-512 VNNI) multiplies 64 codes by 64 digits and adds the products, four by four, to sixteen whole
numbers. With a group's scale s and offset o, and factor f of its activations, the sum over its weights is

    s · f · Σ code · number + o · Σ x

Σ x of each group is made once for all rows of weights, as the digits are (`arrange`). Four groups go at a time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from byhand.formats.grouped import GROUP
from byhand.kernels.native import llvm, tiles
from byhand.kernels.native.llvm import I32, I64, INTS, LANES, all_lanes, cgutils
from byhand.kernels.native.tiles import CACHE_LINE, Tile
from byhand.kernels.native.vectors import on_stack, typed

FOUR = 4  # groups at a time: their codes are one cache line
PLANES = 3
LARGEST = 127 * 256**2  # less than three digits hold, for a product of two float32 may be rounded up
# Bytes of four groups' activations: the planes, each of both halves of the groups; the factors; the sums.
PLANE = 2 * CACHE_LINE
ARRANGED = PLANES * PLANE + 2 * CACHE_LINE
# Groups of a row of weights that are gone through before the next row, and room for the activations they meet.
PIECE = 256
room_on_stack = on_stack(PIECE // FOUR * ARRANGED)

_QUARTER = ir.VectorType(I32, FOUR)
_NOTHING = ir.Constant(INTS, [0] * LANES)
_EACH_FOUR_TIMES = ir.Constant(INTS, [lane // FOUR for lane in range(LANES)])


class CodeTile(Tile):
    """The loop over the groups of some rows of weights; x is arranged."""

    def _sum_up(self, arguments: tuple[Any, ...], blocks: Any) -> None:
        builder = self.builder
        whole = builder.udiv(blocks, I64(FOUR))
        with cgutils.for_range(builder, whole, intp=I64) as loop:
            self._four_groups(loop.index, arguments, None)
        left = builder.urem(blocks, I64(FOUR))
        with builder.if_then(builder.icmp_signed("!=", left, I64(0))):
            self._four_groups(whole, arguments, left)

    def _four_groups(self, number: Any, arguments: tuple[Any, ...], left: Any) -> None:
        """Add four groups, or as many as are left."""
        weights, weight_stride, scales, scale_stride, x, _ = arguments
        builder, weight_format = self.builder, self.weight_format
        at = builder.mul(number, I64(FOUR * weight_format.block_bytes))
        of_scales = builder.mul(number, I64(FOUR * weight_format.scale_bytes))
        here = builder.add(x, builder.mul(number, I64(ARRANGED)))
        planes = [
            [self._vector_at(here, PLANE * plane + CACHE_LINE * half, INTS) for half in (0, 1)]
            for plane in range(PLANES)
        ]
        factors, sums = (self._vector_at(here, PLANES * PLANE + offset, llvm.FLOATS) for offset in (0, CACHE_LINE))
        self._fetch_early(0, weights, weight_stride, at)
        for column in range(self.columns):
            codes = self._read(builder.add(self._offset(weights, weight_stride, column), at), left, INTS)
            affines = self._read(builder.add(self._offset(scales, scale_stride, column), of_scales), left, _QUARTER)
            affines = builder.shuffle_vector(affines, affines, _EACH_FOUR_TIMES)
            scale, offset = llvm.lower_half(builder, affines), llvm.upper_half(builder, affines)
            value = builder.sitofp(self._product(codes, planes), llvm.FLOATS)
            total = llvm.fma(builder, offset, sums, builder.load(self.sums[column, 0, 0]))
            total = llvm.fma(builder, value, builder.fmul(scale, factors), total)
            builder.store(total, self.sums[column, 0, 0])

    def _product(self, codes: Any, planes: list[list[Any]]) -> Any:
        """Σ code · number in whole numbers, four lanes of each group. The largest sums of eight are under 2³⁰."""
        builder, mask = self.builder, all_lanes(I32, 0x0F0F0F0F)
        halves = builder.and_(codes, mask), builder.and_(builder.lshr(codes, all_lanes(I32, 4)), mask)
        value = None
        for plane in planes:
            digits = _NOTHING
            for half, numbers in zip(halves, plane, strict=True):
                digits = llvm.add_products(builder, half, numbers, digits)
            value = digits if value is None else builder.add(builder.shl(value, all_lanes(I32, 8)), digits)
        return value

    def _vector_at(self, address: Any, at: int, kind: ir.Type) -> Any:
        return llvm.read(self.builder, self.builder.add(address, I64(at)), kind)

    def _read(self, address: Any, left: Any, kind: ir.Type) -> Any:
        """A vector of four groups; 0 for those that are not there."""
        if left is None:
            return llvm.read(self.builder, address, kind)
        return llvm.read_some(self.builder, address, self.builder.mul(left, I64(kind.count // FOUR)), kind)


@typed(types.int64, types.int64, types.int64, types.int64)
def arrange(builder: Any, x: Any, blocks: Any, room: Any) -> Any:
    """Lay the activations of so many groups out as `CodeTile` reads them. Gives the room."""
    fours = builder.udiv(builder.add(blocks, I64(FOUR - 1)), I64(FOUR))
    with cgutils.for_range(builder, builder.mul(fours, I64(FOUR)), intp=I64) as loop:
        is_there = builder.icmp_signed("<", loop.index, blocks)
        source = builder.add(x, builder.select(is_there, builder.mul(loop.index, I64(4 * GROUP)), I64(0)))
        none = all_lanes(llvm.FLOAT, 0.0)
        halves = [
            builder.select(is_there, llvm.load_float32(builder, builder.add(source, I64(at))), none)
            for at in (0, 4 * LANES)
        ]
        four = builder.mul(builder.udiv(loop.index, I64(FOUR)), I64(ARRANGED))
        target = builder.add(room, builder.add(four, builder.mul(builder.urem(loop.index, I64(FOUR)), I64(LANES))))
        _arrange_group(builder, halves, target)
    return room


def _arrange_group(builder: Any, halves: list[Any], target: Any) -> None:
    """Put one group's part of each cache line of four where it belongs."""

    def put(value: Any, at: int) -> None:
        llvm.write(builder, builder.add(target, I64(at)), value, align=1)

    sizes = [llvm.call(builder, "llvm.fabs.v16f32", llvm.FLOATS, [half]) for half in halves]
    peak = llvm.highest(builder, llvm.larger(builder, *sizes))
    # A group of nothing but zeros may have any factor.
    peak = builder.select(builder.fcmp_ordered(">", peak, llvm.FLOAT(1e-25)), peak, llvm.FLOAT(1e-25))
    numbers_of_one = llvm.broadcast(builder, builder.fdiv(llvm.FLOAT(LARGEST), peak))
    for half, value in enumerate(halves):
        nearest = llvm.call(builder, "llvm.rint.v16f32", llvm.FLOATS, [builder.fmul(value, numbers_of_one)])
        number = llvm.call(builder, "llvm.fptosi.sat.v16i32.v16f32", INTS, [nearest])  # what is none spoils Σ x anyway
        for plane in reversed(range(PLANES)):
            digit = builder.ashr(builder.shl(number, all_lanes(I32, 24)), all_lanes(I32, 24))
            number = builder.ashr(builder.sub(number, digit), all_lanes(I32, 8))
            put(builder.trunc(digit, ir.VectorType(llvm.I8, LANES)), PLANE * plane + CACHE_LINE * half)
    of_sum = builder.fmul(llvm.total(builder, builder.fadd(*halves)), llvm.FLOAT(1 / FOUR))
    for index, value in enumerate((builder.fdiv(peak, llvm.FLOAT(LARGEST)), of_sum)):
        put(llvm.broadcast(builder, value, FOUR), PLANES * PLANE + CACHE_LINE * index)


def for_one_row() -> dict[str, Any]:
    """What `products.multiply_one` is made of."""
    weight_format = tiles.FORMATS["int4"]
    return {
        "one_by_one": tiles.tile(weight_format, 1, 1, 1, CodeTile),
        "two_by_one": tiles.tile(weight_format, 2, 1, 1, CodeTile),
        "arrange": arrange,
        "room_on_stack": room_on_stack,
        "PIECE": PIECE,
    }
