"""The small kernels between the products: norms and the gate, a row at a time. Arguments as in products.py.

`act` and `act_and_mul` are templates: `activation` is one of the functions of vectors.py.
"""

from __future__ import annotations

import math

from byhand.kernels.native.arguments import ELEMENTWISE, NORM, PARTITIONS
from byhand.kernels.native.compiled import inlined
from byhand.kernels.native.llvm import LANES
from byhand.kernels.native.products import first_row, gate_into, partition_start
from byhand.kernels.native.vectors import (
    argument,
    broadcast,
    fma,
    fraction,
    highest,
    load_float32,
    one_float32,
    put,
    put_bfloat16,
    silu,
    store,
    store_rounded,
    total,
)

activation = silu


@inlined
def add_row(y, x, size):
    """y += x, (size,)."""
    whole = size // LANES * LANES
    for at in range(0, whole, LANES):
        store(y + 4 * at, load_float32(x + 4 * at) + load_float32(y + 4 * at))
    for at in range(whole, size):
        put(y + 4 * at, one_float32(x + 4 * at) + one_float32(y + 4 * at))


@inlined
def norm_row(source, weight, eps, target, size):
    """One row over its root mean square, times weight."""
    whole = size // LANES * LANES
    squares = broadcast(0.0)
    for at in range(0, whole, LANES):
        value = load_float32(source + 4 * at)
        squares = fma(value, value, squares)
    square = total(squares)
    for at in range(whole, size):
        square += one_float32(source + 4 * at) ** 2
    factor = 1.0 / math.sqrt(square / size + eps)
    factors = broadcast(factor)
    for at in range(0, whole, LANES):
        store(target + 4 * at, load_float32(source + 4 * at) * factors * load_float32(weight + 4 * at))
    for at in range(whole, size):
        put(target + 4 * at, one_float32(source + 4 * at) * factor * one_float32(weight + 4 * at))


def rms_norm(at, partition):
    """y (rows, size) = x over its root mean square, times weight, plus the residual if there is one."""
    partitions, x, weight, eps = (
        argument(at, PARTITIONS),
        argument(at, NORM.x),
        argument(at, NORM.weight),
        fraction(at, NORM.eps),
    )
    y, rows, size, residual = (
        argument(at, NORM.y),
        argument(at, NORM.rows),
        argument(at, NORM.size),
        argument(at, NORM.residual),
    )
    for row in range(first_row(partition, partitions, rows), first_row(partition + 1, partitions, rows)):
        norm_row(x + 4 * row * size, weight, eps, y + 4 * row * size, size)
        if residual != 0:
            add_row(y + 4 * row * size, residual + 4 * row * size, size)


@inlined
def centre_row(source, weight, bias, eps, target, size):
    """One row less its mean, over its standard deviation, times weight, plus bias; either may be 0, for none."""
    whole = size // LANES * LANES
    sums = broadcast(0.0)
    for at in range(0, whole, LANES):
        sums = sums + load_float32(source + 4 * at)
    mean = total(sums)
    for at in range(whole, size):
        mean += one_float32(source + 4 * at)
    mean /= size
    # A second reading: the difference of large squares would lose what a small deviation is made of.
    means, squares = broadcast(mean), broadcast(0.0)
    for at in range(0, whole, LANES):
        value = load_float32(source + 4 * at) - means
        squares = fma(value, value, squares)
    square = total(squares)
    for at in range(whole, size):
        square += (one_float32(source + 4 * at) - mean) ** 2
    factor = 1.0 / math.sqrt(square / size + eps)
    factors = broadcast(factor)
    for at in range(0, whole, LANES):
        value = (load_float32(source + 4 * at) - means) * factors
        if weight != 0:
            value = value * load_float32(weight + 4 * at)
        if bias != 0:
            value = value + load_float32(bias + 4 * at)
        store(target + 4 * at, value)
    for at in range(whole, size):
        value = (one_float32(source + 4 * at) - mean) * factor
        if weight != 0:
            value *= one_float32(weight + 4 * at)
        if bias != 0:
            value += one_float32(bias + 4 * at)
        put(target + 4 * at, value)


def layer_norm(at, partition):
    """y (rows, size) = x, each row centred and scaled, times weight, plus bias, plus the residual if there is one."""
    partitions, x, eps = argument(at, PARTITIONS), argument(at, NORM.x), fraction(at, NORM.eps)
    weight, bias, residual = argument(at, NORM.weight), argument(at, NORM.bias), argument(at, NORM.residual)
    y, rows, size = argument(at, NORM.y), argument(at, NORM.rows), argument(at, NORM.size)
    for row in range(first_row(partition, partitions, rows), first_row(partition + 1, partitions, rows)):
        centre_row(x + 4 * row * size, weight, bias, eps, y + 4 * row * size, size)
        if residual != 0:
            add_row(y + 4 * row * size, residual + 4 * row * size, size)


def act(at, partition):
    """y = activation(x)."""
    partitions, count = argument(at, PARTITIONS), argument(at, ELEMENTWISE.size)
    x, y = argument(at, ELEMENTWISE.x), argument(at, ELEMENTWISE.y)
    start, stop = partition_start(partition, partitions, count), partition_start(partition + 1, partitions, count)
    whole = start + (stop - start) // LANES * LANES
    for i in range(start, whole, LANES):
        store(y + 4 * i, activation(load_float32(x + 4 * i)))
    for i in range(whole, stop):
        # One number in all lanes: the same function, and no second way to compute it.
        put(y + 4 * i, highest(activation(broadcast(one_float32(x + 4 * i)))))


def act_and_mul(at, partition):
    """y = activation(x) · other."""
    partitions, count = argument(at, PARTITIONS), argument(at, ELEMENTWISE.size)
    gate, up, y = argument(at, ELEMENTWISE.x), argument(at, ELEMENTWISE.other), argument(at, ELEMENTWISE.y)
    start, stop = partition_start(partition, partitions, count), partition_start(partition + 1, partitions, count)
    gate_into(y + 4 * start, gate + 4 * start, up + 4 * start, stop - start)


def round_rows(at, partition):
    """y = x rounded to bfloat16."""
    partitions, count = argument(at, PARTITIONS), argument(at, ELEMENTWISE.size)
    x, y = argument(at, ELEMENTWISE.x), argument(at, ELEMENTWISE.y)
    start, stop = partition_start(partition, partitions, count), partition_start(partition + 1, partitions, count)
    whole = start + (stop - start) // LANES * LANES
    for i in range(start, whole, LANES):
        store_rounded(y + 2 * i, load_float32(x + 4 * i))
    for i in range(whole, stop):
        put_bfloat16(y + 2 * i, one_float32(x + 4 * i))
