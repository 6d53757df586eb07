"""Weights times a few rows: the linear layers of decoding, which read every weight once and wait for memory.

Each function here is a template: `native/__init__.py` makes one of it per weight format, by giving its global names
`one_by_one` … `BLOCK_BYTES` that format's meaning. All numbers are addresses or counts (int64); x and y are float32.
A kernel does one partition of its work (team.py); its arguments lie in a table at `at`, the number of partitions first.
"""

from __future__ import annotations

from byhand.kernels.native.arguments import (
    EMBED,
    FIRST_OPERAND,
    GATED,
    LINEAR,
    LINEAR_COLUMNS,
    OPERAND,
    OPERAND_SIZE,
    OPERANDS,
    PARTITIONS,
)
from byhand.kernels.native.compiled import inlined
from byhand.kernels.native.llvm import LANES
from byhand.kernels.native.tiles import FORMATS, tile, unpacking
from byhand.kernels.native.vectors import (
    argument,
    broadcast,
    fma,
    highest,
    integer,
    load_float32,
    not_inlined,
    on_stack,
    one_float32,
    put,
    silu,
    store,
)

# Set by the maker of each format's kernels; these are float32's, and one of the activation functions of vectors.py.
activation = silu
BLOCK, BLOCK_BYTES, SCALE_BYTES, BYTES, X_BYTES = 16, 64, 0, 4, 4
PIECE = 2**40  # blocks of a row of weights that are gone through before the next row
load, one, one_x = load_float32, one_float32, one_float32
one_by_one, two_by_one = tile(FORMATS["float32"], 1, 1, 4), tile(FORMATS["float32"], 2, 1, 2)
room_on_stack = on_stack(64)  # for activations, where they are arranged
unpack = unpacking(FORMATS["float32"])
four_by_two, four_by_three, four_by_four = (tile(FORMATS["float32"], 4, rows) for rows in (2, 3, 4))
two_by_eight = tile(FORMATS["float32"], 2, 8)

# Bytes of weights that are kept near while many rows pass by: a part of the second cache.
KEPT = 2**18
# Numbers of a row of weights that are gone through before the next rows of weights, when many rows pass by.
INNER = 2048


@inlined
def add_into(y, other, count):
    """y += other, both (count,)."""
    whole = count // LANES * LANES
    for at in range(0, whole, LANES):
        store(y + 4 * at, load_float32(y + 4 * at) + load_float32(other + 4 * at))
    for at in range(whole, count):
        put(y + 4 * at, one_float32(y + 4 * at) + one_float32(other + 4 * at))


@inlined
def finish(y, y_stride, rows, start, stop, bias, residual):
    """y[:, start:stop] += bias and residual, where they are given."""
    not_inlined()
    for row in range(rows):
        address = y + row * y_stride + 4 * start
        if bias != 0:
            add_into(address, bias + 4 * start, stop - start)
        if residual != 0:
            add_into(address, residual + row * y_stride + 4 * start, stop - start)


def gate_into(y, gate, up, count):
    """y = activation(gate) · up, all (count,)."""
    whole = count // LANES * LANES
    for at in range(0, whole, LANES):
        store(y + 4 * at, activation(load_float32(gate + 4 * at)) * load_float32(up + 4 * at))
    for at in range(whole, count):
        # One number in all lanes: the same function, and no second way to compute it.
        value = activation(broadcast(one_float32(gate + 4 * at))) * broadcast(one_float32(up + 4 * at))
        put(y + 4 * at, highest(value))


@inlined
def partition_start(partition, partitions, total):
    """Where a partition of `total` outputs begins, at a multiple of 4.

    There is one partition for each thread, as large as the others, and it is read from end to end: smaller pieces,
    handed out to whoever is free, were measured to cost a third of the memory's speed.
    """
    return total if partition == partitions else total // 4 * partition // partitions * 4


@inlined
def first_row(partition, partitions, rows):
    """Where a partition of so many rows begins: they lie one behind the other, as memory is read ahead."""
    return rows * partition // partitions


