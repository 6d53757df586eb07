"""The small kernels between the products: norms and the gate, a row at a time. Arguments as in products.py.

`curve` and `curve_mul` are templates: `bend` is one of the curves of vectors.py.
"""

from __future__ import annotations

import math

from byhand.kernels.native.compiled import inlined
from byhand.kernels.native.llvm import LANES
from byhand.kernels.native.products import first_of, first_row, gate_into
from byhand.kernels.native.vectors import (
    argument,
    fma,
    fraction,
    highest,
    load_float32,
    one_float32,
    put,
    put_bfloat16,
    silu,
    spread,
    store,
    store_rounded,
    total,
)

bend = silu


@inlined
def norm_row(source, weight, eps, target, size):
    """One row over its root mean square, times weight."""
    whole = size // LANES * LANES
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


def rms_norm(at, share):
    """y (rows, size) = x over its root mean square, times weight. Arguments: shares, x, weight, eps, y, rows, size."""
    shares, x, weight, eps = argument(at, 0), argument(at, 1), argument(at, 2), fraction(at, 3)
    y, rows, size = argument(at, 4), argument(at, 5), argument(at, 6)
    for row in range(first_row(share, shares, rows), first_row(share + 1, shares, rows)):
        norm_row(x + 4 * row * size, weight, eps, y + 4 * row * size, size)


@inlined
def centre_row(source, weight, bias, eps, target, size):
    """One row less its mean, over its standard deviation, times weight, plus bias; either may be 0, for none."""
    whole = size // LANES * LANES
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


def layer_norm(at, share):
    """y (rows, size) = x, each row centred and scaled. Arguments: shares, x, weight, bias, eps, y, rows, size."""
    shares, x, weight, bias = argument(at, 0), argument(at, 1), argument(at, 2), argument(at, 3)
    eps, y, rows, size = fraction(at, 4), argument(at, 5), argument(at, 6), argument(at, 7)
    for row in range(first_row(share, shares, rows), first_row(share + 1, shares, rows)):
        centre_row(x + 4 * row * size, weight, bias, eps, y + 4 * row * size, size)


def curve(at, share):
    """y = bend(x), both (count,). Arguments: shares, x, y, count."""
    shares, x, y, count = argument(at, 0), argument(at, 1), argument(at, 2), argument(at, 3)
    start, stop = first_of(share, shares, count), first_of(share + 1, shares, count)
    whole = start + (stop - start) // LANES * LANES
    for place in range(start, whole, LANES):
        store(y + 4 * place, bend(load_float32(x + 4 * place)))
    for place in range(whole, stop):
        # One number in all lanes: the same curve, and no second way to compute it.
        put(y + 4 * place, highest(bend(spread(one_float32(x + 4 * place)))))


def curve_mul(at, share):
    """y = bend(gate) · up, all (count,). Arguments: shares, gate, up, y, count."""
    shares, gate, up = argument(at, 0), argument(at, 1), argument(at, 2)
    y, count = argument(at, 3), argument(at, 4)
    start, stop = first_of(share, shares, count), first_of(share + 1, shares, count)
    whole = start + (stop - start) // LANES * LANES
    for at_number in range(start, whole, LANES):
        bent = bend(load_float32(gate + 4 * at_number))
        store(y + 4 * at_number, bent * load_float32(up + 4 * at_number))
    for at_number in range(whole, stop):
        bent = bend(spread(one_float32(gate + 4 * at_number)))
        put(y + 4 * at_number, highest(bent * spread(one_float32(up + 4 * at_number))))


def silu_mul(at, share):
    """y = silu(gate) · up, all (count,). Arguments: shares, gate, up, y, count."""
    shares, gate, up = argument(at, 0), argument(at, 1), argument(at, 2)
    y, count = argument(at, 3), argument(at, 4)
    start, stop = first_of(share, shares, count), first_of(share + 1, shares, count)
    gate_into(y + 4 * start, gate + 4 * start, up + 4 * start, stop - start)


def round_rows(at, share):
    """y = x rounded to bfloat16, both (count,). Arguments: shares, x, y, count."""
    shares, x, y, count = argument(at, 0), argument(at, 1), argument(at, 2), argument(at, 3)
    start, stop = first_of(share, shares, count), first_of(share + 1, shares, count)
    whole = start + (stop - start) // LANES * LANES
    for place in range(start, whole, LANES):
        store_rounded(y + 2 * place, load_float32(x + 4 * place))
    for place in range(whole, stop):
        put_bfloat16(y + 2 * place, one_float32(x + 4 * place))
