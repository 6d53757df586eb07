"""Attention of many rows of one run, as reading a prompt has them: products of blocks instead of one row at a time.

A task is a block of rows with one head of keys and the heads that share it. Keys are taken 128 at a time,
transposed, so that a row's scores are eight vectors, and the softmax goes along (Milakov and Gimelshein,
arXiv:1805.02867; blocks as in FlashAttention, Dao et al., arXiv:2205.14135): no more scores are held than a block has.

A template, made for each dtype of the cache, and with prefill="fast" once more: there queries, keys, weights and values
are multiplied in pairs of bfloat16, the sums and the softmax staying in float32. Numbers are addresses and counts as in
attention.py, whose table this is.
"""

from __future__ import annotations

from typing import Any

from byhand.kernels.native import panels
from byhand.kernels.native.arguments import ATTEND, BATCH
from byhand.kernels.native.attention import MINUS_INFINITY, PAGE, fill, scale_into, shape_scores
from byhand.kernels.native.compiled import inlined, specialise
from byhand.kernels.native.llvm import LANES
from byhand.kernels.native.panels import ACCUMULATED, WIDE
from byhand.kernels.native.tiles import FORMATS, TileFormat, accumulation, pairing, transposing, unpacking
from byhand.kernels.native.vectors import (
    argument,
    broadcast,
    decay,
    fraction,
    highest,
    integer,
    lane_numbers,
    larger,
    load_float32,
    not_inlined,
    one_float32,
    put,
    store,
    take_ticket,
    total,
    where_less,
)

# Set by the maker of each kernel; these are float32's. BLOCK: what is transposed at once. STEP: what a lane multiplies.
BYTES, BLOCK, STEP = 4, LANES, 1
one, put_some = one_float32, store
transpose, unpack, pair = transposing(FORMATS["float32"]), unpacking(FORMATS["float32"]), pairing(FORMATS["float32"])

KEYS = 8 * PAGE  # keys of a block
ROWS = 96  # rows times heads of a block, at most


def accumulations(weight_format: TileFormat, label: str) -> dict[str, Any]:
    """`panels.accumulate_rows` for panels of two vectors, and the same for panels of one."""
    made = {}
    for name, vectors in (("wide", 2), ("narrow", 1)):
        parts = {
            f"accumulate_{count}": accumulation(weight_format, rows, vectors) for count, rows in ACCUMULATED.items()
        }
        scope = specialise([panels.accumulate_rows], parts, f"{name}_{label}")
        made[f"accumulate_{name}"] = scope["accumulate_rows"]
    return made


accumulate_wide, accumulate_narrow = accumulations(FORMATS["float32"], "float32").values()


