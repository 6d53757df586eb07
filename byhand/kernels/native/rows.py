"""The small kernels between the products: norms and the gate, a row at a time. Arguments as in products.py."""

from __future__ import annotations

import math

from byhand.kernels.native.llvm import LANES
from byhand.kernels.native.products import gate_into
from byhand.kernels.native.vectors import fma, load_float32, one_float32, put, spread, store, total


def rms_norm(x, weight, eps, y, rows, size):
    """y = x over its root mean square, times weight; x (rows, size)."""
    whole = size // LANES * LANES
    for row in range(rows):
        source, target = x + 4 * row * size, y + 4 * row * size
        squares = spread(0.0)
        for at in range(0, whole, LANES):
            value = load_float32(source + 4 * at)
            squares = fma(value, value, squares)
        square = total(squares)
        for at in range(whole, size):
            square += one_float32(source + 4 * at) ** 2
        factor = 1.0 / math.sqrt(square / size + eps)
        factors = spread(factor)
        for at in range(0, whole, LANES):
            store(target + 4 * at, load_float32(source + 4 * at) * factors * load_float32(weight + 4 * at))
        for at in range(whole, size):
            put(target + 4 * at, one_float32(source + 4 * at) * factor * one_float32(weight + 4 * at))


def layer_norm(x, weight, bias, eps, y, rows, size):
    """y = x less its mean, over its standard deviation, times weight, plus bias; either may be 0, for none."""
    whole = size // LANES * LANES
    for row in range(rows):
        source, target = x + 4 * row * size, y + 4 * row * size
        sums = spread(0.0)
        for at in range(0, whole, LANES):
            sums = sums + load_float32(source + 4 * at)
        mean = total(sums)
        for at in range(whole, size):
            mean += one_float32(source + 4 * at)
        mean /= size
        # A second reading: the difference of large squares would lose what a small deviation is made of.
        means, squares = spread(mean), spread(0.0)
        for at in range(0, whole, LANES):
            value = load_float32(source + 4 * at) - means
            squares = fma(value, value, squares)
        square = total(squares)
        for at in range(whole, size):
            square += (one_float32(source + 4 * at) - mean) ** 2
        factor = 1.0 / math.sqrt(square / size + eps)
        factors = spread(factor)
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


def silu_mul(gate, y, count):
    """y *= silu(gate), both (count,)."""
    gate_into(y, gate, count)
