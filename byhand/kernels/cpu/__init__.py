"""The kernels for a processor: Numba's, at the memory's speed for few rows and at the multipliers' for many.

The arithmetic is in `native/`; here tensors become addresses (operands.py), and each call goes to what is fastest at
its size: the kernel for few rows or for many, or torch's product (products.py). How a call is made, and how all blocks
become one, is in calls.py and capture.py.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from byhand.cache.kv_cache import PAGE_SIZE, Batch, KVCache
from byhand.errors import BadRequest
from byhand.kernels import Rotary, TopkLse, reference
from byhand.kernels.cpu.calls import MANY_QUERIES, bits
from byhand.kernels.cpu.operands import LayerCache, address, address_and_stride, rows_apart
from byhand.kernels.cpu.products import MANY_ROWS, ROUNDED_ROWS, Products
from byhand.kernels.native import arguments
from byhand.kernels.native.arguments import Attend, Norm
from byhand.kernels.native.chunks import many_numbers
from byhand.kernels.native.llvm import HAS_PAIR_SUMS
from byhand.kernels.native.panels import WIDE

__all__ = ["MANY_ROWS", "ROUNDED_ROWS", "Cpu"]

# The best so many are found in the same reading of the logits.
MANY_BEST = 64


class Cpu(Products):
    """The backend. `prefill`: "exact" keeps float32's accuracy for many rows; "fast" takes bfloat16 products there:
    for prompts, and for four or more runs that decode together. A processor without such products stays exact, which is
    faster than rounding by hand.

    threads: None for as many as torch has. `note` is told when kernels have to be compiled first, and how far that is.
    fuse: run the blocks as one call once they have been captured.
    """

    rotate = staticmethod(reference.rotate)

    def __init__(
        self,
        *,
        threads: int | None = None,
        prefill: str = "exact",
        note: Callable[[str], None] | None = None,
        fuse: bool = True,
    ) -> None:
        if prefill not in ("exact", "fast"):
            raise BadRequest(f"prefill is {prefill!r}; it must be 'exact' or 'fast'", param="prefill")
        super().__init__(threads, note, fuse, fast=prefill == "fast" and HAS_PAIR_SUMS)

    def topk_lse(self, logits: Tensor, counts: Sequence[int]) -> list[TopkLse | None]:
        """The best so many of each row of logits (rows, vocab) and the mass of the others; None where they are many."""
        rows, vocab = logits.shape
        able = array("q", [k if k <= MANY_BEST and k < vocab else 0 for k in counts])
        most = max(able, default=0)
        if not most or logits.dtype != torch.float32 or not logits.is_contiguous():
            return [None] * rows
        values, ids = array("f", bytes(4 * rows * most)), array("q", bytes(8 * rows * most))
        results = array("d", bytes(24 * rows))
        addresses = [numbers.buffer_info()[0] for numbers in (values, ids, results)]
        threads = self._threads_for(rows * vocab) if rows > 1 else 1
        table = arguments.TopkLse(able.buffer_info()[0], logits.data_ptr(), vocab, most, *addresses)
        self._run("topk_lse", threads, *table, partitions=rows)
        found: list[TopkLse | None] = []
        for row, k in enumerate(counts):
            is_finite, mass, moment = results[3 * row : 3 * row + 3]
            best = slice(most * row, most * row + k)
            found.append((ids[best].tolist(), values[best].tolist(), mass, moment) if is_finite else None)
        return found

    # Norms.

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
        """x (..., size) over its root mean square, times weight (size,), plus residual, of x's shape."""
        return self._norm("rms_norm", x, weight, None, eps, residual)

    def layer_norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, residual: Tensor | None = None
    ) -> Tensor:
        """x (..., size) less its mean, over its standard deviation, times weight, plus bias, plus residual."""
        return self._norm("layer_norm", x, weight, bias, eps, residual)

    def _norm(
        self, name: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, residual: Tensor | None
    ) -> Tensor:
        count, size = x.numel(), x.shape[-1]
        x, y = x.contiguous(), self._empty(*x.shape)
        residual = residual if residual is None else residual.contiguous()
        self._read(x, residual)
        table = Norm(
            x=x.data_ptr(),
            weight=address(weight),
            bias=address(bias),
            eps=bits(eps),
            y=y.data_ptr(),
            rows=count // size,
            size=size,
            residual=address(residual),
        )
        self._run(name, self._threads_for(count), *table)
        return y

    # Attention.

    def attention(
        self,
        q: Tensor,
        cache: KVCache,
        layer: int,
        batch: Batch,
        **options: Any,
    ) -> Tensor:
        """Causal attention of q (N, heads, head_dim) to its run's keys and values in the pages: same shape as q."""
        if self._knows(cache, layer, batch):
            return self._attend(q.flatten(1), None, None, None, cache, layer, batch, **options).view(q.shape)
        return reference.attention(q, cache, layer, batch, **options)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotary: Rotary | None,
        cache: KVCache,
        layer: int,
        batch: Batch,
        **options: Any,
    ) -> Tensor:
        """Rotate q and k if there is a rotary embedding, write k and v to the cache, and attend: flat rows."""
        if self._knows(cache, layer, batch):
            return self._attend(q, k, v, rotary, cache, layer, batch, **options)
        return reference.attend(q, k, v, rotary, cache, layer, batch, **options)

    def _knows(self, cache: KVCache, layer: int, batch: Batch) -> bool:
        """Lay out the batch and the layer's cache if they are new; whether the kernels know the cache's dtype."""
        self._pass.enter(batch)
        layer_cache = self._layers.get((id(cache), layer))
        if layer_cache is None:
            layer_cache = self._layers[id(cache), layer] = LayerCache(cache, layer)
        return layer_cache.format is not None

    def _attend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        rotary: Rotary | None,
        cache: KVCache,
        layer: int,
        batch: Batch,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        slopes: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        layer_cache = self._layers[id(cache), layer]
        rows, size = q.shape
        heads, head_dim = size // layer_cache.head_dim, layer_cache.head_dim
        seen = min(window, self._pass.longest) if window else self._pass.longest
        # A captured call serves contexts of any length.
        threads = self.threads if self._capture is not None else self._threads_for(rows * seen * size * 2)
        angles = self._angles_of(rotary, batch)
        q = rows_apart(q)
        self._read(q, k, v)
        out = self._empty(rows, size)
        if self._pass.most_rows >= MANY_QUERIES:
            is_rounded = self.fast and head_dim % WIDE == 0
            rest = [f"attend_many_{'rounded_' if is_rounded else ''}{layer_cache.format}"]
            count = threads * many_numbers(heads // layer_cache.kv_heads, head_dim)
        else:
            rest = [f"attend_splits_{layer_cache.format}", "combine_splits"]
            count = (rows + 2 * threads) * heads * (2 + head_dim + PAGE_SIZE)
        work = self._scratch(count + rows * size)
        table = Attend(
            self._ticket.buffer_info()[0],
            *address_and_stride(q),
            *address_and_stride(k),
            *address_and_stride(v),
            heads=heads,
            kv_heads=layer_cache.kv_heads,
            head_dim=head_dim,
            keys=layer_cache.keys,
            values=layer_cache.values,
            window=window or 0,
            scale=bits(scale),
            softcap=bits(softcap or 0.0),
            slopes=address(slopes),
            sinks=address(sinks),
            work=work,
            rotated=work + 4 * count,
            out=out.data_ptr(),
            batch=self._pass.at[layer_cache.group],
            angles=angles.at,
        )
        self._run([f"write_kv_{layer_cache.format}", *rest], threads, *table)
        return out