def many_numbers(group: int, head_dim: int) -> int:
    """How many numbers a thread works in: a block's keys, values, queries, sums, scores, and each row's state."""
    width = -(-head_dim // LANES) * LANES
    most = max(1, ROWS // group) * group
    return (KEYS + most) * (head_dim + width) + most * (KEYS + 2)


def multiply_into(sums, sums_stride, weights, stride, rows, values, width, steps):
    """sums (rows, width) += weights (rows, steps) times values (steps, width), the width whole vectors."""
    not_inlined()
    wide = width // WIDE * WIDE
    for at in range(0, wide, WIDE):
        accumulate_wide(sums + 4 * at, sums_stride, weights, stride, rows, values + 4 * at, 4 * width, steps)
    if wide < width:
        accumulate_narrow(sums + 4 * wide, sums_stride, weights, stride, rows, values + 4 * wide, 4 * width, steps)


def take_page(keys, values, stride, keys_here, values_here, count, head_dim, width):
    """One page's keys, transposed, into a block of them, and its first `count` values beside those of other pages."""
    not_inlined()
    whole = head_dim // BLOCK
    for block in range(whole):
        transpose(keys + block * BLOCK * BYTES, stride, 0, 0, keys_here + 4 * KEYS * BLOCK // STEP * block, 4 * KEYS)
    for token in range(0, count, STEP):
        row, target = values + token * stride, values_here + 4 * width * (token // STEP)
        if STEP == 2:  # an odd last one is its own neighbour, whose weight is 0
            pair(row, row + stride if token + 1 < count else row, width // LANES, target)
        else:
            unpack(row, 0, whole, target)
    for at in range(whole * BLOCK, head_dim):
        for token in range(PAGE):
            put(keys_here + 4 * (KEYS * at + token), one(keys + token * stride + BYTES * at))
        for token in range(count):
            put(values_here + 4 * (width * token + at), one(values + token * stride + BYTES * at))


def take_query(query, source, head_dim):
    """One head's query, as it is multiplied."""
    whole = head_dim // LANES * LANES
    for at in range(0, whole, LANES):
        put_some(query + 4 * at // STEP, load_float32(source + 4 * at))
    for at in range(whole, head_dim):
        put(query + 4 * at, one_float32(source + 4 * at))


@inlined
def hide(value, part, first, last):
    """Scores of a block's keys from `part` on, those outside first:last at -inf."""
    numbers = lane_numbers() + broadcast(float(part))
    value = where_less(numbers, broadcast(last), value, MINUS_INFINITY)
    return where_less(broadcast(first - 1.0), numbers, value, MINUS_INFINITY)


def soften_row(scores, head, first, last, distance, softcap, slopes, state, sums, width):
    """Turn one row's scores of a block into weights under the highest so far; keys outside first:last weigh nothing.

    `distance` is the block's start − the query's position. What was summed under a lower score shrinks.
    """
    not_inlined()
    if last <= 0 or first >= KEYS:
        fill(scores, 0.0, KEYS)
        return
    peaks = broadcast(MINUS_INFINITY)
    for part in range(0, KEYS, PAGE):
        address = scores + 4 * part
        value = shape_scores(address - 4 * PAGE * head, head, softcap, slopes, distance + part)
        if first > 0 or last < KEYS:
            value = hide(value, part, first, last)
        store(address, value)
        peaks = larger(value, peaks)
    before = one_float32(state)
    peak = max(before, highest(peaks))
    weight_sums = broadcast(0.0)
    for part in range(0, KEYS, PAGE):
        weights = decay(load_float32(scores + 4 * part) - broadcast(peak))
        put_some(scores + 4 * part // STEP, weights)
        weight_sums = weight_sums + weights
    weight_sum = one_float32(state + 4)
    if peak > before:
        put(state, peak)
        shrink = total(decay(broadcast(before - peak))) / LANES
        weight_sum *= shrink
        scale_into(sums, sums, shrink, width)
    put(state + 4, weight_sum + total(weight_sums))


def attend_rows(at, entry, first_row, count, kv_head, work):
    """One task: rows first_row:first_row + count of a run with the heads of one head of keys."""
    not_inlined()
    heads, kv_heads, head_dim, window = (
        argument(at, ATTEND.heads),
        argument(at, ATTEND.kv_heads),
        argument(at, ATTEND.head_dim),
        argument(at, ATTEND.window),
    )
    group, width, size = heads // kv_heads, (head_dim + LANES - 1) // LANES * LANES, heads * head_dim
    table, context = integer(entry + 16), integer(entry + 24)
    position = context - integer(entry + 8) + first_row - integer(entry)  # of the first row
    stride, sinks = kv_heads * head_dim * BYTES, argument(at, ATTEND.sinks)
    keys, values, slopes = argument(at, ATTEND.keys), argument(at, ATTEND.values), argument(at, ATTEND.slopes)
    rows, row_bytes = count * group, 4 * head_dim // STEP
    keys_here = work
    values_here = keys_here + 4 * KEYS * head_dim // STEP
    queries = values_here + 4 * KEYS * width // STEP
    sums = queries + rows * row_bytes
    scores = sums + 4 * rows * width
    state = scores + 4 * rows * KEYS
    fill(values_here, 0.0, KEYS * width // STEP)
    fill(sums, 0.0, rows * width)
    for row in range(rows):
        source = argument(at, ATTEND.rotated) + 4 * (
            (first_row + row // group) * size + (kv_head * group + row % group) * head_dim
        )
        take_query(queries + row * row_bytes, source, head_dim)
        put(state + 8 * row, one_float32(sinks + 4 * (kv_head * group + row % group)) if sinks != 0 else MINUS_INFINITY)
        put(state + 8 * row + 4, 1.0 if sinks != 0 else 0.0)
    low = max(0, position + 1 - window) // PAGE * PAGE if window > 0 else 0
    high = position + count
    for start in range(low, high, KEYS):
        seen = min(KEYS, high - start)
        for page in range((seen + PAGE - 1) // PAGE):
            offset = integer(table + 8 * (start // PAGE + page)) * PAGE * stride + kv_head * head_dim * BYTES
            keys_at, values_at = keys_here + 4 * PAGE * page, values_here + 4 * PAGE * page * width // STEP
            some = min(PAGE, seen - PAGE * page)
            take_page(keys + offset, values + offset, stride, keys_at, values_at, some, head_dim, width)
        fill(scores, 0.0, rows * KEYS)
        multiply_into(scores, 4 * KEYS, queries, row_bytes, rows, keys_here, KEYS, head_dim // STEP)
        for row in range(rows):
            here = position + row // group
            first = max(0, here + 1 - window - start) if window > 0 else 0
            soften_row(
                scores + 4 * KEYS * row, kv_head * group + row % group, first, here + 1 - start, start - here,
                fraction(at, ATTEND.softcap), slopes, state + 8 * row, sums + 4 * width * row, width,
            )  # fmt: skip
        multiply_into(sums, 4 * width, scores, 4 * KEYS, rows, values_here, width, (seen + STEP - 1) // STEP)
    for row in range(rows):
        target = argument(at, ATTEND.out) + 4 * (
            (first_row + row // group) * size + (kv_head * group + row % group) * head_dim
        )
        scale_into(target, sums + 4 * width * row, 1.0 / one_float32(state + 8 * row + 4), head_dim)


def attend_many(at, partition):
    """Attention of every row, task by task until there are none, the long ones of a run first.

    `work` holds `many_numbers` for each partition.
    """
    here, heads, kv_heads, head_dim = (
        argument(at, ATTEND.batch),
        argument(at, ATTEND.heads),
        argument(at, ATTEND.kv_heads),
        argument(at, ATTEND.head_dim),
    )
    width, step = (head_dim + LANES - 1) // LANES * LANES, max(1, ROWS * kv_heads // heads)
    most = step * (heads // kv_heads)
    work = argument(at, ATTEND.work) + 4 * partition * ((KEYS + most) * (head_dim + width) + most * (KEYS + 2))
    runs, count = argument(here, BATCH.runs), argument(here, BATCH.run_count)
    while True:
        ticket = take_ticket(argument(at, ATTEND.tickets), 1)
        run = 0
        while run < count:
            tasks = (integer(runs + 32 * run + 8) + step - 1) // step * kv_heads
            if ticket < tasks:
                break
            ticket -= tasks
            run += 1
        if run == count:
            return
        entry = runs + 32 * run
        rows = integer(entry + 8)
        first = (tasks - 1 - ticket) // kv_heads * step
        attend_rows(at, entry, integer(entry) + first, min(step, rows - first), ticket % kv_heads, work)
