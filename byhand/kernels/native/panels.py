"""Weights times many rows, as reading a prompt has them: weights are transposed once, and then all rows pass by.

Turned, a number of 32 rows of weights lies side by side in two registers: one activation in all lanes is multiplied by
both, and twelve rows of activations share what was loaded. A partition is 32 columns of the result: they are summed in
a tile that stays near, and leave it once. Templates like those of products.py, whose words for arguments hold here too.
"""

from __future__ import annotations

from byhand.kernels.native.arguments import (
    FIRST_OPERAND,
    GATED,
    LINEAR,
    OPERAND,
    OPERAND_SIZE,
    OPERANDS,
    PACK,
    PARTITIONS,
)
from byhand.kernels.native.compiled import inlined
from byhand.kernels.native.llvm import LANES
from byhand.kernels.native.products import add_into, first_row, gate_into
from byhand.kernels.native.tiles import FORMATS, accumulation, transposing
from byhand.kernels.native.vectors import argument, broadcast, load_float32, not_inlined, on_stack, store

# Set by the maker of each format's kernels; these are float32's. A step is what a lane multiplies at once: a number of
# float32, or a pair of bfloat16.
BLOCK, BLOCK_BYTES, SCALE_BYTES, STEP = 16, 64, 0, 1
WIDE = 2 * LANES
ACCUMULATED = {"twelve": 12, "four": 4, "one": 1}  # rows at a time
accumulate_twelve, accumulate_four, accumulate_one = (
    accumulation(FORMATS["float32"], rows, 2) for rows in ACCUMULATED.values()
)
transpose = transposing(FORMATS["float32"], early=WIDE)
put_some = store

# Steps of a panel and rows of a tile.
DEEP, TALL = 512, 512
panel_on_stack = on_stack(4 * DEEP * WIDE)
tile_on_stack = on_stack(4 * TALL * WIDE)
other_tile_on_stack = on_stack(4 * TALL * WIDE)


