"""Attention straight over the pages: keys and values are read once where they lie, and no scores are kept.

One page is PAGE tokens, as many as a vector has lanes: a page's scores for one head are one vector. The softmax goes
along as pages are read (Milakov and Gimelshein, arXiv:1805.02867); the context of a row is cut in parts for the
threads, whose sums are put together at the end (as in Flash-Decoding). A thread reads a page for all heads before the
next, so memory is read in order and grouped heads share it.

Templates, made for each dtype of the cache: BYTES … accumulate_narrow are that dtype's. Numbers are addresses and
counts (int64), or float32; q and out are (rows, heads, head_dim) float32. The kernels stand at the end, each in
partitions.
"""

from __future__ import annotations

from byhand.kernels.native.arguments import ANGLES, ATTEND, BATCH, PARTITIONS
from byhand.kernels.native.compiled import inlined
from byhand.kernels.native.llvm import LANES
from byhand.kernels.native.products import first_row
from byhand.kernels.native.tiles import FORMATS, accumulation, tile
from byhand.kernels.native.vectors import (
    argument,
    broadcast,
    decay,
    exp,
    fetch_early,
    fma,
    fraction,
    highest,
    integer,
    lane_numbers,
    load_float32,
    not_inlined,
    one_float32,
    put,
    put_integer,
    store,
    take_ticket,
    total,
    where_less,
)

BYTES = 4
one, put_one, put_some = one_float32, put, store
one_head, two_heads, three_heads, four_heads = (tile(FORMATS["float32"], 4, rows) for rows in (1, 2, 3, 4))
accumulate_one, accumulate_two, accumulate_three, accumulate_four = (
    accumulation(FORMATS["float32"], rows, 4) for rows in (1, 2, 3, 4)
)
accumulate_narrow = accumulation(FORMATS["float32"], 1, 1)

PAGE = LANES
MINUS_INFINITY = float("-inf")


@inlined
def rotate_into(x, cos, sin, out, head_dim):
    """out = x rotated by its position's angles; dimension i pairs with i + head_dim / 2."""
    not_inlined()
    half = head_dim // 2
    whole = half // LANES * LANES
    for at in range(0, whole, LANES):
        first, second = load_float32(x + 4 * at), load_float32(x + 4 * (at + half))
        rotated = first * load_float32(cos + 4 * at) - second * load_float32(sin + 4 * at)
        store(out + 4 * at, rotated)
        rotated = second * load_float32(cos + 4 * (at + half)) + first * load_float32(sin + 4 * (at + half))
        store(out + 4 * (at + half), rotated)
    for at in range(whole, half):
        first, second = one_float32(x + 4 * at), one_float32(x + 4 * (at + half))
        put(out + 4 * at, first * one_float32(cos + 4 * at) - second * one_float32(sin + 4 * at))
        put(
            out + 4 * (at + half),
            second * one_float32(cos + 4 * (at + half)) + first * one_float32(sin + 4 * (at + half)),
        )


@inlined
def fill(x, value, count):
    """x = value, (count,)."""
    whole = count // LANES * LANES
    for at in range(0, whole, LANES):
        store(x + 4 * at, broadcast(value))
    for at in range(whole, count):
        put(x + 4 * at, value)


@inlined
def scale_into(y, x, scale, count):
    """y = x · scale, (count,)."""
    not_inlined()
    whole = count // LANES * LANES
    for at in range(0, whole, LANES):
        store(y + 4 * at, load_float32(x + 4 * at) * broadcast(scale))
    for at in range(whole, count):
        put(y + 4 * at, one_float32(x + 4 * at) * scale)


@inlined
def add_scaled(y, x, scale, count):
    """y += x · scale, (count,)."""
    whole = count // LANES * LANES
    for at in range(0, whole, LANES):
        store(y + 4 * at, fma(load_float32(x + 4 * at), broadcast(scale), load_float32(y + 4 * at)))
    for at in range(whole, count):
        put(y + 4 * at, one_float32(y + 4 * at) + one_float32(x + 4 * at) * scale)


def write_row(x, cache, count):
    """Put (count,) float32 into the cache, in its dtype."""
    whole = count // LANES * LANES
    for at in range(0, whole, LANES):
        put_some(cache + BYTES * at, load_float32(x + 4 * at))
    for at in range(whole, count):
        put_one(cache + BYTES * at, one_float32(x + 4 * at))