def add_tails(weights, first, start, stop, inner, x, x_stride, rows, y, y_stride):
    """Add to y what the inner columns from `first` on contribute, too few for a vector."""
    not_inlined()
    for row in range(rows):
        for column in range(start, stop):
            address = y + row * y_stride + 4 * column
            value = one_float32(address)
            for at in range(first, inner):
                weight = one(weights + (column * inner + at) * BYTES)
                value += weight * one_x(x + row * x_stride + X_BYTES * at)
            put(address, value)


@inlined
def arrange(x, blocks, room):
    """Activations in the order in which weights are read; as they are, for most."""
    return x


def multiply_one(weights, scales, start, stop, blocks, stride, scale_stride, x, y, more):
    """One row of activations: weight rows two by two, the two far apart, so that memory is read in two streams."""
    not_inlined()
    pairs, room = (stop - start) // 2, room_on_stack()
    for begin in range(0, max(blocks, 1), PIECE):
        count = min(PIECE, blocks - begin)
        here = arrange(x + X_BYTES * BLOCK * begin, count, room)
        w, s = weights + begin * BLOCK_BYTES, scales + begin * SCALE_BYTES
        for column in range(start, start + pairs):
            here_w, here_s, apart = w + column * stride, s + column * scale_stride, 4 * pairs
            two_by_one(
                here_w, pairs * stride, here_s, pairs * scale_stride, here, 0, count, y + 4 * column, 0, apart, more
            )
        for column in range(start + 2 * pairs, stop):
            here_w, here_s = w + column * stride, s + column * scale_stride
            one_by_one(here_w, stride, here_s, scale_stride, here, 0, count, y + 4 * column, 0, 0, more)
        more = 1


def multiply_eight(weights, scales, start, stop, blocks, stride, scale_stride, x, x_stride, y, y_stride, more):
    """The same for eight rows; the last of an odd number of weight rows is left."""
    not_inlined()
    pairs = (stop - start) // 2
    for column in range(start, start + pairs):
        w, s, apart = weights + column * stride, scales + column * scale_stride, 4 * pairs
        two_by_eight(
            w, pairs * stride, s, pairs * scale_stride, x, x_stride, blocks, y + 4 * column, y_stride, apart, more
        )  # fmt: skip


def multiply_few(weights, scales, start, stop, blocks, stride, scale_stride, x, x_stride, rows, y, y_stride, more):
    """`multiply_rows` for eight rows or at most four, each weight read once; `more` adds to y."""
    not_inlined()
    if rows == 1:
        multiply_one(weights, scales, start, stop, blocks, stride, scale_stride, x, y, more)
        return
    if rows == 8:
        multiply_eight(weights, scales, start, stop, blocks, stride, scale_stride, x, x_stride, y, y_stride, more)
        whole = start + (stop - start) // 2 * 2
    else:
        whole = start + (stop - start) // 4 * 4
        for column in range(start, whole, 4):
            w, s, address = weights + column * stride, scales + column * scale_stride, y + 4 * column
            if rows == 4:
                four_by_four(w, stride, s, scale_stride, x, x_stride, blocks, address, y_stride, 4, more)
            elif rows == 3:
                four_by_three(w, stride, s, scale_stride, x, x_stride, blocks, address, y_stride, 4, more)
            else:
                four_by_two(w, stride, s, scale_stride, x, x_stride, blocks, address, y_stride, 4, more)
    for row in range(rows):
        here, out = x + row * x_stride, y + row * y_stride
        multiply_one(weights, scales, whole, stop, blocks, stride, scale_stride, here, out, more)


