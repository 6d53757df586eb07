"""The kernels as plain torch, on any device: slow, and the truth that the fast ones are held to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.nn import functional

from byhand.cache.kv_cache import PAGE_SIZE, Batch, KVCache
from byhand.formats import Weight, formats
from byhand.kernels import Rotary

# Upcast weights and attention scores are made in blocks of about this many numbers: 16 MiB of float32.
BLOCK = 2**22


def rows_of(weight: Weight, rows: slice | torch.Tensor) -> torch.Tensor:
    """Some rows of a matrix as float32: what its format's own file says."""
    return formats()[weight.format].rows(weight, rows)


def expect(call: str, *weights: Weight) -> None:
    """Whatever comes, nothing is to be made ready: so for `load` and `prepare` too."""


def load(weight_format: str, cache_dtype: torch.dtype) -> None:
    """Nothing."""


def prepare(head_dims: Iterable[int], cache_dtype: torch.dtype) -> None:
    """Nothing."""


def blocks(
    layers: Sequence[Callable[..., torch.Tensor]], x: torch.Tensor, batch: Batch, cache: KVCache
) -> torch.Tensor:
    """Blocks of a model, one after another, kernel by kernel."""
    for layer in layers:
        x = layer(x, batch, cache)
    return x


def linear(
    x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """x (N, in) times weight (out, in) transposed, plus bias (out,), plus residual (N, out): (N, out)."""
    out_features, in_features = weight.shape
    out = x.new_empty(x.shape[0], out_features)
    # In blocks of output rows, so that no float32 copy of a big head is ever held.
    step = out_features if weight.format == "float32" else max(1, BLOCK // in_features)
    for start in range(0, out_features, step):
        block = rows_of(weight, slice(start, start + step))
        out[:, start : start + step] = x @ block.T
    if bias is not None:
        out.add_(bias)
    return out if residual is None else residual + out


def linears(
    x: torch.Tensor, weights: Sequence[Weight], biases: Sequence[torch.Tensor | None]
) -> tuple[torch.Tensor, ...]:
    """`linear` with each of several weights."""
    return tuple(linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))


def gated(
    x: torch.Tensor,
    gate: Weight,
    up: Weight,
    gate_bias: torch.Tensor | None = None,
    up_bias: torch.Tensor | None = None,
    activation: str = "silu",
) -> torch.Tensor:
    """An activation function of linear(x, gate), times linear(x, up). arXiv:2002.05202."""
    return act_and_mul(activation, linear(x, gate, gate_bias), linear(x, up, up_bias))


def embedding(ids: torch.Tensor, weight: Weight) -> torch.Tensor:
    """The rows of weight (vocab, hidden) that ids (N,) name: (N, hidden)."""
    return rows_of(weight, ids)


def topk_lse(logits: torch.Tensor, counts: Sequence[int]) -> list[None]:
    """Nothing: the sampler looks for itself."""
    return [None] * len(counts)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> torch.Tensor:
    """x (..., size) over its root mean square, times weight (size,), plus residual. arXiv:1910.07467."""
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
    return y if residual is None else residual + y


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """x (..., size) less its mean, over its standard deviation, times weight, plus bias, plus residual.

    arXiv:1607.06450.
    """
    y = functional.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return y if residual is None else residual + y


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (N, heads, head_dim) rotated by its position's angles; dimension i pairs with i + head_dim / 2."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def relu(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0)."""
    return functional.relu(x)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x times the normal distribution function at x, by erf. arXiv:1606.08415."""
    return functional.gelu(x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """The approximation of gelu by tanh that GPT-2 was trained with."""
    return functional.gelu(x, approximate="tanh")


def silu(x: torch.Tensor) -> torch.Tensor:
    """x times its sigmoid."""
    return functional.silu(x)


ACTIVATIONS = {"relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}


def act_and_mul(activation: str, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """An activation function of gate, by its name, times up."""
    return ACTIVATIONS[activation](gate) * up


def _probabilities(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    if sinks is None:
        return scores.softmax(-1)
    # The sink is one more key that every query sees; its weight is dropped, so the rest sums to less than one.
    column = sinks.view(*scores.shape[:2], 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, column), dim=-1).softmax(-1)[..., :-1]


def _attend(
    q: torch.Tensor,  # (rows, heads, head_dim)
    keys: torch.Tensor,  # (context, kv heads, head_dim)
    values: torch.Tensor,
    distances: torch.Tensor,  # (rows, context): key position − query position
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    groups = q.view(q.shape[0], keys.shape[1], -1, q.shape[-1])  # (rows, kv heads, heads per kv head, head_dim)
    scores = torch.einsum("rkgd,ckd->kgrc", groups, keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if slopes is not None:
        scores = scores + slopes.view(*scores.shape[:2], 1, 1) * distances
    hidden = distances > 0
    if window is not None:
        hidden = hidden | (distances <= -window)
    pattern = _probabilities(scores.masked_fill(hidden, -math.inf), sinks)
    return torch.einsum("kgrc,ckd->rkgd", pattern, values).reshape(q.shape)


def attention(
    q: torch.Tensor,
    cache: KVCache,
    layer: int,
    batch: Batch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of q (N, heads, head_dim) to its run's keys and values in the pages: same shape as q.

    One run at a time and in blocks of query rows, so that a long prompt's scores are never held at once.
    """
    out = torch.empty_like(q)
    page_tables = batch.page_tables[cache.group_of[layer]]
    for run, context in enumerate(batch.context_lens):
        start, end = batch.query_starts[run], batch.query_starts[run + 1]
        first = context - (end - start)  # the position of the run's first query
        step = max(1, BLOCK // (q.shape[1] * context))
        for row in range(start, end, step):
            stop = min(row + step, end)
            positions = torch.arange(first + row - start, first + stop - start, device=q.device)
            low = 0 if window is None else max(0, first + row - start - window + 1) // PAGE_SIZE * PAGE_SIZE
            high = first + stop - start
            keys, values = gather(cache, layer, page_tables[run], low, high)
            distances = torch.arange(low, high, device=q.device) - positions[:, None]
            out[row:stop] = _attend(
                q[row:stop], keys, values, distances,
                scale=scale, window=window, softcap=softcap, slopes=slopes, sinks=sinks,
            )  # fmt: skip
    return out


def gather(
    cache: KVCache, layer: int, pages: tuple[int, ...], low: int, high: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A run's keys and values from position `low`, a page's first, to `high`: (high - low, kv heads, head_dim) each."""
    wanted = torch.tensor(pages[low // PAGE_SIZE : -(-high // PAGE_SIZE)], device=cache.keys[layer].device)
    keys, values = (
        tensors[layer][wanted].flatten(0, 1)[: high - low].float() for tensors in (cache.keys, cache.values)
    )
    return keys, values


def write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotary: Rotary | None,
    cache: KVCache,
    layer: int,
    batch: Batch,
) -> torch.Tensor:
    """Rotate q and k by the angles if there are any, and put k and v into the cache: q (N, heads, head_dim)."""
    head_dim = cache.keys[layer].shape[-1]
    q, k, v = (x.view(len(x), -1, head_dim) for x in (q, k, v))
    if rotary is not None:
        cos, sin = rotary(batch.position_ids)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    cache.write(layer, batch.slot_mappings[cache.group_of[layer]], k, v)
    return q


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotary: Rotary | None,
    cache: KVCache,
    layer: int,
    batch: Batch,
    **options: Any,
) -> torch.Tensor:
    """`write`, then `attention` with its options: (N, heads · head_dim)."""
    return attention(write(q, k, v, rotary, cache, layer, batch), cache, layer, batch, **options).flatten(1)