@inlined
def fetch_tokens(address, stride, size, first, last):
    """Ask early for one head's part of some tokens of a page."""
    for token in range(first, last):
        for at in range(0, size, 64):
            fetch_early(address + token * stride + at)


def score_some(q, keys, stride, scores, count, head_dim, following):
    """scores[head, i] = q[head] · keys[i] for `count` heads and all keys of a page; asks for those of another page."""
    not_inlined()
    blocks = head_dim // LANES
    row = 4 * head_dim
    for i in range(0, PAGE, 4):
        key, out = keys + i * stride, scores + 4 * i
        fetch_tokens(following, stride, head_dim * BYTES, i, i + 4)
        head = 0
        while head + 4 <= count:
            four_heads(key, stride, 0, 0, q + head * row, row, blocks, out + 4 * PAGE * head, 4 * PAGE, 4, 0)
            head += 4
        if count - head == 3:
            three_heads(key, stride, 0, 0, q + head * row, row, blocks, out + 4 * PAGE * head, 4 * PAGE, 4, 0)
        elif count - head == 2:
            two_heads(key, stride, 0, 0, q + head * row, row, blocks, out + 4 * PAGE * head, 4 * PAGE, 4, 0)
        elif count - head == 1:
            one_head(key, stride, 0, 0, q + head * row, row, blocks, out + 4 * PAGE * head, 4 * PAGE, 4, 0)
    for at in range(blocks * LANES, head_dim):
        for head in range(count):
            number = one_float32(q + 4 * (head * head_dim + at))
            for i in range(PAGE):
                address = scores + 4 * (PAGE * head + i)
                put(address, one_float32(address) + number * one(keys + i * stride + BYTES * at))


def weighted_sum(sums, weights, values, stride, first, last, count, head_dim):
    """sums[head] += Σ weights[head, i] · values[i] for `count` heads and i in first:last."""
    not_inlined()
    row = 4 * head_dim
    at = 0
    while at + 4 * LANES <= head_dim:
        head = 0
        while head + 4 <= count:
            here, by, of = sums + head * row + 4 * at, weights + 4 * PAGE * head, values + BYTES * at
            accumulate_four(here, row, by, 4 * PAGE, of, stride, first, last)
            head += 4
        here, by, of = sums + head * row + 4 * at, weights + 4 * PAGE * head, values + BYTES * at
        if count - head == 3:
            accumulate_three(here, row, by, 4 * PAGE, of, stride, first, last)
        elif count - head == 2:
            accumulate_two(here, row, by, 4 * PAGE, of, stride, first, last)
        elif count - head == 1:
            accumulate_one(here, row, by, 4 * PAGE, of, stride, first, last)
        at += 4 * LANES
    while at + LANES <= head_dim:
        for head in range(count):
            here, by, of = sums + head * row + 4 * at, weights + 4 * PAGE * head, values + BYTES * at
            accumulate_narrow(here, row, by, 4 * PAGE, of, stride, first, last)
        at += LANES
    for tail in range(at, head_dim):
        for head in range(count):
            number = one_float32(sums + head * row + 4 * tail)
            for i in range(first, last):
                number += one_float32(weights + 4 * (PAGE * head + i)) * one(values + i * stride + BYTES * tail)
            put(sums + head * row + 4 * tail, number)


@inlined
def shape_scores(scores, head, softcap, slopes, distance):
    """A head's scores of one page after the soft cap and the slope; `distance`: page's start − query position."""
    value = load_float32(scores + 4 * PAGE * head)
    if softcap > 0.0:
        # tanh(a) = 1 − 2 / (exp(2a) + 1)
        one = broadcast(1.0)
        doubled = exp(value * broadcast(2.0 / softcap))
        value = broadcast(softcap) * (one - broadcast(2.0) / (doubled + one))
    if slopes != 0:
        value = fma(broadcast(one_float32(slopes + 4 * head)), lane_numbers() + broadcast(distance), value)
    return value


@inlined
def online_softmax(scores, value, head, first, last, state, sums, head_dim):
    """Turn a page's scores into weights under the highest score so far; what was summed under a lower one shrinks."""
    value = where_less(lane_numbers(), broadcast(last), value, MINUS_INFINITY)
    value = where_less(broadcast(first - 1.0), lane_numbers(), value, MINUS_INFINITY)
    before = one_float32(state + 8 * head)
    peak = max(before, highest(value))
    weights = decay(value - broadcast(peak))
    store(scores + 4 * PAGE * head, weights)
    weight_sum = one_float32(state + 8 * head + 4)
    if peak > before:
        put(state + 8 * head, peak)
        shrink = total(decay(broadcast(before - peak))) / LANES
        weight_sum *= shrink
        scale_into(sums, sums, shrink, head_dim)
    put(state + 8 * head + 4, weight_sum + total(weights))