def multiply_rows(weights, scales, start, stop, inner, x, x_stride, rows, y, y_stride):
    """y[:, start:stop] = x (rows, inner) times weights[start:stop] (out, inner) transposed."""
    not_inlined()
    blocks = inner // BLOCK
    stride = blocks * BLOCK_BYTES if SCALE_BYTES else inner * BYTES
    scale_stride = SCALE_BYTES * blocks
    # For many rows: so many weights that they stay in the second cache while all rows pass by, and of each so many
    # numbers that eight rows of activations stay in the first.
    width = stop - start if rows <= 4 else max(4, KEPT // (stride + 1) // 4 * 4)
    chunk = max(1, blocks if rows <= 4 else INNER // BLOCK)
    for first in range(start, stop, max(4, width)):
        last = min(first + width, stop)
        for begin in range(0, max(blocks, 1), chunk):
            count = min(chunk, blocks - begin)
            w, s, here = weights + begin * BLOCK_BYTES, scales + begin * SCALE_BYTES, x + X_BYTES * begin * BLOCK
            row = 0
            while row < rows:
                some = 8 if rows - row >= 8 else min(4, rows - row)
                multiply_few(
                    w, s, first, last, count, stride, scale_stride,
                    here + row * x_stride, x_stride, some, y + row * y_stride, y_stride, begin,
                )  # fmt: skip
                row += some
    if not SCALE_BYTES and blocks * BLOCK != inner:
        add_tails(weights, blocks * BLOCK, start, stop, inner, x, x_stride, rows, y, y_stride)


def multiply_partition(weights, scales, out, bias, inner, x, x_stride, rows, y, residual, start, stop):
    """The part of one matrix's outputs that lies in start:stop."""
    start, stop = max(start, 0), min(stop, out)
    if start < stop:
        multiply_rows(weights, scales, start, stop, inner, x, x_stride, rows, y, 4 * out)
        finish(y, 4 * out, rows, start, stop, bias, residual)


def linear(at, partition):
    """y = x · wᵀ + b for up to three matrices over one x, float32 or rounded; a residual is added to the first.

    A partition is so many outputs of all, laid end to end.
    """
    partitions, x, x_stride = argument(at, PARTITIONS), argument(at, LINEAR.x), argument(at, LINEAR.x_stride)
    rows, inner, residual = argument(at, LINEAR.rows), argument(at, LINEAR.inner), argument(at, LINEAR.residual)
    outputs = 0
    for matrix in range(OPERANDS):
        outputs += argument(at, FIRST_OPERAND + OPERAND_SIZE * matrix + OPERAND.out)
    start, stop = partition_start(partition, partitions, outputs), partition_start(partition + 1, partitions, outputs)
    for matrix in range(OPERANDS):
        here = at + 8 * (FIRST_OPERAND + OPERAND_SIZE * matrix)
        weights, scales, out = (
            argument(here, OPERAND.weights),
            argument(here, OPERAND.scales),
            argument(here, OPERAND.out),
        )
        bias, y = argument(here, OPERAND.bias), argument(here, OPERAND.y)
        added = residual if matrix == 0 else 0
        multiply_partition(weights, scales, out, bias, inner, x, x_stride, rows, y, added, start, stop)
        start, stop = start - out, stop - out


def gated(at, partition):
    """y = activation(x · w_gateᵀ + b_gate) · (x · w_upᵀ + b_up)."""
    partitions, x, x_stride, rows = (
        argument(at, PARTITIONS),
        argument(at, GATED.x),
        argument(at, GATED.x_stride),
        argument(at, GATED.rows),
    )
    inner, out, gate, y = (
        argument(at, GATED.inner),
        argument(at, GATED.out),
        argument(at, GATED.gate),
        argument(at, GATED.y),
    )
    start, stop = partition_start(partition, partitions, out), partition_start(partition + 1, partitions, out)
    weights, scales, bias = (
        argument(at, GATED.gate_weights),
        argument(at, GATED.gate_scales),
        argument(at, GATED.gate_bias),
    )
    multiply_partition(weights, scales, out, bias, inner, x, x_stride, rows, gate, 0, start, stop)
    weights, scales, bias = argument(at, GATED.up_weights), argument(at, GATED.up_scales), argument(at, GATED.up_bias)
    multiply_partition(weights, scales, out, bias, inner, x, x_stride, rows, y, 0, start, stop)
    for row in range(rows):
        here = 4 * (row * out + start)
        gate_into(y + here, gate + here, y + here, stop - start)


def embedding(at, partition):
    """y (rows, inner) = the rows of the weights that ids (rows,) name."""
    weights, scales, inner, y = (
        argument(at, EMBED.weights),
        argument(at, EMBED.scales),
        argument(at, EMBED.inner),
        argument(at, EMBED.y),
    )
    blocks = inner // BLOCK
    for row in range(partition, argument(at, EMBED.rows), argument(at, PARTITIONS)):
        number, out = integer(argument(at, EMBED.ids) + 8 * row), y + 4 * row * inner
        start = weights + number * (blocks * BLOCK_BYTES if SCALE_BYTES else inner * BYTES)
        unpack(start, scales + number * blocks * SCALE_BYTES, blocks, out)
        for i in range(blocks * BLOCK, inner):
            put(out + 4 * i, one(start + i * BYTES))


# Outputs of a column product kept in the processor's first cache while its inputs go by.
COLUMNS = 1024


# The same for a matrix stored as (inner, out), as GPT-2's are: sums of its rows instead of dot products.


def add_rows(weights, first, count, out, start, stop, x, y):
    """y[start:stop] += x[first:first + count] · weights[first:first + count, start:stop], count 4 or 1."""
    not_inlined()
    whole = start + (stop - start) // LANES * LANES
    w = weights + first * out * BYTES
    step = out * BYTES
    if count == 4:
        a, b = broadcast(one_float32(x + 4 * first)), broadcast(one_float32(x + 4 * first + 4))
        c, d = broadcast(one_float32(x + 4 * first + 8)), broadcast(one_float32(x + 4 * first + 12))
        for at in range(start, whole, LANES):
            address = w + at * BYTES
            value = fma(a, load(address), load_float32(y + 4 * at))
            value = fma(b, load(address + step), value)
            value = fma(c, load(address + 2 * step), value)
            store(y + 4 * at, fma(d, load(address + 3 * step), value))
    else:
        a = broadcast(one_float32(x + 4 * first))
        for at in range(start, whole, LANES):
            store(y + 4 * at, fma(a, load(w + at * BYTES), load_float32(y + 4 * at)))
    for at in range(whole, stop):
        value = one_float32(y + 4 * at)
        for row in range(count):
            value += one_float32(x + 4 * (first + row)) * one(w + row * step + at * BYTES)
        put(y + 4 * at, value)


def columns_partition(begin, end, weights, out, bias, inner, x, rows, y, residual):
    """What one thread does: its outputs in every row, a few at a time, from the first input to the last."""
    not_inlined()
    for start in range(begin, end, COLUMNS):
        stop = min(start + COLUMNS, end)
        for row in range(rows):
            for at in range(start, stop):
                put(y + 4 * (row * out + at), 0.0)
        whole = inner // 4 * 4
        for first in range(0, whole, 4):
            for row in range(rows):
                add_rows(weights, first, 4, out, start, stop, x + 4 * row * inner, y + 4 * row * out)
        for first in range(whole, inner):
            for row in range(rows):
                add_rows(weights, first, 1, out, start, stop, x + 4 * row * inner, y + 4 * row * out)
        finish(y, 4 * out, rows, start, stop, bias, residual)


def linear_columns(at, partition):
    """y (rows, out) = x (rows, inner) times weights (inner, out), plus bias and residual."""
    table = LINEAR_COLUMNS
    partitions, x, rows, inner = (
        argument(at, PARTITIONS),
        argument(at, table.x),
        argument(at, table.rows),
        argument(at, table.inner),
    )
    residual, weights, out = argument(at, table.residual), argument(at, table.weights), argument(at, table.out)
    bias, y = argument(at, table.bias), argument(at, table.y)
    start, stop = partition_start(partition, partitions, out), partition_start(partition + 1, partitions, out)
    columns_partition(start, stop, weights, out, bias, inner, x, rows, y, residual)
