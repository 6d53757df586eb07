"""Attention: queries, keys and values, what may be done to them, and what is read out of the cache."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from byhand.cache.kv_cache import Batch, KVCache, LayerSpec
from byhand.kernels import Rotary
from byhand.layers.linear import Linear, Several
from byhand.layers.norm import Norm, per_head
from byhand.layers.observing import Layer


class Attention(Layer):
    """Causal attention, multi-head or grouped-query (arXiv:2305.13245), over the cache of layer number `layer`.

    qkv: makes queries (N, heads · head_dim), keys and values (N, kv heads · head_dim). q_norm, k_norm: over each head,
    or over all at once where they are that wide. rotary: rotates queries and keys; None where positions are learned.
    scale: of the scores, 1/√head_dim unless given. `window`, `softcap`, `slopes`, `sinks`: as `Kernels.attention` has
    them.
    """

    activations = ("q", "k", "v", "z", "out")

    def __init__(
        self,
        qkv: Several,
        o_proj: Linear,
        *,
        layer: int,
        head_dim: int,
        scale: float | None = None,
        rotary: Rotary | None = None,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
        window: int | None = None,
        softcap: float | None = None,
        slopes: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        self.kernels = qkv.kernels
        self.qkv, self.o_proj = qkv, o_proj
        self.layer, self.head_dim = layer, head_dim
        self.rotary, self.q_norm, self.k_norm = rotary, q_norm, k_norm
        self.spec = LayerSpec(qkv.sizes[1] // head_dim, head_dim, window)
        options = {"window": window, "softcap": softcap, "slopes": slopes, "sinks": sinks}
        self.options: dict[str, Any] = {name: given for name, given in options.items() if given is not None}
        self.options["scale"] = head_dim**-0.5 if scale is None else scale

    def __call__(self, x: Tensor, residual: Tensor | None, batch: Batch, cache: KVCache) -> Tensor:
        """x (N, hidden) → what was attended to (N, hidden), added to the residual if there is one.

        The rows' keys and values are in the cache then.
        """
        q, k, v = self.qkv(x)
        if self.q_norm is not None:
            q = per_head(self.q_norm, q, self.head_dim)
        if self.k_norm is not None:
            k = per_head(self.k_norm, k, self.head_dim)
        q, k, v = self.show("q", q), self.show("k", k), self.show("v", v)
        z = self.kernels.attend(q, k, v, self.rotary, cache, self.layer, batch, **self.options)
        return self.show_out(self.o_proj, self.show("z", z), residual)