def attend_split(
    q, keys, values, stride, table, low, high, position, heads, kv_heads, head_dim,
    softcap, slopes, scores, state, sums,
):  # fmt: skip
    """Attention of one row to its tokens low:high: (highest score, sum of weights) into state, Σ weight · value."""
    group = heads // kv_heads
    for head in range(heads):
        put(state + 8 * head, MINUS_INFINITY)
        put(state + 8 * head + 4, 0.0)
    fill(sums, 0.0, heads * head_dim)
    for page in range(low // PAGE, (high + PAGE - 1) // PAGE):
        start = integer(table + 8 * page) * PAGE * stride
        first, last = max(low - page * PAGE, 0), min(high - page * PAGE, PAGE)
        # Two pages ahead, a few tokens of a head at a time: more at once would hold up what is computed beside it.
        following = integer(table + 8 * page + 16) * PAGE * stride if (page + 2) * PAGE < high else start
        for kv_head in range(kv_heads):
            head, address = kv_head * group, keys + start + kv_head * head_dim * BYTES
            after = keys + following + kv_head * head_dim * BYTES
            score_some(q + 4 * head * head_dim, address, stride, scores + 4 * PAGE * head, group, head_dim, after)
        for head in range(heads):
            after, number = values + following + head // group * head_dim * BYTES, head % group
            fetch_tokens(after, stride, head_dim * BYTES, PAGE * number // group, PAGE * (number + 1) // group)
            value = shape_scores(scores, head, softcap, slopes, page * PAGE - position)
            online_softmax(scores, value, head, first, last, state, sums + 4 * head * head_dim, head_dim)
        for kv_head in range(kv_heads):
            head, address = kv_head * group, values + start + kv_head * head_dim * BYTES
            sums_of, weights = sums + 4 * head * head_dim, scores + 4 * PAGE * head
            weighted_sum(sums_of, weights, address, stride, first, last, group, head_dim)


@inlined
def split_of(part, parts, low, high):
    """The tokens of one part of low:high, cut at pages."""
    first, pages = low // PAGE, (high + PAGE - 1) // PAGE - low // PAGE
    start, stop = first + pages * part // parts, first + pages * (part + 1) // parts
    return max(low, start * PAGE), min(high, stop * PAGE)


@inlined
def combine_row(out, work, split_bytes, parts, heads, head_dim, sinks):
    """Put the parts of one row together: each head's sums over the sum of all weights, all under one highest score."""
    for head in range(heads):
        peak = one_float32(sinks + 4 * head) if sinks != 0 else MINUS_INFINITY
        for part in range(parts):
            peak = max(peak, one_float32(work + part * split_bytes + 8 * head))
        weight_sum = total(decay(broadcast(one_float32(sinks + 4 * head) - peak))) / LANES if sinks != 0 else 0.0
        target = out + 4 * head * head_dim
        fill(target, 0.0, head_dim)
        for part in range(parts):
            state = work + part * split_bytes + 8 * head
            factor = total(decay(broadcast(one_float32(state) - peak))) / LANES
            weight_sum += factor * one_float32(state + 4)
            sums = work + part * split_bytes + 8 * heads + 4 * head * head_dim
            add_scaled(target, sums, factor, head_dim)
        scale_into(target, target, 1.0 / weight_sum, head_dim)


def write_keys(at, here, row, work):
    """Put a row's keys, rotated if there are angles, and its values into their slot."""
    k, v, kv_heads, head_dim, angles = (
        argument(at, ATTEND.k),
        argument(at, ATTEND.v),
        argument(at, ATTEND.kv_heads),
        argument(at, ATTEND.head_dim),
        argument(at, ATTEND.angles),
    )
    cos, sin, size = argument(angles, ANGLES.cos), argument(angles, ANGLES.sin), kv_heads * head_dim
    offset = integer(argument(here, BATCH.slots) + 8 * row) * size * BYTES
    key = k + row * argument(at, ATTEND.k_stride)
    if cos != 0:
        for head in range(kv_heads):
            first = 4 * head * head_dim
            rotate_into(key + first, cos + 4 * row * head_dim, sin + 4 * row * head_dim, work + first, head_dim)
        key = work
    write_row(key, argument(at, ATTEND.keys) + offset, size)
    write_row(v + row * argument(at, ATTEND.v_stride), argument(at, ATTEND.values) + offset, size)


def write_kv(at, partition):
    """The first of attention's three parts: write the rows' keys and values if given (k not 0), rotate and scale q.

    `work` holds (rows + 2 · partitions) · heads · (2 + head_dim + PAGE) numbers.
    """
    partitions, heads, head_dim, here = (
        argument(at, PARTITIONS),
        argument(at, ATTEND.heads),
        argument(at, ATTEND.head_dim),
        argument(at, ATTEND.batch),
    )
    angles, scale = argument(at, ATTEND.angles), fraction(at, ATTEND.scale)
    cos, sin = argument(angles, ANGLES.cos), argument(angles, ANGLES.sin)
    if partition == 0:
        put_integer(argument(at, ATTEND.tickets), 0)
    rows = argument(here, BATCH.rows)
    for row in range(first_row(partition, partitions, rows), first_row(partition + 1, partitions, rows)):
        rotated, q = (
            argument(at, ATTEND.rotated) + 4 * row * heads * head_dim,
            argument(at, ATTEND.q) + row * argument(at, ATTEND.q_stride),
        )
        if argument(at, ATTEND.k) != 0:
            write_keys(at, here, row, rotated)
        for head in range(heads):
            source, target = q + 4 * head * head_dim, rotated + 4 * head * head_dim
            if cos != 0:
                rotate_into(source, cos + 4 * row * head_dim, sin + 4 * row * head_dim, target, head_dim)
                scale_into(target, target, scale, head_dim)
            else:
                scale_into(target, source, scale, head_dim)


@inlined
def splits_for(at):
    """How many parts each row's context is cut into: so many that the threads end together.

    And none so short that putting them together costs more. One row's parts are as many as the threads, and as long.
    """
    here, partitions, window = argument(at, ATTEND.batch), argument(at, PARTITIONS), argument(at, ATTEND.window)
    rows, seen = argument(here, BATCH.rows), argument(here, BATCH.longest)
    if window > 0:
        seen = min(seen, window)
    wanted = partitions if rows == 1 else (2 * partitions + rows - 1) // rows
    return max(1, min(wanted, seen // 32))


def attend_splits(at, partition):
    """The second: take a row's part until there are none."""
    heads, kv_heads, head_dim, window = (
        argument(at, ATTEND.heads),
        argument(at, ATTEND.kv_heads),
        argument(at, ATTEND.head_dim),
        argument(at, ATTEND.window),
    )
    here, work, parts = argument(at, ATTEND.batch), argument(at, ATTEND.work), splits_for(at)
    count, size = argument(here, BATCH.rows) * parts, heads * head_dim
    split_bytes, stride = 4 * (2 + head_dim) * heads, kv_heads * head_dim * BYTES
    keys, values, slopes = argument(at, ATTEND.keys), argument(at, ATTEND.values), argument(at, ATTEND.slopes)
    scores = work + count * split_bytes + 4 * PAGE * heads * partition
    while True:
        ticket = take_ticket(argument(at, ATTEND.tickets), 1)
        if ticket >= count:
            return
        row = ticket // parts
        entry = argument(here, BATCH.plan) + 16 * row
        position, table = integer(entry), integer(entry + 8)
        low = max(0, position + 1 - window) if window > 0 else 0
        low, high = split_of(ticket % parts, parts, low, position + 1)
        state = work + ticket * split_bytes
        attend_split(
            argument(at, ATTEND.rotated) + 4 * row * size, keys, values, stride, table, low, high, position,
            heads, kv_heads, head_dim, fraction(at, ATTEND.softcap), slopes, scores, state, state + 8 * heads,
        )  # fmt: skip


def combine_splits(at, partition):
    """The last: put each row's parts together."""
    heads, head_dim, work, parts = (
        argument(at, ATTEND.heads),
        argument(at, ATTEND.head_dim),
        argument(at, ATTEND.work),
        splits_for(at),
    )
    split_bytes = 4 * (2 + head_dim) * heads
    for row in range(partition, argument(argument(at, ATTEND.batch), BATCH.rows), argument(at, PARTITIONS)):
        out = argument(at, ATTEND.out) + 4 * row * heads * head_dim
        combine_row(
            out, work + row * parts * split_bytes, split_bytes, parts, heads, head_dim, argument(at, ATTEND.sinks)
        )
