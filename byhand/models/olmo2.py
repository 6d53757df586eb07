"""OLMo 2: Llama whose norms stand behind attention and MLP, with norms over the whole width of queries and keys.

arXiv:2501.00656.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor

from byhand.cache.kv_cache import Batch, KVCache
from byhand.config import MAX_LAYERS, ConfigFields
from byhand.kernels import Kernels, Rotary
from byhand.layers import Attention, RMSNorm
from byhand.models import llama
from byhand.weights import Weights

MODEL_TYPES = ("olmo2",)
IGNORED = llama.IGNORED


class Config(llama.Config):
    """config.json, checked."""

    __slots__ = ()

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Read and check; BadConfig names what is wrong."""
        fields = ConfigFields(config)
        bias = fields.flag("attention_bias", False)
        windows = (None,) * fields.integer("num_hidden_layers", high=MAX_LAYERS)
        return cls.read(fields, rms_norm_eps=1e-5, qkv_bias=bias, o_bias=bias, mlp_bias=False, windows=windows)


class Block(llama.Block):
    """One layer: attention and MLP, each before a norm, each added to what came in. Llama's first norm is not there."""

    def __init__(self, config: llama.Config, layer: int, weights: Weights, kernels: Kernels, rotary: Rotary) -> None:
        size, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = self.attention(config, layer, weights.at("self_attn"), kernels, rotary)
        self.post_attention_layernorm = RMSNorm(kernels, weights.at("post_attention_layernorm"), size, eps)
        self.mlp = llama.mlp(config, weights.at("mlp"), kernels)
        self.post_feedforward_layernorm = RMSNorm(kernels, weights.at("post_feedforward_layernorm"), size, eps)

    def attention(
        self, config: llama.Config, layer: int, weights: Weights, kernels: Kernels, rotary: Rotary
    ) -> Attention:
        """Llama's, with the two norms."""
        heads = {"q_norm": config.num_attention_heads, "k_norm": config.num_key_value_heads}
        norms = {
            name: RMSNorm(kernels, weights.at(name), count * config.head_dim, config.rms_norm_eps)
            for name, count in heads.items()
        }
        return llama.attention(config, layer, weights, kernels, rotary, **norms)

    def __call__(self, x: Tensor, batch: Batch, cache: KVCache) -> Tensor:
        """x (N, hidden) → (N, hidden)."""
        x = self.show("resid_pre", x)
        x = self.show("resid_mid", self.post_attention_layernorm(self.self_attn(x, None, batch, cache), residual=x))
        return self.show("resid_post", self.post_feedforward_layernorm(self.mlp(x), residual=x))


class Model(llama.Model):
    """The whole."""

    block = Block
