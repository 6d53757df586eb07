"""What torch does when there are many rows: products in bfloat16, where they are allowed, and attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from byhand.kernels import reference
from byhand.kv_cache import Batch, KVCache
from byhand.weights import Weight

# Rows, and numbers of their mask, that are held at once: with fewer rows torch's attention gets slower.
MASKED_ROWS, MASK = 256, 2**21


def in_bfloat16(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """`reference.linear` by bfloat16 products: x, the weight and the result are rounded, the sums are float32's."""
    x = x.bfloat16()
    if weight.format == "bfloat16":
        out = functional.linear(x, weight.tensors[0])
    else:
        rows = reference.ROWS[weight.format]
        out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.bfloat16)
        step = max(1, reference.BLOCK // weight.shape[1])
        for start in range(0, weight.shape[0], step):
            out[:, start : start + step] = x @ rows(weight, slice(start, start + step)).bfloat16().T
    return out if bias is None else out.add_(bias)


def gated_in_bfloat16(x: Tensor, gate: Weight, up: Weight, gate_bias: Tensor | None, up_bias: Tensor | None) -> Tensor:
    """`reference.gated` by bfloat16 products, the gate's curve in bfloat16 too: (N, out) bfloat16, for another one."""
    x = x.bfloat16()
    return functional.silu(in_bfloat16(x, gate, gate_bias)).mul_(in_bfloat16(x, up, up_bias))


def attention(q: Tensor, cache: KVCache, layer: int, batch: Batch, *, scale: float, **options: Any) -> Tensor:
    """`reference.attention`; where there is nothing but a window to it, by torch's own, which keeps no scores."""
    if any(value is not None for name, value in options.items() if name != "window"):
        return reference.attention(q, cache, layer, batch, scale=scale, **options)
    window, out = options.get("window"), torch.empty_like(q)
    for run, context in enumerate(batch.context_lens):
        start, end = batch.query_starts[run], batch.query_starts[run + 1]
        first = context - (end - start)  # the position of the run's first query
        step = end - start if first == 0 and window is None else max(1, min(MASKED_ROWS, MASK // context))
        for row in range(start, end, step):
            stop = min(row + step, end)
            place = first + row - start
            out[row:stop] = _attend(q[row:stop], cache, layer, batch.page_tables[run], place, window, scale)
    return out


def _attend(
    q: Tensor, cache: KVCache, layer: int, pages: tuple[int, ...], first: int, window: int | None, scale: float
) -> Tensor:
    """Attention of one run's rows, the first of which is at position `first`."""
    (rows, heads, head_dim), size, high = q.shape, cache.pool.page_size, first + len(q)
    low = 0 if window is None else max(0, first - window + 1) // size * size
    keys, values = reference.gather(cache, layer, pages, low, high)
    # Heads that share their keys see them by a view: a copy for each would be the largest thing here.
    shared = (keys.shape[1], heads // keys.shape[1], -1, -1)
    keys, values = (x.transpose(0, 1)[:, None].expand(shared) for x in (keys, values))
    mask = None
    if low or first or window is not None:
        theirs, own = torch.arange(low, high), torch.arange(first, high)[:, None]
        mask = theirs <= own if window is None else (theirs <= own) & (theirs > own - window)
    found = functional.scaled_dot_product_attention(
        q.view(rows, *shared[:2], head_dim).permute(1, 2, 0, 3),
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
    )
    return found.permute(2, 0, 1, 3).reshape(rows, heads, head_dim)
