"""What rows of logits say before any chain, each in two readings: the best few, and the mass of all the others.

The arguments are as in products.py. Sums of weights are float64; the weights are exponentials in float32, each within
1e-6 of its value.
"""

from __future__ import annotations

from byhand.kernels.native.arguments import TOPK_LSE
from byhand.kernels.native.compiled import inlined
from byhand.kernels.native.llvm import LANES
from byhand.kernels.native.vectors import (
    argument,
    broadcast,
    decay,
    highest,
    integer,
    larger,
    load_float32,
    not_inlined,
    one_double,
    one_float32,
    put,
    put_double,
    put_integer,
    total,
)

# Vectors between two looks at the best so far, and between two additions to the float64 sums.
STRIDE, TURN = 4, 64


@inlined
def insert(logits, at, values, ids, count, k):
    """Put the number at `at` among the `count` best, falling; an equal one stays before it. Gives the new count."""
    value = one_float32(logits + 4 * at)
    slot = count if count < k else k - 1
    while slot > 0 and one_float32(values + 4 * (slot - 1)) < value:
        put(values + 4 * slot, one_float32(values + 4 * (slot - 1)))
        put_integer(ids + 8 * slot, integer(ids + 8 * (slot - 1)))
        slot -= 1
    put(values + 4 * slot, value)
    put_integer(ids + 8 * slot, at)
    return min(count + 1, k)


@inlined
def find_best(logits, size, k, values, ids):
    """The k largest, falling, ties by the lower index, and their indices; gives how many were found."""
    count, at, width = 0, 0, STRIDE * LANES
    while at < size:
        stop = min(at + width, size)
        if count == k and stop - at == width:
            peak = load_float32(logits + 4 * at)
            for part in range(1, STRIDE):
                peak = larger(peak, load_float32(logits + 4 * (at + LANES * part)))
            if highest(peak) <= one_float32(values + 4 * (k - 1)):
                at = stop
                continue
        for index in range(at, stop):
            if count < k or one_float32(logits + 4 * index) > one_float32(values + 4 * (k - 1)):
                count = insert(logits, index, values, ids, count, k)
        at = stop
    return count


@inlined
def is_finite(logits, size):
    """Whether all are numbers, and none is infinite: zero times anything else is not zero."""
    zeros = broadcast(0.0)
    whole = size // LANES * LANES
    for at in range(0, whole, LANES):
        zeros = zeros + load_float32(logits + 4 * at) * broadcast(0.0)
    rest = total(zeros)
    for at in range(whole, size):
        rest += one_float32(logits + 4 * at) * 0.0
    return rest == 0.0


@inlined
def add_moments(logits, start, stop, peak, results):
    """Add to results[1:3] the sums over start:stop of w = exp(logit - peak), and of w · (logit - peak)."""
    not_inlined()
    peaks = broadcast(peak)
    mass, moment = 0.0, 0.0
    whole = start + (stop - start) // LANES * LANES
    for first in range(start, whole, TURN * LANES):
        masses, moments = broadcast(0.0), broadcast(0.0)
        for at in range(first, min(first + TURN * LANES, whole), LANES):
            distances = load_float32(logits + 4 * at) - peaks
            weights = decay(distances)
            masses = masses + weights
            moments = moments + weights * distances
        mass += total(masses)
        moment += total(moments)
    for at in range(whole, stop):
        distance = one_float32(logits + 4 * at) - peak
        weight = total(decay(broadcast(distance))) / LANES
        mass += weight
        moment += weight * distance
    put_double(results + 8, one_double(results + 8) + mass)
    put_double(results + 16, one_double(results + 16) + moment)


def topk_lse(at, partition):
    """Arguments: partitions, which are rows, their k, logits (rows, size), size, the most k, then for as many of each
    row: values, ids; results.

    The best k, falling, go to values (k,) float32 and ids (k,) int64; to results (3,) float64: 1 if k is not 0 and all
    logits are finite, and over all but the best k the sum of w = exp(logit - highest) and of w · (logit - highest).
    """
    k, size, most = (
        integer(argument(at, TOPK_LSE.counts) + 8 * partition),
        argument(at, TOPK_LSE.size),
        argument(at, TOPK_LSE.most),
    )
    logits = argument(at, TOPK_LSE.logits) + 4 * size * partition
    values = argument(at, TOPK_LSE.values) + 4 * most * partition
    ids, results = argument(at, TOPK_LSE.ids) + 8 * most * partition, argument(at, TOPK_LSE.results) + 24 * partition
    for i in range(3):
        put_double(results + 8 * i, 0.0)
    if k > 0 and is_finite(logits, size):
        put_double(results, 1.0)
        found = find_best(logits, size, k, values, ids)
        start, before, peak = 0, -1, one_float32(values)
        for _ in range(found + 1):
            # The next of the best by index: the others lie between them.
            stop = size
            for number in range(found):
                index = integer(ids + 8 * number)
                if before < index < stop:
                    stop = index
            add_moments(logits, start, stop, peak, results)
            start, before = stop + 1, stop