def packed_size(rows: int, inner: int, step: int) -> int:
    """How many float32 the room is that packed activations take."""
    return -(-inner // (DEEP * step)) * DEEP * rows


def pack(at, partition):
    """y = x in pieces of DEEP steps, one behind the other, each (rows, DEEP): rows that pass by lie in one stream.

    `inner` is a multiple of 16.
    """
    partitions, x, y = argument(at, PARTITIONS), argument(at, PACK.x), argument(at, PACK.y)
    rows, inner = argument(at, PACK.rows), argument(at, PACK.inner)
    for row in range(first_row(partition, partitions, rows), first_row(partition + 1, partitions, rows)):
        for begin in range(0, inner, DEEP * STEP):
            target = y + 4 * DEEP * (begin // (DEEP * STEP) * rows + row)
            for some in range(0, min(DEEP * STEP, inner - begin), LANES):
                put_some(target + 4 * some // STEP, load_float32(x + 4 * (row * inner + begin + some)))


def accumulate_rows(y, y_stride, x, x_stride, rows, panel, stride, steps):
    """y (rows, one panel's width) += x (rows, steps) times a panel (steps, its width)."""
    row = 0
    while row + 12 <= rows:
        accumulate_twelve(y + row * y_stride, y_stride, x + row * x_stride, x_stride, panel, stride, 0, steps)
        row += 12
    while row + 4 <= rows:
        accumulate_four(y + row * y_stride, y_stride, x + row * x_stride, x_stride, panel, stride, 0, steps)
        row += 4
    while row < rows:
        accumulate_one(y + row * y_stride, y_stride, x + row * x_stride, x_stride, panel, stride, 0, steps)
        row += 1


def sum_tile(weights, scales, start, inner, x, tall, rows, tile):
    """tile (rows, WIDE) = rows of packed x (tall, inner) times weights[start:start + WIDE] transposed."""
    not_inlined()
    panel = panel_on_stack()
    blocks, steps = inner // BLOCK, BLOCK // STEP
    stride, scale_stride = blocks * BLOCK_BYTES, blocks * SCALE_BYTES
    for at in range(0, WIDE * rows, LANES):
        store(tile + 4 * at, broadcast(0.0))
    for begin in range(0, blocks, DEEP // steps):
        count = min(DEEP // steps, blocks - begin)
        for part in range(0, WIDE, LANES):
            w = weights + (start + part) * stride + begin * BLOCK_BYTES
            s = scales + (start + part) * scale_stride + begin * SCALE_BYTES
            for block in range(count):
                address = panel + 4 * (block * steps * WIDE + part)
                transpose(w + block * BLOCK_BYTES, stride, s + block * SCALE_BYTES, scale_stride, address, 4 * WIDE)
        accumulate_rows(tile, 4 * WIDE, x + 4 * begin * steps * tall, 4 * DEEP, rows, panel, 4 * WIDE, count * steps)


@inlined
def add_to_all(tile, rows, other):
    """tile (rows, WIDE) += other (WIDE,), if there is one."""
    if other != 0:
        for row in range(rows):
            add_into(tile + 4 * WIDE * row, other, WIDE)


def tile_of_linear(weights, scales, out, bias, start, inner, x, tall, first, rows, y, residual):
    """One tile of y: rows from `first` on, WIDE columns from `start` on."""
    not_inlined()
    tile = tile_on_stack()
    sum_tile(weights, scales, start, inner, x + 4 * DEEP * first, tall, rows, tile)
    add_to_all(tile, rows, bias + 4 * start if bias != 0 else 0)
    for row in range(rows):
        offset, sums = 4 * ((first + row) * out + start), tile + 4 * WIDE * row
        if residual != 0:
            add_into(sums, residual + offset, WIDE)
        for at in range(0, WIDE, LANES):
            store(y + offset + 4 * at, load_float32(sums + 4 * at))


@inlined
def first_column(tile, out):
    """Where a tile of a matrix begins; the last one is moved back, so that it is whole."""
    return min(WIDE * tile, out - WIDE)


def linear_many(at, partition):
    """y = x · wᵀ + b for up to three matrices over one x, packed; a residual is added to the first.

    There are as many partitions as tiles.
    """
    x, rows, inner, residual = (
        argument(at, LINEAR.x),
        argument(at, LINEAR.rows),
        argument(at, LINEAR.inner),
        argument(at, LINEAR.residual),
    )
    for matrix in range(OPERANDS):
        here = at + 8 * (FIRST_OPERAND + OPERAND_SIZE * matrix)
        weights, scales, out = (
            argument(here, OPERAND.weights),
            argument(here, OPERAND.scales),
            argument(here, OPERAND.out),
        )
        bias, y = argument(here, OPERAND.bias), argument(here, OPERAND.y)
        tiles = (out + WIDE - 1) // WIDE
        if 0 <= partition < tiles:
            start, added = first_column(partition, out), residual if matrix == 0 else 0
            for first in range(0, rows, TALL):
                some = min(TALL, rows - first)
                tile_of_linear(weights, scales, out, bias, start, inner, x, rows, first, some, y, added)
        partition -= tiles


def gated_many(at, partition):
    """y = activation(x · w_gateᵀ + b_gate) · (x · w_upᵀ + b_up), of packed x."""
    x, tall, inner, out = (
        argument(at, GATED.x),
        argument(at, GATED.rows),
        argument(at, GATED.inner),
        argument(at, GATED.out),
    )
    gate_weights, gate_scales = argument(at, GATED.gate_weights), argument(at, GATED.gate_scales)
    up_weights, up_scales = argument(at, GATED.up_weights), argument(at, GATED.up_scales)
    gate_bias, up_bias, y = argument(at, GATED.gate_bias), argument(at, GATED.up_bias), argument(at, GATED.y)
    start = first_column(partition, out)
    gate, up = tile_on_stack(), other_tile_on_stack()
    for first in range(0, tall, TALL):
        rows, here = min(TALL, tall - first), x + 4 * DEEP * first
        sum_tile(gate_weights, gate_scales, start, inner, here, tall, rows, gate)
        sum_tile(up_weights, up_scales, start, inner, here, tall, rows, up)
        add_to_all(gate, rows, gate_bias + 4 * start if gate_bias != 0 else 0)
        add_to_all(up, rows, up_bias + 4 * start if up_bias != 0 else 0)
        for row in range(rows):
            offset = 4 * WIDE * row
            gate_into(y + 4 * ((first + row) * out + start), gate + offset, up + offset, WIDE)
